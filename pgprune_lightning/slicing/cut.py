"""Physically removing what a mask drops.

Shapes: U units, K kept units, W kept rows or columns of a projection.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pgprune_lightning.masking.decoder_family import backbone_of, decoder_layers
from pgprune_lightning.masking.sub_layer import DecoderLayer, SubLayer, rows_of_units
from pgprune_lightning.modeling_pruned import NoAttention, NoMlp
from pgprune_lightning.policy import UnitLayout


@torch.no_grad()
def cut_model(model: PreTrainedModel, space: UnitLayout, mask_U: Tensor) -> PreTrainedModel:
    """Copy a model without the units that a mask drops.

    Args:
        model: The dense model; it is not changed.
        space: Its units.
        mask_U: Which units stay, (U,), bool.

    Returns:
        A model in memory with layers of different widths. Its logits are those of the masked
        model up to rounding, and it has `space.kept_parameters(mask_U)` parameters.
    """
    cut = copy.deepcopy(model)
    layers = decoder_layers(cut)
    mask_on_host_U = mask_U.cpu()
    kept_layers = []
    for layer in layers:
        groups = {g.kind: g for g in space.groups if g.layer == layer.index}
        kept = {kind: space.view(mask_on_host_U, g.layer, kind) for kind, g in groups.items()}
        if "kv_group" in kept:
            _cut_attention(layer, kept["kv_group"])
        if "mlp_channel" in kept:
            _cut_mlp(layer, kept["mlp_channel"])
        if "attention" in kept and not bool(kept["attention"].any()):
            _remove_attention(layer)
        if "mlp" in kept and not bool(kept["mlp"].any()):
            _remove_mlp(layer)
        if "layer" not in kept or bool(kept["layer"].all()):
            kept_layers.append(layer)
    _keep_layers(cut, kept_layers)
    return cut


def _remove_attention(layer: DecoderLayer) -> None:
    _replace(layer.module, layer.attention.module, NoAttention(layer.index))
    _remove_norms(layer, layer.attention)


def _remove_mlp(layer: DecoderLayer) -> None:
    if layer.mlp.module is not None:
        _replace(layer.module, layer.mlp.module, NoMlp())
    else:
        for projection in layer.mlp.inputs:
            _replace(layer.module, projection.linear, nn.Identity())
        _replace(layer.module, layer.mlp.output, NoMlp())
    _remove_norms(layer, layer.mlp)


def _remove_norms(layer: DecoderLayer, part: SubLayer) -> None:
    for norm in part.norms:
        _replace(layer.module, norm, nn.Identity())


def _cut_attention(layer: DecoderLayer, kept_groups: Tensor) -> None:
    if bool(kept_groups.any()):
        _cut_units(layer.attention, kept_groups)
        layer.attention.set_num_kv_groups(int(kept_groups.sum()))
    else:
        _remove_attention(layer)


def _cut_mlp(layer: DecoderLayer, kept_units: Tensor) -> None:
    if bool(kept_units.any()):
        _cut_units(layer.mlp, kept_units)
    else:
        _remove_mlp(layer)


def _cut_units(part: SubLayer, kept_units: Tensor) -> None:
    units_K, num_units = kept_units.nonzero().flatten(), len(kept_units)
    for projection in part.inputs:
        _keep_rows(projection.linear, projection.rows_of(units_K, num_units))
    _keep_columns(part.output, rows_of_units(units_K, part.output.in_features // num_units))


def _keep_rows(linear: nn.Linear, kept_W: Tensor) -> None:
    kept_W = kept_W.to(linear.weight.device)
    linear.weight = nn.Parameter(linear.weight[kept_W], requires_grad=False)
    if linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias[kept_W], requires_grad=False)
    linear.out_features = linear.weight.shape[0]


def _keep_columns(linear: nn.Linear, kept_W: Tensor) -> None:
    kept_W = kept_W.to(linear.weight.device)
    linear.weight = nn.Parameter(linear.weight[:, kept_W].contiguous(), requires_grad=False)
    linear.in_features = linear.weight.shape[1]


def _replace(parent: nn.Module, child: nn.Module, replacement: nn.Module) -> None:
    for name, module in parent.named_children():
        if module is child:
            setattr(parent, name, replacement)
            return
    raise AssertionError("the sub-layer does not lie in its layer")


def _keep_layers(model: PreTrainedModel, kept: list[DecoderLayer]) -> None:
    config = model.config
    if len(kept) == config.num_hidden_layers:
        return
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = [config.layer_types[layer.index] for layer in kept]
    config.num_hidden_layers = len(kept)
    for position, layer in enumerate(kept):
        # The key-value cache is indexed by a layer's place in the model it now stands in.
        layer.attention.module.layer_idx = position  # type: ignore[assignment]
    backbone_of(model).layers = nn.ModuleList(layer.module for layer in kept)
