"""SliceGPT: rotates the residual stream to its principal components and deletes the least of them.

An orthogonal change of basis of the residual stream passes through RMSNorm, once the norm's
weights are folded into the projections behind it, and is undone by them. Each block gets the basis
of the principal components of what it reads; the residual connection around a block carries the
stream from one basis to the next.

Shapes: B sequences, T tokens, N tokens of a batch, H hidden size, W width that is left of it, X
width behind the next shortcut.

Source: Ashkboos et al. 2024, arXiv 2401.15024.
"""

from __future__ import annotations

import copy
from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pgprune_lightning.errors import UserError
from pgprune_lightning.masking.decoder_family import backbone_of, decoder_layers, family_of
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


@dataclass(frozen=True)
class LayerCall:
    """What a decoder layer is called with: hidden states, and arguments for its attention."""

    states_BTH: Tensor
    arguments: dict[str, Any]


class _Recorder(nn.Module):
    """Stands in the place of a decoder layer, and hands on what it is given."""

    def __init__(self, calls: list[LayerCall]) -> None:
        super().__init__()
        self.calls = calls

    def forward(self, hidden_states: Tensor, **arguments: Any) -> Tensor:
        self.calls.append(LayerCall(hidden_states, arguments))
        return hidden_states


def record_layer_calls(model: PreTrainedModel, batches: Iterable[Tensor]) -> list[list[LayerCall]]:
    """List, for each batch, what each layer is called with; the layers are lost to the model.

    Which attention masks and positions belong to a layer, the model itself knows best.
    """
    backbone = backbone_of(model)
    num_layers = len(backbone.get_submodule("layers"))  # type: ignore[arg-type]
    by_batch: list[list[LayerCall]] = []
    for batch_BT in batches:
        by_batch.append([])
        backbone.layers = nn.ModuleList(_Recorder(by_batch[-1]) for _ in range(num_layers))
        backbone(batch_BT.to(model.device), use_cache=False)
    if not by_batch:
        raise UserError("slicegpt: the calibration data has no sequence to measure on.")
    return by_batch


class StreamNorm(nn.Module):
    """RMSNorm without weights, of a stream from which directions were deleted.

    The mean square is taken over the width before the deletion: what is left keeps its scale, and
    the deleted directions count as zero.

    Args:
        dense_width: Hidden size of the model before it was sliced.
        eps: Added to the mean square.
    """

    def __init__(self, dense_width: int, eps: float) -> None:
        super().__init__()
        self.dense_width = dense_width
        self.eps = eps

    def forward(self, stream_BTW: Tensor) -> Tensor:
        """Normalise every token, in float32 at least."""
        values_BTW = stream_BTW.to(torch.promote_types(stream_BTW.dtype, torch.float32))
        mean_square = values_BTW.square().sum(-1, keepdim=True) / self.dense_width
        return (values_BTW * torch.rsqrt(mean_square + self.eps)).to(stream_BTW.dtype)


class Shortcut(nn.Module):
    """Carries the residual stream from the basis of one block into that of the next.

    Args:
        matrix_WX: Product of the old basis, transposed, and the new one, (W, X).
    """

    def __init__(self, matrix_WX: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(matrix_WX, requires_grad=False)

    def forward(self, stream_BTW: Tensor) -> Tensor:
        """Change the basis, (B, T, X)."""
        return stream_BTW @ self.weight


class ShortcutLayer(nn.Module):
    """A decoder layer with a change of basis on both of its residual connections.

    Its sub-modules keep the names that they have in every family that is sliced, so that whatever
    describes decoder layers describes this one too.

    Args:
        layer: The layer whose blocks have been rotated and sliced.
        attention_norm: In front of the attention.
        attention_shortcut: On the connection around the attention.
        mlp_norm: In front of the MLP.
        mlp_shortcut: On the connection around the MLP.
    """

    def __init__(
        self,
        layer: DecoderLayer,
        attention_norm: StreamNorm,
        attention_shortcut: Shortcut,
        mlp_norm: StreamNorm,
        mlp_shortcut: Shortcut,
    ) -> None:
        super().__init__()
        assert layer.mlp.module is not None
        self.input_layernorm = attention_norm
        self.self_attn = layer.attention.module
        self.attention_shortcut = attention_shortcut
        self.post_attention_layernorm = mlp_norm
        self.mlp = layer.mlp.module
        self.mlp_shortcut = mlp_shortcut

    def forward(self, hidden_states: Tensor, **arguments: Any) -> Tensor:
        """Run both blocks; `arguments` are what the model gives its layers for the attention."""
        attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **arguments)
        middle = self.attention_shortcut(hidden_states) + attended
        changed: Tensor = self.mlp(self.post_attention_layernorm(middle))
        return self.mlp_shortcut(middle) + changed


