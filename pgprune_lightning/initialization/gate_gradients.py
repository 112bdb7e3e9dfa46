"""Gates on every unit, and the gradient of the calibration loss with respect to them.

The gradient of a gate of value 1 is what removing its unit costs, to first order. Of the metrics
these are the only ones for which anything is back-propagated through the model.

Shapes: U units, B sequences.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from pgprune_lightning.initialization.metric import MetricInputs
from pgprune_lightning.masking.gates import gate_gradient, gated

TOKENS_AT_ONCE = 256
"""At most, but for one long sequence: every activation of every layer is held for them. More would
be no faster on a GPU with a large model, and a fifth faster on a CPU for three times the memory."""


def gate_gradients(
    inputs: MetricInputs, metric: str, sums: Mapping[str, Tensor]
) -> Iterator[Tensor]:
    """Yield the gate gradients of the calibration sequences that are not in the sums yet.

    Args:
        inputs: Model, unit layout and calibration batches.
        metric: What is measured.
        sums: What the caller adds to, in place; see `MetricInputs.measured_batches`.

    Yields:
        Gradients, (B, U), float64, CPU: of a sequence's mean token loss, in nats per token, with
        respect to its own gates, so that they do not depend on how sequences are batched.

    Raises:
        UserError: If there is no calibration batch.
    """
    every_U = torch.ones(inputs.space.num_units, dtype=torch.bool)
    for batch_BT in inputs.measured_batches(metric, sums):
        yield gradients_at(inputs, every_U, batch_BT)


def gradients_at(inputs: MetricInputs, mask_U: Tensor, batch_BT: Tensor) -> Tensor:
    """Gate gradients of the sequences of a batch where the gates are a mask.

    Args:
        inputs: Model and units.
        mask_U: Value of the gates, (U,), bool; units that are dropped have a gradient too.
        batch_BT: Token ids, (B, T), int64, where the model is.

    Returns:
        Gradients, (B, U), float64, CPU, as `gate_gradients` yields them.
    """
    parts = batch_BT.split(max(1, TOKENS_AT_ONCE // batch_BT.shape[1]))
    return torch.cat([_gradients_together(inputs, mask_U, part_BT) for part_BT in parts])


def _gradients_together(inputs: MetricInputs, mask_U: Tensor, batch_BT: Tensor) -> Tensor:
    gates_U = mask_U.to(batch_BT.device, torch.float32)
    gates_BU = gates_U.repeat(len(batch_BT), 1).requires_grad_()
    # The caller may be within no_grad, as whatever only reads the model is.
    with torch.enable_grad(), gated(inputs.model, inputs.space, gates_BU) as model:
        _, gradients_BU = gate_gradient(model, batch_BT, gates_BU)
    return gradients_BU.double().cpu()
