"""Fisher importance: the squared gradient of a unit's gate, on average over sequences.

Shapes: U units, B sequences.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pgprune_lightning.initialization.gate_gradients import gate_gradients
from pgprune_lightning.initialization.metric import MetricInputs


def fisher_metric(inputs: MetricInputs) -> Tensor:
    """Importance by the empirical Fisher information of a unit's gate, `mean((dL/dgate)^2)`.

    The mean goes over calibration sequences, each with its own loss. It needs a backward pass,
    and so the memory of its activations: that of one batch.

    Args:
        inputs: Model, unit layout and calibration batches.

    Returns:
        Importance, (U,), float64, CPU, in (nats per token)^2.

    Raises:
        UserError: If there is no calibration batch.

    Source: Theis et al. 2018 (Fisher pruning); Kwon et al. 2022, the diagonal Fisher of mask
        variables.
    Differs: A sequence's loss is the mean over its tokens. One half and the number of sequences,
        factors common to all units, are left out.
    """
    total_U = torch.zeros(inputs.space.num_units, dtype=torch.float64)
    for gradients_BU in gate_gradients(inputs, "fisher", {"total_U": total_U}):
        total_U += gradients_BU.square().sum(0)
    return total_U / inputs.num_sequences
