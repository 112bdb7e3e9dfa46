"""Leaving out a sub-layer or a layer of which a mask keeps nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pgprune_lightning.masking.sub_layer import DecoderLayer
from pgprune_lightning.policy.unit_layout import UnitKind


def skipped(layer: DecoderLayer, kind: UnitKind) -> AbstractContextManager[None]:
    """Skip what the units of a kind make up together, for the length of a `with` block.

    Args:
        layer: The layer.
        kind: `layer` for all of it, the kinds of attention or MLP for that sub-layer.
    """
    return _SKIPS[kind](layer)


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Call something else in the place of a module's `forward`, for the length of a `with` block.

    Args:
        module: The module; its hooks and parameters stay.
        forward: What is called with the module's arguments.
    """
    original = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        if original is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = original


def _skip_attention(layer: DecoderLayer) -> AbstractContextManager[None]:
    def no_attention(hidden_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
        return torch.zeros_like(hidden_states), None

    return replaced_forward(layer.attention.module, no_attention)


@contextmanager
def _skip_mlp(layer: DecoderLayer) -> Iterator[None]:
    mlp = layer.mlp
    with ExitStack() as stack:
        if mlp.module is not None:
            stack.enter_context(replaced_forward(mlp.module, torch.zeros_like))
        else:
            for projection in mlp.inputs:
                stack.enter_context(replaced_forward(projection.linear, _unchanged))
            stack.enter_context(replaced_forward(mlp.output, torch.zeros_like))
        yield


def _unchanged(hidden_states: Tensor) -> Tensor:
    return hidden_states


def _skip_layer(layer: DecoderLayer) -> AbstractContextManager[None]:
    def identity(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        return hidden_states

    return replaced_forward(layer.module, identity)


_SKIPS: dict[UnitKind, Callable[[DecoderLayer], AbstractContextManager[None]]] = {
    "kv_group": _skip_attention,
    "mlp_channel": _skip_mlp,
    "attention": _skip_attention,
    "mlp": _skip_mlp,
    "layer": _skip_layer,
}
