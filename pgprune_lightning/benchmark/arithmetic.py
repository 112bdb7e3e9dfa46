"""How much arithmetic a step takes, and how much the machine can do.

Shapes: U units.
"""

from __future__ import annotations

from time import perf_counter

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pgprune_lightning.benchmark.workload import Workload
from pgprune_lightning.evaluation.latency import wait_for
from pgprune_lightning.masking.decoder_family import decoder_layers
from pgprune_lightning.policy import UnitKind, UnitLayout

SQUARE = {"cpu": 2048, "cuda": 8192}
"""Rows of the matrices whose product shows the peak."""

TIMES = 8


def kept_flops(
    model: PreTrainedModel, space: UnitLayout, probabilities_U: Tensor, workload: Workload
) -> float:
    """Floating-point operations of a step that a mask does not make superfluous.

    Two for every kept weight of the layers' projections and every token, and the vocabulary
    projection of every token that has a successor; under each mask. Attention scores, norms and the
    policy's own arithmetic are left out.

    Args:
        model: The model, or its shape.
        space: Its units.
        probabilities_U: How probable each unit is kept, (U,).
        workload: The sizes.
    """
    parameters = kept_projection_parameters(model, space, probabilities_U)
    vocabulary = model.get_output_embeddings().weight.numel()
    predicting = workload.batch_size * (workload.block_length - 1)
    return (
        2.0 * workload.num_mask_samples * (parameters * workload.tokens + vocabulary * predicting)
    )


def kept_projection_parameters(
    model: PreTrainedModel, space: UnitLayout, probabilities_U: Tensor
) -> float:
    """Expected number of weights of the layers' projections that a mask keeps."""
    shares = space.keep_ratio_by_layer(probabilities_U)
    total = 0.0
    for layer in decoder_layers(model):
        for part, kinds in ((layer.attention, _OF_ATTENTION), (layer.mlp, _OF_MLP)):
            weights = sum(projection.linear.weight.numel() for projection in part.inputs)
            weights += part.output.weight.numel()
            kept = [shares[layer.index, kind] for kind in kinds if (layer.index, kind) in shares]
            total += weights * (kept[0] if kept else 1.0)
    return total


_OF_ATTENTION: tuple[UnitKind, ...] = ("kv_group", "attention", "layer")
_OF_MLP: tuple[UnitKind, ...] = ("mlp_channel", "mlp", "layer")


@torch.no_grad()
def matmul_peak(dtype: torch.dtype, device: torch.device) -> float:
    """Floating-point operations a second of the best of several large matrix products."""
    size = SQUARE.get(device.type, 2048)
    left, right = (torch.rand(size, size, device=device).to(dtype) for _ in range(2))
    out = left @ right
    best = float("inf")
    for _ in range(TIMES):
        wait_for(device)
        start = perf_counter()
        torch.matmul(left, right, out=out)
        wait_for(device)
        best = min(best, perf_counter() - start)
    return 2.0 * size**3 / best
