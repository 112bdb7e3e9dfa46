"""Dense execution of a mask: everything is computed, what the mask drops is multiplied by zero.

The masked activations are the inputs of the attention's output projection and of the MLP's down
projection: zero there removes a unit's whole contribution (paper, A.2). Sub-layers and layers
without a kept unit are skipped.

Shapes: U units, W inputs of a projection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pgprune_lightning.masking.decoder_family import DecoderLayer, decoder_layers
from pgprune_lightning.policy.mask_space import MaskSpace


class DenseExecution:
    """Runs a frozen model under a mask by multiplication.

    Args:
        model: The frozen model.
        space: The units of that model.
    """

    def __init__(self, model: PreTrainedModel, space: MaskSpace) -> None:
        self.model = model
        self.space = space
        self.layers = decoder_layers(model)

    @contextmanager
    def masked(self, mask_U: Tensor) -> Iterator[PreTrainedModel]:
        """Put a mask on the model for the length of a `with` block.

        Args:
            mask_U: Which units stay, (U,), bool.

        Yields:
            The model; outside the block it is untouched again.
        """
        # One transfer instead of a synchronisation for every group.
        mask_on_host_U = mask_U.cpu()
        with ExitStack() as stack:
            for group in self.space.groups:
                kept = self.space.view(mask_on_host_U, group.layer, group.kind)
                layer = self.layers[group.layer]
                if not bool(kept.any()):
                    stack.enter_context(_SKIPS[group.kind](layer))
                elif not bool(kept.all()):
                    linear = _MASKED_PROJECTIONS[group.kind](layer)
                    kept_W = kept.repeat_interleave(linear.in_features // group.count)
                    stack.enter_context(_multiplied_input(linear, kept_W))
            yield self.model


def _attention_output(layer: DecoderLayer) -> nn.Linear:
    return layer.attention.output


def _mlp_down(layer: DecoderLayer) -> nn.Linear:
    return layer.mlp.down


@contextmanager
def _multiplied_input(linear: nn.Linear, kept_W: Tensor) -> Iterator[None]:
    factor_W = kept_W.to(device=linear.weight.device, dtype=linear.weight.dtype)

    def multiply(_module: nn.Module, arguments: tuple[Tensor]) -> tuple[Tensor]:
        return (arguments[0] * factor_W,)

    handle = linear.register_forward_pre_hook(multiply)
    try:
        yield
    finally:
        handle.remove()


def _skip_attention(layer: DecoderLayer) -> Any:
    def no_attention(hidden_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
        return torch.zeros_like(hidden_states), None

    return _replaced_forward(layer.attention.module, no_attention)


def _skip_mlp(layer: DecoderLayer) -> Any:
    return _replaced_forward(layer.mlp.module, torch.zeros_like)


def _skip_layer(layer: DecoderLayer) -> Any:
    def identity(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        return hidden_states

    return _replaced_forward(layer.module, identity)


@contextmanager
def _replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    original = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        if original is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = original


_MASKED_PROJECTIONS = {"kv_group": _attention_output, "mlp_channel": _mlp_down}
_SKIPS = {
    "kv_group": _skip_attention,
    "mlp_channel": _skip_mlp,
    "attention": _skip_attention,
    "mlp": _skip_mlp,
    "layer": _skip_layer,
}
