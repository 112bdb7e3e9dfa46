"""Merging adapters into the weights below them, and keeping the zeros of padded models.

Shapes: B sequences, T tokens, V vocabulary, C columns of a projection.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

PROBE_SHAPE = (2, 32)
"""Sequences and tokens that a model is compared on before and after."""


@torch.no_grad()
def zero_columns(model: nn.Module, target_modules: Sequence[str]) -> dict[str, Tensor]:
    """Find what a padded model has pruned, before adapters are put on it.

    Args:
        model: The model.
        target_modules: Names of the projections that get adapters.

    Returns:
        For each of these projections with columns that are all zero: which they are, (C,), bool.
    """
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in target_modules:
            is_zero_C = (module.weight == 0).all(dim=0)
            if bool(is_zero_C.any()):
                found[name] = is_zero_C
    return found


@torch.no_grad()
def keep_pruned(adapted: Any, zeroed: Mapping[str, Tensor]) -> None:
    """Begin with adapters that do not read pruned units, so that none ever reaches them.

    Where the weight and its adapter both read nothing of a unit, no gradient goes to the unit: the
    adapters before it stay as they begin, at zero, and so do its value and the gradient of what
    would read it. Otherwise two adapters, before and after a unit, bring it to life again.

    Args:
        adapted: What `attach_adapter` returned.
        zeroed: What `zero_columns` said of the model before.
    """
    model = adapted.get_base_model()
    for name, is_zero_C in zeroed.items():
        layer: Any = model.get_submodule(name)
        for adapter in layer.active_adapters:
            layer.lora_A[adapter].weight[:, is_zero_C] = 0


@dataclass(frozen=True)
class Merged:
    """A model with its adapters merged.

    Args:
        model: The model, of the class it had before adapters were put on it.
        logits_BTV: Its logits of `probe_tokens`, float32, on the CPU.
        rounding: Largest difference to the logits of weights and adapters apart.
    """

    model: PreTrainedModel
    logits_BTV: Tensor
    rounding: float


def merge(adapted: Any) -> Merged:
    """Merge the adapters of a model into its weights.

    Args:
        adapted: What `attach_adapter` returned.
    """
    apart_BTV = probe_logits(adapted)
    model: Any = adapted.merge_and_unload()
    logits_BTV = probe_logits(model)
    return Merged(model, logits_BTV, float((logits_BTV - apart_BTV).abs().max()))


@torch.no_grad()
def probe_logits(model: Any) -> Tensor:
    """Logits of the same few tokens for every model of a vocabulary, float32, on the CPU."""
    generator = torch.Generator().manual_seed(0)
    tokens_BT = torch.randint(model.config.vocab_size, PROBE_SHAPE, generator=generator)
    logits_BTV: Tensor = model(input_ids=tokens_BT.to(model.device), use_cache=False).logits
    return logits_BTV.float().cpu()
