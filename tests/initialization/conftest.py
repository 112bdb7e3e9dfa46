"""A mask space of two kinds, what a metric is given about a tiny model, and what its layers read.

Shapes: T tokens, I inputs of a projection.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn

from pgprune_lightning.policy import MaskSpace, UnitKind

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from pgprune_lightning.initialization.metric import MetricInputs


@pytest.fixture
def space() -> MaskSpace:
    """Two layers of unequal width, 4 KV groups and 26 channels in all."""
    sizes: list[tuple[int, UnitKind, int, int, int]] = [
        (0, "kv_group", 2, 70, 5),
        (0, "mlp_channel", 10, 9, 4),
        (1, "kv_group", 2, 70, 5),
        (1, "mlp_channel", 16, 9, 4),
    ]
    return MaskSpace.build(sizes, total_parameters=1000)


@pytest.fixture
def metric_inputs(
    tiny_model: Callable[..., PreTrainedModel],
) -> Callable[..., MetricInputs]:
    """Makes the inputs of a metric: `metric_inputs(["kv_group"], batches, seed=3)`.

    `name` chooses another tiny model, which is exact in float64 with `dtype`.
    """
    from pgprune_lightning.initialization.metric import MetricInputs
    from pgprune_lightning.masking import mask_space_of

    def make(
        unit_kinds: list[UnitKind],
        batches: list[Tensor],
        seed: int = 0,
        channels_per_unit: int = 1,
        name: str = "llama_gqa",
        dtype: torch.dtype = torch.float32,
    ) -> MetricInputs:
        model = nn.Module.to(tiny_model(name), dtype)
        space = mask_space_of(model, unit_kinds, channels_per_unit)
        return MetricInputs(model, space, lambda: batches, seed)

    return make


@pytest.fixture
def record_inputs() -> Callable[[MetricInputs, nn.Linear], list[Tensor]]:
    """Lists what a projection of a model is given for each calibration sequence, (T, I)."""

    def record(inputs: MetricInputs, linear: nn.Linear) -> list[Tensor]:
        recorded: list[Tensor] = []
        handle = linear.register_forward_hook(
            lambda _module, arguments, _output: recorded.extend(arguments[0])
        )
        with torch.no_grad():
            for batch_BT in inputs.calibration_batches():
                inputs.model(batch_BT)
        handle.remove()
        return recorded

    return record
