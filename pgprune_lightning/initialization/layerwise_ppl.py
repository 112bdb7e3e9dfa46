"""Layerwise-PPL: how badly the model reads the calibration text without a layer.

Shapes: U units (layers or sub-layers), B sequences, T tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pgprune_lightning.initialization.metric import MetricInputs
from pgprune_lightning.masking.dense_masked import DenseMaskedExecution
from pgprune_lightning.masking.token_loss import token_nll


@torch.no_grad()
def layerwise_ppl_metric(inputs: MetricInputs) -> Tensor:
    """Importance of a layer or sub-layer by the calibration loss with it alone dropped.

    It costs as many forward passes over the calibration text as there are units.

    Args:
        inputs: Model, unit layout of whole layers or sub-layers, and calibration batches.

    Returns:
        Importance, (U,), float64, CPU: mean loss in nats per token, the logarithm of the
        perplexity.

    Raises:
        UserError: If there is no calibration batch.

    Source: Kim et al. 2024 (Shortened LLaMA), perplexity criterion, of layers.
    Differs: The logarithm of their perplexity, which ranks the same. Perplexities without the
        first layers are larger by orders of magnitude; normalised, all others would look alike.
    """
    assert all(group.count == 1 for group in inputs.space.groups), inputs.space.kinds
    execution = DenseMaskedExecution(inputs.model, inputs.space)
    kept_UU = ~torch.eye(inputs.space.num_units, dtype=torch.bool)
    nll_U = torch.zeros(inputs.space.num_units, dtype=torch.float64)
    batches, num_units = inputs.batches(), inputs.space.num_units
    passes = inputs.measurement.parts(
        "Measuring layerwise_ppl", len(batches) * num_units, {"nll_U": nll_U}, unit="pass"
    )
    for number in passes:
        batch, unit = divmod(number, num_units)
        with execution.masked(kept_UU[unit]) as model:
            nll_U[unit] += token_nll(model, batches[batch]).sum(dtype=torch.float64).cpu()
    return nll_U / sum(batch_BT[:, 1:].numel() for batch_BT in batches)
