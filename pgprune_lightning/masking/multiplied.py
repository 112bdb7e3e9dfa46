"""Multiplied execution of masks: everything is computed, what a mask drops is multiplied by zero.

The masked activations are the inputs of the attention's output projection and of the MLP's down
projection: zero there removes a unit's whole contribution (paper, A.2). Sub-layers and layers
without a kept unit are skipped.

Shapes: U units, G units of a group, B sequences, T tokens, W width of an activation.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from pgprune_lightning.masking.decoder_family import DecoderLayer, decoder_layers
from pgprune_lightning.masking.skipping import skipped
from pgprune_lightning.policy.mask_space import MaskSpace, UnitKind


class MultipliedExecution:
    """Runs a frozen model under masks by multiplication.

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
        with self.masked_each(mask_U[None]) as model:
            yield model

    @contextmanager
    def masked_each(self, masks_BU: Tensor) -> Iterator[PreTrainedModel]:
        """Put a mask of its own on each sequence of a batch for the length of a `with` block.

        Args:
            masks_BU: Which units stay for each sequence, (B, U), bool; one row is for all of them.

        Yields:
            The model, for batches of B sequences; outside the block it is untouched again.
        """
        # One transfer instead of a synchronisation for every group.
        masks_on_host_BU = masks_BU.cpu()
        with ExitStack() as stack:
            for group in self.space.groups:
                kept_BG = self.space.view(masks_on_host_BU, group.layer, group.kind)
                layer = self.layers[group.layer]
                if not bool(kept_BG.any()):
                    stack.enter_context(skipped(layer, group.kind))
                elif not bool(kept_BG.all()):
                    for handle in put_factors(layer, group.kind, kept_BG):
                        stack.callback(handle.remove)
            yield self.model


def put_factors(layer: DecoderLayer, kind: UnitKind, kept_BG: Tensor) -> Iterator[RemovableHandle]:
    """Multiply what a group's units contribute by their mask.

    Args:
        layer: The group's layer.
        kind: What its units are.
        kept_BG: Which of them stay for each sequence, (B, G), bool, on the host.

    Yields:
        What takes the multiplication away again.
    """
    alive_B1 = kept_BG.any(dim=1, keepdim=True)
    if bool((kept_BG != alive_B1).any()):
        yield _multiply_input(_OUTPUTS[kind](layer)[0], kept_BG)
    if not bool(alive_B1.all()):
        # Behind the projection, because its bias leaves with the last unit.
        for linear in _OUTPUTS[kind](layer):
            yield _multiply_output(linear, alive_B1)


def _multiply_input(linear: nn.Linear, kept_BG: Tensor) -> RemovableHandle:
    factors_BTW = _factors(kept_BG, linear, linear.in_features)

    def multiply(_module: nn.Module, arguments: tuple[Tensor]) -> tuple[Tensor]:
        return (arguments[0] * factors_BTW,)

    return linear.register_forward_pre_hook(multiply)


def _multiply_output(linear: nn.Linear, alive_B1: Tensor) -> RemovableHandle:
    factors_BTW = _factors(alive_B1, linear, 1)

    def multiply(_module: nn.Module, _arguments: tuple[Tensor], output_BTW: Tensor) -> Tensor:
        return output_BTW * factors_BTW

    return linear.register_forward_hook(multiply)


def _factors(kept_BG: Tensor, linear: nn.Linear, width: int) -> Tensor:
    """Zeros and ones for an activation of some width, (B, 1, W), like the weights."""
    kept_BW = kept_BG.repeat_interleave(width // kept_BG.shape[1], dim=1)
    return kept_BW[:, None].to(device=linear.weight.device, dtype=linear.weight.dtype)


def _attention_output(layer: DecoderLayer) -> list[nn.Linear]:
    return [layer.attention.output]


def _mlp_down(layer: DecoderLayer) -> list[nn.Linear]:
    return [layer.mlp.down]


def _both(layer: DecoderLayer) -> list[nn.Linear]:
    return [layer.attention.output, layer.mlp.down]


_OUTPUTS = {
    "kv_group": _attention_output,
    "mlp_channel": _mlp_down,
    "attention": _attention_output,
    "mlp": _mlp_down,
    "layer": _both,
}
"""The projections by which the units of a kind add to the residual stream."""
