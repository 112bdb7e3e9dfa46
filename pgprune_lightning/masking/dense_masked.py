"""Dense-masked execution of masks: everything is computed, what a mask drops is multiplied by zero.

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

from pgprune_lightning.masking.decoder_family import decoder_layers
from pgprune_lightning.masking.skipping import skipped
from pgprune_lightning.masking.sub_layer import DecoderLayer
from pgprune_lightning.policy.unit_layout import UnitKind, UnitLayout


class DenseMaskedExecution:
    """Runs a frozen model under masks by multiplication.

    Args:
        model: The frozen model.
        space: The units of that model.
    """

    def __init__(self, model: PreTrainedModel, space: UnitLayout) -> None:
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
    parts = layer.sub_layers_of(kind)
    output = parts[0].output
    if bool((kept_BG != alive_B1).any()):
        yield multiply_input(output, _factors(kept_BG, output, output.in_features))
    if not bool(alive_B1.all()):
        # Behind the projection, because its bias leaves with the last unit.
        for part in parts:
            yield multiply_output(part.last, _factors(alive_B1, part.output, 1))


def multiply_input(linear: nn.Linear, factors_BTW: Tensor) -> RemovableHandle:
    """Multiply what a projection is given, until the handle is removed.

    Args:
        linear: The projection.
        factors_BTW: The factors, (B, 1, W), in the dtype of its input.
    """

    def multiply(_module: nn.Module, arguments: tuple[Tensor]) -> tuple[Tensor]:
        return (by_sequence(arguments[0], factors_BTW),)

    return linear.register_forward_pre_hook(multiply)


def multiply_output(module: nn.Module, factors_BTW: Tensor) -> RemovableHandle:
    """Multiply what a projection or a norm returns, until the handle is removed.

    Args:
        module: The projection or norm.
        factors_BTW: The factors, (B, 1, 1), in the dtype of its output.
    """

    def multiply(_module: nn.Module, _arguments: tuple[Tensor], output_BTW: Tensor) -> Tensor:
        return by_sequence(output_BTW, factors_BTW)

    return module.register_forward_hook(multiply)


def by_sequence(values_BTW: Tensor, factors_BTW: Tensor) -> Tensor:
    """Multiply an activation by factors for each of its sequences.

    Args:
        values_BTW: The activation, (B, T, W); or (B T, W), as OPT lays it out in its MLP.
        factors_BTW: The factors, (B, 1, W) or (B, 1, 1), or one row for all sequences.

    Returns:
        The product, in the activation's shape.
    """
    together_BTW = values_BTW.reshape(len(factors_BTW), -1, values_BTW.shape[-1])
    return (together_BTW * factors_BTW).view(values_BTW.shape)


def _factors(kept_BG: Tensor, linear: nn.Linear, width: int) -> Tensor:
    """Zeros and ones for an activation of some width, (B, 1, W), like the weights."""
    kept_BW = kept_BG.repeat_interleave(width // kept_BG.shape[1], dim=1)
    return kept_BW[:, None].to(device=linear.weight.device, dtype=linear.weight.dtype)
