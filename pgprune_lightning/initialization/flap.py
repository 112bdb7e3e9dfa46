"""FLAP: how much a unit's inputs fluctuate, times what the projection makes of it.

Shapes: U units, B sequences, T tokens, N tokens of a batch, I inputs of a projection.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pgprune_lightning.initialization.metric import MetricInputs
from pgprune_lightning.initialization.projection_inputs import InputImportance, sum_over_inputs
from pgprune_lightning.masking.sharding import whole_weight


def flap_metric(inputs: MetricInputs) -> Tensor:
    """Importance of KV groups and MLP channels by weighted input feature variance (WIFV).

    For input j of the output (down) projection, `Var(X_j) * ||W_:j||^2`, with the sample variance
    over all tokens of all sequences. A channel is one input; a KV group sums over the inputs of
    its heads.

    Args:
        inputs: Model, unit layout and calibration batches.

    Returns:
        Importance, (U,), float64, CPU; raw. Normalised in each `layer` it is comparable between
        layers, which is how FLAP finds a width for each (its "AL-AM" with `budget: units`).

    Raises:
        UserError: If there is no calibration batch.

    Source: An et al. 2023 (FLAP), fluctuation metric and adaptive structure search.
    Differs: The published code drops the first sequence, measures each later one about a running
        mean, and squares the metric of attention inputs. It standardises over a layer's inputs,
        (x - mean) / std with std over n - 1, before it averages a head's; `normalization: layer`
        standardises the units, with std over n. Its bias that makes up for what is removed is no
        part of the metric.
    """
    return sum_over_inputs(inputs, "flap", _WeightedVariance)


class _WeightedVariance(InputImportance):
    """Accumulates the variance of each input over tokens, batch by batch (Chan et al. 1983)."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        self.mean_I = torch.zeros(
            linear.in_features, dtype=torch.float64, device=linear.weight.device
        )
        self.deviations_I = torch.zeros_like(self.mean_I)
        self.num_tokens = torch.zeros((), dtype=torch.int64)

    def sums(self) -> dict[str, Tensor]:
        return {
            "mean_I": self.mean_I,
            "deviations_I": self.deviations_I,
            "num_tokens": self.num_tokens,
        }

    def add(self, inputs_BTI: Tensor) -> None:
        inputs_NI = inputs_BTI.flatten(0, -2).float()
        variance_I, mean_I = torch.var_mean(inputs_NI, dim=0, correction=0)
        before, added = int(self.num_tokens), len(inputs_NI)
        total = before + added
        shift_I = mean_I - self.mean_I
        between_I = shift_I.square() * (before * added / total)
        self.deviations_I += added * variance_I + between_I
        self.mean_I += shift_I * (added / total)
        self.num_tokens.fill_(total)

    def importance(self) -> Tensor:
        norm_I = torch.linalg.vector_norm(
            whole_weight(self.linear.weight), dim=0, dtype=torch.float32
        )
        return norm_I.double().square() * self.deviations_I / (int(self.num_tokens) - 1)
