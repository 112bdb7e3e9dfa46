"""What reads and writes the residual stream, and what each width of the stream costs."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedModel

from pgprune_lightning.errors import UserError
from pgprune_lightning.masking.decoder_family import decoder_layers, family_of
from pgprune_lightning.masking.sub_layer import DecoderLayer, SubLayer

SLICED_FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3")
"""Those whose stream can be rotated: RMSNorm in front of every block and of the vocabulary
projection, and nothing else that the stream passes through."""


@dataclass(frozen=True)
class ResidualBlock:
    """An attention or an MLP: what reads the residual stream, and what writes to it."""

    module: nn.Module
    norm: nn.Module
    inputs: tuple[nn.Linear, ...]
    output: nn.Linear


def residual_blocks(layer: DecoderLayer) -> tuple[ResidualBlock, ResidualBlock]:
    """The two blocks of a layer, in order."""
    return _block(layer.attention), _block(layer.mlp)


def _block(part: SubLayer) -> ResidualBlock:
    (norm,), module = part.norms, part.module
    assert module is not None, "no family that is sliced has its projections in the layer itself"
    return ResidualBlock(module, norm, tuple(p.linear for p in part.inputs), part.output)


def largest_width(model: PreTrainedModel, max_parameters: int) -> int:
    """How wide a residual stream a number of parameters allows.

    Args:
        model: The dense model; meta tensors will do.
        max_parameters: At most so many parameters, counted as `SlicedModel` says.

    Returns:
        The width, from 1 to the hidden size.

    Raises:
        UserError: If the model's family cannot be sliced, or not even a width of 1 fits.
    """
    family = family_of(model.config).name
    if family not in SLICED_FAMILIES:
        raise UserError(
            f"slicegpt: a model of the family {family} cannot be sliced; give one of "
            f"{', '.join(SLICED_FAMILIES)}, or leave the method slicegpt out."
        )
    hidden_size = weight_of(model.get_input_embeddings()).shape[1]
    widths = range(1, hidden_size + 1)
    fitting = bisect_right(
        widths, max_parameters, key=lambda width: sliced_parameters(model, width)
    )
    if fitting == 0:
        raise UserError(
            f"slicegpt: {max_parameters} parameters are too few: a residual stream of width 1 "
            f"takes {sliced_parameters(model, 1)}. Give a larger keep ratio."
        )
    return widths[fitting - 1]


def sliced_parameters(model: PreTrainedModel, width: int) -> int:
    """Parameters of a model whose residual stream is sliced to a width, as `SlicedModel` counts."""
    vocabulary = weight_of(model.get_input_embeddings()).shape[0]
    total = vocabulary * width + _parameters_reading(model.get_output_embeddings(), width)
    for layer in decoder_layers(model):
        for block in residual_blocks(layer):
            total += sum(_parameters_reading(linear, width) for linear in block.inputs)
            output_row = block.output.in_features + (block.output.bias is not None)
            total += output_row * width + width * width
            inside = {*block.module.parameters()}
            for linear in (*block.inputs, block.output):
                inside -= {*linear.parameters()}
            total += sum(parameter.numel() for parameter in inside)
    return total


def _parameters_reading(linear: nn.Linear, width: int) -> int:
    return linear.out_features * (width + (linear.bias is not None))


def weight_of(module: nn.Module) -> Tensor:
    """The weight of a projection, an embedding or a norm."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight
