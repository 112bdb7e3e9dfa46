"""The projections whose inputs are units, and metrics that are sums over a unit's inputs.

Shapes: U units, B sequences, T tokens, I inputs of a projection.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pgprune_lightning.initialization.metric import MetricInputs
from pgprune_lightning.masking.decoder_family import backbone_of, decoder_layers
from pgprune_lightning.masking.sub_layer import DecoderLayer
from pgprune_lightning.policy.unit_layout import UnitKind

PROJECTIONS: dict[UnitKind, Callable[[DecoderLayer], nn.Linear]] = {
    "kv_group": lambda layer: layer.attention.output,
    "mlp_channel": lambda layer: layer.mlp.output,
}
"""By kind, the projection whose inputs, in order and in equal parts, are a layer's units."""


class InputImportance(ABC):
    """Gathers what a projection reads, and says what each of its inputs is worth.

    Args:
        linear: The projection.
    """

    def __init__(self, linear: nn.Linear) -> None:
        self.linear = linear

    @abstractmethod
    def add(self, inputs_BTI: Tensor) -> None:
        """Take in what the projection read of a batch."""

    @abstractmethod
    def sums(self) -> dict[str, Tensor]:
        """All that `add` changes, in place."""

    @abstractmethod
    def importance(self) -> Tensor:
        """Importance of each input, (I,), float64."""


@torch.no_grad()
def sum_over_inputs(
    inputs: MetricInputs, metric: str, measure: Callable[[nn.Linear], InputImportance]
) -> Tensor:
    """Importance of units as the sum over their inputs of the projection.

    Args:
        inputs: Model, unit layout of kinds in `PROJECTIONS`, and calibration batches.
        metric: What is measured.
        measure: Makes the measure of one projection.

    Returns:
        Importance, (U,), float64, CPU.

    Raises:
        UserError: If there is no calibration batch.
    """
    layers = decoder_layers(inputs.model)
    measures = {
        group: measure(PROJECTIONS[group.kind](layers[group.layer]))
        for group in inputs.space.groups
    }
    sums = {
        f"{group.layer} {group.kind} {name}": tensor
        for group, gathered in measures.items()
        for name, tensor in gathered.sums().items()
    }
    for batch_BT in inputs.measured_batches(metric, sums):
        with ExitStack() as stack:
            for gathered in measures.values():
                stack.callback(_observe(gathered, len(batch_BT)).remove)
            backbone_of(inputs.model)(batch_BT, use_cache=False)

    importance_U = torch.empty(inputs.space.num_units, dtype=torch.float64)
    for group, gathered in measures.items():
        by_unit = gathered.importance().view(group.count, -1)
        importance_U[group.start : group.end] = by_unit.sum(1)
    return importance_U


def _observe(gathered: InputImportance, num_sequences: int) -> RemovableHandle:
    def add(_module: nn.Module, arguments: tuple[Tensor]) -> None:
        # OPT makes one row of all sequences in its MLP.
        gathered.add(arguments[0].unflatten(0, (num_sequences, -1)).flatten(1, -2))

    return gathered.linear.register_forward_pre_hook(add)