@dataclass(frozen=True)
class SlicedModel:
    """A model with a narrower residual stream.

    Args:
        model: It runs where the dense one does, by `token_nll` or `generate`. It lives in memory
            only: no configuration describes it.
        width: What is left of the hidden size.
        num_parameters: All its tensors: the sliced weights, embeddings and vocabulary projection
            each by itself although they may have been tied, and the two shortcut matrices a layer
            that the dense model does not have. Norms in front of blocks have no weights any more.
    """

    model: PreTrainedModel
    width: int
    num_parameters: int


@torch.no_grad()
def slice_model(
    model: PreTrainedModel, batches: Iterable[Tensor], max_parameters: int
) -> SlicedModel:
    """Copy a model with as wide a residual stream as a number of parameters allows.

    Bases are found block after block, each on what the blocks before it, already sliced, make of
    the calibration text. The hidden states of all of it are held at once.

    Args:
        model: The dense model; it is not changed.
        batches: Calibration token ids, (B, T), int64, without padding.
        max_parameters: At most so many parameters, counted as `SlicedModel` says. To compare
            at equal size, what a mask keeps: `space.kept_parameters(mask_U)`. By the shortcuts
            and the untied embeddings a width can cost more than the dense model; it is then
            sliced further.

    Returns:
        The sliced model, of the dense one's dtype and device.

    Raises:
        UserError: If the model's family cannot be sliced, not even a width of 1 fits, or there is
            no calibration batch.

    Source: Ashkboos et al. 2024 (SliceGPT), arXiv 2401.15024.
    Differs: The width follows from the parameters instead of a share of the hidden size, and is
        not rounded to a multiple of 8. The principal components are those of normalised hidden
        states, as in the paper's Sect. 3.3; the published code takes them before the norm, adds
        1 % to the covariance's diagonal, and by default leaves the last block's output and the
        vocabulary projection at full width. Norms are folded and bases applied in float64, in one
        step.
    """
    width = largest_width(model, max_parameters)
    sliced = copy.deepcopy(model)
    _untie_embeddings(sliced)
    backbone, layers = backbone_of(sliced), decoder_layers(sliced)
    embedding, head = sliced.get_input_embeddings(), sliced.get_output_embeddings()
    assert isinstance(embedding, nn.Embedding)
    final_norm = backbone.get_submodule("norm")
    calls = record_layer_calls(sliced, batches)

    embedded = [batch_calls[0].states_BTH for batch_calls in calls]
    basis_HW = _principal_basis(embedded, layers[0].attention.norms[0], width)
    stream = _Stream([states_BTH @ basis_HW.to(states_BTH) for states_BTH in embedded], basis_HW)
    _set_weight(embedding, embedding.weight.double() @ basis_HW)
    embedding.embedding_dim = width
    norms_behind = [*(layer.attention.norms[0] for layer in layers[1:]), final_norm]
    backbone.layers = nn.ModuleList(
        _slice_layer(
            layer, norm_behind, stream, [of_batch[layer.index].arguments for of_batch in calls]
        )
        for layer, norm_behind in zip(layers, norms_behind, strict=True)
    )
    _read_from(head, final_norm, stream.basis_HW)
    backbone.norm = _stream_norm(final_norm)
    return SlicedModel(sliced, width, sum(tensor.numel() for tensor in sliced.parameters()))


