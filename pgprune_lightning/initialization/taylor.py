"""LLM-Pruner's first-order Taylor importance: what removing a unit adds to the loss, linearly.

Shapes: U units, B sequences.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pgprune_lightning.initialization.gate_gradients import gate_gradients
from pgprune_lightning.initialization.metric import MetricInputs


def taylor_metric(inputs: MetricInputs) -> Tensor:
    """Importance by the first-order change of the calibration loss, `|gate * dL/dgate|` at 1.

    For a unit's columns W of the output (down) projection this is `|sum(W * dL/dW)|`; for a layer
    the sum goes over all of both projections, biases included. It needs a backward pass, and so
    the memory of its activations: that of one batch.

    LLM-Pruner leaves the first four and the last two layers whole, and so does the paper where it
    starts from this metric:

        model:
          protected_layers: [0, 1, 2, 3, -2, -1]
          initialization: {metric: taylor}

    Args:
        inputs: Model, unit layout and calibration batches.

    Returns:
        Importance, (U,), float64, CPU, in nats per token.

    Raises:
        UserError: If there is no calibration batch.

    Source: Ma et al. 2023 (LLM-Pruner), vector-wise importance; paper, Table 2, footnote 5.
    Differs: Of the coupled matrices the last one speaks for the unit ("last-only" aggregation);
        without biases the value and up projections give the same number. The published runs sum
        absolute values of single weights instead (`param_first`) over all coupled matrices.
    """
    total_U = torch.zeros(inputs.space.num_units, dtype=torch.float64)
    for gradients_BU in gate_gradients(inputs, "taylor", {"total_U": total_U}):
        total_U += gradients_BU.sum(0)
    return (total_U / inputs.num_sequences).abs()
