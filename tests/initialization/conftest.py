"""A unit layout of two kinds, what a metric is given about a tiny model, and what its layers read.

Shapes: T tokens, I inputs of a projection.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn

from pgprune_lightning.policy import UnitKind, UnitLayout

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from pgprune_lightning.initialization.metric import MetricInputs


@pytest.fixture
def space() -> UnitLayout:
    """Two layers of unequal width, 4 KV groups and 26 channels in all."""
    sizes: list[tuple[int, UnitKind, int, int, int]] = [
        (0, "kv_group", 2, 70, 5),
        (0, "mlp_channel", 10, 9, 4),
        (1, "kv_group", 2, 70, 5),
        (1, "mlp_channel", 16, 9, 4),
    ]
    return UnitLayout.build(sizes, total_parameters=1000)


@pytest.fixture
def metric_inputs(
    tiny_model: Callable[..., PreTrainedModel],
) -> Callable[..., MetricInputs]:
    """Makes the inputs of a metric: `metric_inputs(["kv_group"], batches, seed=3)`.

    `name` chooses another tiny model, which is exact in float64 with `dtype`.
    """
    from pgprune_lightning.initialization.metric import MetricInputs
    from pgprune_lightning.masking import unit_layout_of

    def make(
        unit_kinds: list[UnitKind],
        batches: list[Tensor],
        seed: int = 0,
        channels_per_unit: int = 1,
        name: str = "llama_gqa",
        dtype: torch.dtype = torch.float32,
    ) -> MetricInputs:
        model = nn.Module.to(tiny_model(name), dtype)
        space = unit_layout_of(model, unit_kinds, channels_per_unit)
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


@pytest.fixture
def assert_units_sum_their_inputs(
    metric_inputs: Callable[..., MetricInputs], record_inputs: Callable[..., list[Tensor]]
) -> Callable[..., None]:
    """Asserts that a metric is worth(projection, sequences) of each input, summed by unit.

    `worth` gives one number for each input of a projection; the sequences, (T, I), are what the
    projection reads of the batches.
    """

    def check(
        metric: Callable[[MetricInputs], Tensor],
        batches: list[Tensor],
        worth: Callable[[nn.Linear, list[Tensor]], list[float]],
    ) -> None:
        inputs = metric_inputs(["mlp_channel", "kv_group"], batches)
        metric_U = metric(inputs)
        assert metric_U.dtype == torch.float64
        for layer in (0, 2):
            module = inputs.model.model.layers[layer]
            for kind, linear, width in (
                ("kv_group", module.self_attn.o_proj, 2 * 8),  # two query heads of 8 share a key
                ("mlp_channel", module.mlp.down_proj, 1),
            ):
                sequences = record_inputs(inputs, linear)
                assert len(sequences) == sum(map(len, batches))
                of_inputs = worth(linear, sequences)
                for unit, value in enumerate(inputs.space.view(metric_U, layer, kind)):
                    expected = sum(of_inputs[unit * width : (unit + 1) * width])
                    assert float(value) == pytest.approx(expected, rel=1e-5)

    return check
