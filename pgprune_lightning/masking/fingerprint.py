"""A model's identity: a hash that ties a pruning plan to the weights it was learned on."""

from __future__ import annotations

import hashlib

import torch
from transformers import PreTrainedModel

from pgprune_lightning.masking.sharding import whole_weight

SAMPLES_PER_TENSOR = 1024


@torch.no_grad()
def model_fingerprint(model: PreTrainedModel) -> str:
    """Hash a model's parameter names, shapes and evenly spaced values of each.

    The values are compared as bfloat16, so that one model loaded in float32 and in bfloat16 is the
    same model. Reading at most 1,024 values a tensor keeps this below a second for any size;
    another training, even a short one, moves nearly all weights and shows in them.

    Args:
        model: The dense model; its device does not matter.

    Returns:
        64 hexadecimal digits of SHA-256.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        # Odd, because rows are often 2^n long: an even stride would read a few columns only.
        stride = -(-parameter.numel() // SAMPLES_PER_TENSOR) | 1
        positions = torch.arange(0, parameter.numel(), stride, device=parameter.device)
        # By index: flattening would copy a weight that is stored column by column.
        sampled = whole_weight(parameter)[torch.unravel_index(positions, parameter.shape)]
        values = sampled.to(torch.bfloat16).cpu().view(torch.int16)
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()
