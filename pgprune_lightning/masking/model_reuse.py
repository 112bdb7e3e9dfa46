"""One frozen model for many runs: loaded once, as long as they ask for the same.

A frozen model is never written to and a mask's hooks go with its `with` block, so that the next run
finds it as it was loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from pgprune_lightning.masking.frozen_model import load_frozen_model
from pgprune_lightning.masking.model_source import ModelSource


@dataclass(frozen=True)
class _Request:
    source: ModelSource
    dtype: torch.dtype
    device: torch.device
    attention: str
    shard: int


_kept: ContextVar[dict[_Request, PreTrainedModel] | None] = ContextVar("_kept", default=None)


@contextmanager
def one_model_kept() -> Iterator[None]:
    """Keep the last model that `open_frozen_model` loads, for the length of a `with` block."""
    token = _kept.set({})
    try:
        yield
    finally:
        _kept.reset(token)


def open_frozen_model(
    source: ModelSource,
    *,
    dtype: torch.dtype,
    device: torch.device,
    attention: str,
    shard: int = 1,
) -> PreTrainedModel:
    """Load a frozen model, or take the one that is kept if it is the same.

    Args:
        source: Where the model lies.
        dtype: Type of its weights.
        device: Where they go.
        attention: Attention implementation of transformers.
        shard: Ranks that share one copy of the weights.

    Raises:
        UserError: If the weights cannot be loaded, or some are missing.
    """
    kept = _kept.get()
    request = _Request(source, dtype, device, attention, shard)
    if kept is not None and request in kept:
        return kept[request]
    if kept is not None:
        kept.clear()  # first, because two models may not fit
    model = load_frozen_model(source, dtype=dtype, device=device, attention=attention, shard=shard)
    if kept is not None:
        kept[request] = model
    return model
