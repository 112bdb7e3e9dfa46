"""A model of a given shape with random weights, made where and as it is used."""

from __future__ import annotations

import math

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from pgprune_lightning.masking.decoder_family import backbone_of
from pgprune_lightning.masking.frozen_model import freeze, model_on_meta

STANDARD_DEVIATION = 0.02
"""Of weights, as models of this kind start their training: the loss is near log(vocabulary)."""


@torch.no_grad()
def random_model(
    config: PreTrainedConfig, *, dtype: torch.dtype, device: torch.device, seed: int = 0
) -> PreTrainedModel:
    """Build a frozen model with random weights.

    The weights come into being in their dtype and on their device: 7 billion of them in float32
    would take 27 GB before the first step.

    Args:
        config: Its shape.
        dtype: Type of its weights.
        device: Where they are.
        seed: Of the weights.
    """
    model = model_on_meta(config)
    nn.Module.to(model, dtype)
    nn.Module.to_empty(model, device=device)
    model.tie_weights()
    _recompute_rotations(model, device)
    generator = torch.Generator(device).manual_seed(seed)
    bound = STANDARD_DEVIATION * math.sqrt(3)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
        elif parameter.ndim == 1:
            parameter.fill_(1.0)
        else:
            parameter.uniform_(-bound, bound, generator=generator)
    return freeze(model)


def _recompute_rotations(model: PreTrainedModel, device: torch.device) -> None:
    """The frequencies of the positions are no weights, and nothing else would fill them."""
    backbone = backbone_of(model)
    rotary = backbone.get_submodule("rotary_emb")
    with torch.device(device):
        backbone.rotary_emb = type(rotary)(config=model.config)
