"""Wanda-sp: weight magnitude times activation norm, summed over a unit's columns.

Shapes: U units, B sequences, T tokens, I inputs of a projection.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pgprune_lightning.initialization.metric import MetricInputs
from pgprune_lightning.initialization.projection_inputs import InputImportance, sum_over_inputs
from pgprune_lightning.masking.sharding import whole_weight


def wanda_sp_metric(inputs: MetricInputs) -> Tensor:
    """Importance of KV groups and MLP channels by Wanda, summed to structures.

    For input j of the output (down) projection, `mean_i |W_ij| * ||X_j||`, where `||X_j||` is the
    root of the squared norm over a sequence's tokens, averaged over sequences. A channel is one
    input; a KV group sums over the inputs of its heads, a unit of several channels over those.

    Args:
        inputs: Model, unit layout and calibration batches.

    Returns:
        Importance, (U,), float64, CPU; raw: comparable within one layer and kind only.

    Raises:
        UserError: If there is no calibration batch.

    Source: Sun et al. 2023 (Wanda), An et al. 2023 (FLAP), where the structured variant is defined.
    Differs: Heads that share a key-value head are summed, as they stay or go together.
    """
    return sum_over_inputs(inputs, "wanda_sp", _WeightedNorm)


class _WeightedNorm(InputImportance):
    """Accumulates the squared L2 norm of each input over sequences."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        self.squared_I = torch.zeros(
            linear.in_features, dtype=torch.float64, device=linear.weight.device
        )
        self.num_sequences = torch.zeros((), dtype=torch.int64)

    def sums(self) -> dict[str, Tensor]:
        return {"squared_I": self.squared_I, "num_sequences": self.num_sequences}

    def add(self, inputs_BTI: Tensor) -> None:
        self.squared_I += inputs_BTI.flatten(0, -2).float().square().sum(0)
        self.num_sequences += inputs_BTI.shape[0]

    def importance(self) -> Tensor:
        magnitude_I = whole_weight(self.linear.weight).abs().mean(0, dtype=torch.float32).double()
        return magnitude_I * (self.squared_I / int(self.num_sequences)).sqrt()
