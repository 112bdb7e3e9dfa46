"""How wide each layer is after a mask, known before any weight is loaded.

Shapes: U units.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedConfig

from pgprune_lightning.masking.decoder_family import decoder_layers
from pgprune_lightning.masking.frozen_model import model_on_meta
from pgprune_lightning.masking.sub_layer import DecoderLayer
from pgprune_lightning.policy import UnitLayout


@dataclass(frozen=True)
class LayerWidths:
    """What is left of one decoder layer; a sub-layer of width 0 is gone with its norm.

    Args:
        layer: Its index in the dense model.
        kv_groups: Key-value heads.
        query_heads: Query heads, of all key-value heads together.
        mlp_channels: Width of the MLP.
    """

    layer: int
    kv_groups: int
    query_heads: int
    mlp_channels: int

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Query heads, key-value heads and MLP channels."""
        return self.query_heads, self.kv_groups, self.mlp_channels


def layer_widths(
    config: PreTrainedConfig, space: UnitLayout, mask_U: Tensor
) -> tuple[LayerWidths, ...]:
    """List the widths of the layers that a mask leaves; layers dropped as a whole are missing.

    Args:
        config: The dense model's.
        space: Its units.
        mask_U: Which of them stay, (U,), bool.
    """
    shares: dict[int, dict[str, float]] = {}
    for group in space.groups:
        kept = float(mask_U[group.start : group.end].sum())
        shares.setdefault(group.layer, {})[group.kind] = kept / group.count
    layers = decoder_layers(model_on_meta(config))
    return tuple(
        _widths(layer, shares[layer.index])
        for layer in layers
        if shares[layer.index].get("layer", 1.0) > 0
    )


def _widths(layer: DecoderLayer, shares: dict[str, float]) -> LayerWidths:
    """The widths of a layer of which shares of the units of each kind stay."""
    attention = layer.attention
    attention_share = shares.get("kv_group", 1.0) * shares.get("attention", 1.0)
    mlp_share = shares.get("mlp_channel", 1.0) * shares.get("mlp", 1.0)
    kv_groups = round(attention.num_kv_groups * attention_share)
    heads_a_group = attention.group_width // attention.head_dim
    return LayerWidths(
        layer=layer.index,
        kv_groups=kv_groups,
        query_heads=kv_groups * heads_a_group,
        mlp_channels=round(layer.mlp.num_channels * mlp_share),
    )


def are_equal(widths: tuple[LayerWidths, ...]) -> bool:
    """Whether all layers are equally wide, as stock classes want them."""
    return len({layer.sizes for layer in widths}) <= 1
