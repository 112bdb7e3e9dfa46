"""Format `padded`: every tensor keeps its shape, and what a mask drops is zero.

Shapes: U units, W rows or columns of a projection.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from pgprune_lightning.export.export_format import ExportFormat, ExportOptions, Logits, PrunedModel
from pgprune_lightning.export.hf import reloaded_logits
from pgprune_lightning.export.widths import LayerWidths
from pgprune_lightning.masking.decoder_family import DecoderLayer, decoder_layers
from pgprune_lightning.policy import MaskSpace


class Padded(ExportFormat):
    """The stock class and the dense shapes: exact everywhere, and no smaller."""

    name = "padded"
    purpose = "dense shapes with zeros: stock class, exact, no smaller"

    def check(
        self, config: PreTrainedConfig, widths: tuple[LayerWidths, ...], options: ExportOptions
    ) -> None:
        """Zeros can stand for every mask."""

    def write(self, pruned: PrunedModel, folder: Path, options: ExportOptions) -> None:
        """Write the dense model with zeros in it."""
        padded = padded_model(pruned.dense, pruned.plan.space, pruned.mask_U)
        padded.save_pretrained(folder)
        pruned.planned.tokenizer.save_pretrained(folder)

    def reload(self, folder: Path, pruned: PrunedModel, device: torch.device) -> Logits:
        """What `from_pretrained` makes of the folder."""
        return reloaded_logits(folder, pruned, device)

    def parameters(self, pruned: PrunedModel) -> int:
        """Zeros are parameters."""
        return int(pruned.dense.num_parameters())


@torch.no_grad()
def padded_model(model: PreTrainedModel, space: MaskSpace, mask_U: Tensor) -> PreTrainedModel:
    """Copy a model with zeros for what a mask drops.

    Args:
        model: The dense model; it is not changed.
        space: Its units.
        mask_U: Which units stay, (U,), bool.

    Returns:
        A model of the same class and shapes, whose logits are those of the masked model.
    """
    padded = copy.deepcopy(model)
    mask_on_host_U = mask_U.cpu()
    layers = decoder_layers(padded)
    for group in space.groups:
        layer = layers[group.layer]
        kept = mask_on_host_U[group.start : group.end]
        if group.kind in ("kv_group", "attention", "layer"):
            _zero_attention(layer, kept)
        if group.kind in ("mlp_channel", "mlp", "layer"):
            _zero_mlp(layer, kept)
    return padded


def _zero_attention(layer: DecoderLayer, kept: Tensor) -> None:
    attention = layer.attention
    for linear in (attention.query, attention.key, attention.value):
        _zero_rows(linear, kept)
    _zero_columns(attention.output, kept)


def _zero_mlp(layer: DecoderLayer, kept: Tensor) -> None:
    mlp = layer.mlp
    for linear in (mlp.gate, mlp.up):
        _zero_rows(linear, kept)
    _zero_columns(mlp.down, kept)


def _zero_rows(linear: nn.Linear, kept: Tensor) -> None:
    dropped_W = ~kept.repeat_interleave(linear.out_features // len(kept)).to(linear.weight.device)
    linear.weight[dropped_W] = 0
    if linear.bias is not None:
        linear.bias[dropped_W] = 0


def _zero_columns(linear: nn.Linear, kept: Tensor) -> None:
    dropped_W = ~kept.repeat_interleave(linear.in_features // len(kept)).to(linear.weight.device)
    linear.weight[:, dropped_W] = 0
    if not bool(kept.any()) and linear.bias is not None:
        linear.bias.zero_()  # an empty sub-layer adds nothing, its bias neither
