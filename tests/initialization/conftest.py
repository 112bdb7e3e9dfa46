"""A mask space of two kinds, and what a metric is given about a tiny model."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from pgprune_lightning.policy import MaskSpace, UnitKind

if TYPE_CHECKING:
    from torch import Tensor
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
    """Makes the inputs of a metric: `metric_inputs(["kv_group"], batches, seed=3)`."""
    from pgprune_lightning.initialization.metric import MetricInputs
    from pgprune_lightning.masking import mask_space_of

    def make(
        unit_kinds: list[UnitKind],
        batches: list[Tensor],
        seed: int = 0,
        channels_per_unit: int = 1,
    ) -> MetricInputs:
        model = tiny_model("llama_gqa")
        space = mask_space_of(model, unit_kinds, channels_per_unit)
        return MetricInputs(model, space, lambda: batches, seed)

    return make