@dataclass
class _Stream:
    """The calibration text's residual stream in front of a block, (B, T, W), and its basis."""

    states: list[Tensor]
    basis_HW: Tensor


def _slice_layer(
    layer: DecoderLayer, norm_behind: nn.Module, stream: _Stream, arguments: list[dict[str, Any]]
) -> ShortcutLayer:
    attention, mlp = residual_blocks(layer)

    def attend(normed_BTW: Tensor, batch: int) -> Tensor:
        attended: Tensor = attention.module(hidden_states=normed_BTW, **arguments[batch])[0]
        return attended

    def feed(normed_BTW: Tensor, _batch: int) -> Tensor:
        changed: Tensor = mlp.module(normed_BTW)
        return changed

    attention_shortcut = _slice_block(attention, mlp.norm, stream, attend)
    mlp_shortcut = _slice_block(mlp, norm_behind, stream, feed)
    attention_norm, mlp_norm = _stream_norm(attention.norm), _stream_norm(mlp.norm)
    return ShortcutLayer(layer, attention_norm, attention_shortcut, mlp_norm, mlp_shortcut)


def _slice_block(
    block: ResidualBlock,
    norm_behind: nn.Module,
    stream: _Stream,
    run: Callable[[Tensor, int], Tensor],
) -> Shortcut:
    """Let a block read the stream's basis, and write the one that suits what comes out."""
    norm, old_HW = _stream_norm(block.norm), stream.basis_HW
    for linear in block.inputs:
        _read_from(linear, block.norm, old_HW)
    outputs = [
        states_BTW @ old_HW.T.to(states_BTW) + run(norm(states_BTW), batch)
        for batch, states_BTW in enumerate(stream.states)
    ]
    new_HW = _principal_basis(outputs, norm_behind, old_HW.shape[1])
    _write_to(block.output, new_HW)
    stream.states = [output_BTH @ new_HW.to(output_BTH) for output_BTH in outputs]
    stream.basis_HW = new_HW
    return Shortcut((old_HW.T @ new_HW).to(block.output.weight.dtype))


def _principal_basis(states: list[Tensor], norm: nn.Module, width: int) -> Tensor:
    """The directions of most power in normalised hidden states, (H, W), float64, orthonormal."""
    normalize = _stream_norm(norm)
    power_HH: Tensor | float = 0.0
    for states_BTH in states:
        normed_NH = normalize(states_BTH.flatten(0, 1).double())
        power_HH = power_HH + normed_NH.T @ normed_NH
    assert isinstance(power_HH, Tensor)
    ascending_HH = torch.linalg.eigh(power_HH).eigenvectors
    return ascending_HH.flip(1)[:, :width].contiguous()


def _read_from(linear: nn.Linear, norm: nn.Module, basis_HW: Tensor) -> None:
    """Fold the weights of the norm in front into a projection, and turn it to a basis."""
    folded = linear.weight.double() * weight_of(norm).double()
    _set_weight(linear, folded @ basis_HW)
    linear.in_features = basis_HW.shape[1]


def _write_to(linear: nn.Linear, basis_HW: Tensor) -> None:
    """Let a projection and its bias write in a basis."""
    _set_weight(linear, basis_HW.T @ linear.weight.double())
    if linear.bias is not None:
        bias = (linear.bias.double() @ basis_HW).to(linear.bias.dtype)
        linear.bias = nn.Parameter(bias, requires_grad=False)
    linear.out_features = basis_HW.shape[1]


def _set_weight(module: nn.Module, weight: Tensor) -> None:
    module.weight = nn.Parameter(weight.to(weight_of(module).dtype), requires_grad=False)


def _stream_norm(norm: nn.Module) -> StreamNorm:
    eps: Any = norm.variance_epsilon
    return StreamNorm(len(weight_of(norm)), eps)


def _untie_embeddings(model: PreTrainedModel) -> None:
    """The vocabulary projection is turned to another basis than the embeddings."""
    head = model.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.clone(), requires_grad=False)
    model.config.tie_word_embeddings = False
