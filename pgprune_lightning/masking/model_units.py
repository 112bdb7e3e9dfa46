"""Counting the prunable units of a model and the parameters each of them costs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn
from transformers import PreTrainedModel

from pgprune_lightning.errors import UserError
from pgprune_lightning.masking.decoder_family import decoder_layers
from pgprune_lightning.masking.sub_layer import DecoderLayer, SubLayer
from pgprune_lightning.policy.unit_layout import UnitKind, UnitLayout


def unit_layout_of(
    model: PreTrainedModel, unit_kinds: Sequence[UnitKind], channels_per_unit: int = 1
) -> UnitLayout:
    """Describe the units of a model that a mask can drop.

    Args:
        model: A model of a known family; meta tensors will do.
        unit_kinds: Which kinds, in the order they take in each layer's part of the flat vector.
            Units must not contain one another: `kv_group` and `mlp_channel`, `attention` and `mlp`
            (whole sub-layers with their norms), either of a pair, or `layer`.
        channels_per_unit: Neighbouring channels of an MLP that stay or go together, as one unit of
            kind `mlp_channel`.

    Returns:
        The unit layout, layer by layer. A unit's width is not stored: it is the width of what a
        group's units share, divided by their number.

    Raises:
        UserError: If no kind is given, one is given twice, kinds of different sizes are mixed, or
            an MLP's channels do not divide into such units.
    """
    if not unit_kinds or len(set(unit_kinds)) != len(unit_kinds):
        raise UserError(f"units.kinds: need different kinds, at least one; given {unit_kinds}.")
    if not any(set(unit_kinds) <= together for together in _COMBINATIONS):
        raise UserError(
            f"units.kinds: {list(unit_kinds)} mixes units with what they are parts of; use [layer] "
            "alone, attention and mlp, or kv_group and mlp_channel, each pair or one of it."
        )
    layers = decoder_layers(model)
    _check_channels_per_unit(channels_per_unit, unit_kinds, layers)
    bundles = {"mlp_channel": channels_per_unit}
    sizes = [_size(layer, kind, bundles.get(kind, 1)) for layer in layers for kind in unit_kinds]
    return UnitLayout.build(sizes, total_parameters=_count(model.parameters()))


def _check_channels_per_unit(
    channels: int, unit_kinds: Sequence[UnitKind], layers: Sequence[DecoderLayer]
) -> None:
    if channels != 1 and "mlp_channel" not in unit_kinds:
        raise UserError(
            f"channels_per_unit: {channels} is given, but mlp_channel is not among units.kinds "
            f"{list(unit_kinds)}; leave it at 1, or add mlp_channel."
        )
    for width in {layer.mlp.num_channels for layer in layers}:
        if channels < 1 or width % channels:
            divisors = [number for number in range(1, width + 1) if width % number == 0]
            below = [divisor for divisor in divisors if divisor < channels][-1:]
            above = [divisor for divisor in divisors if divisor > channels][:1]
            nearest = " or ".join(str(divisor) for divisor in below + above)
            raise UserError(
                f"channels_per_unit: {channels} does not divide the MLP's {width} channels; the "
                f"nearest that does is {nearest}."
            )


def _size(layer: DecoderLayer, kind: UnitKind, bundle: int) -> tuple[int, UnitKind, int, int, int]:
    """Size of a group whose units are bundles of channels, or what else is counted."""
    if kind == "layer":
        return layer.index, kind, 1, _count(layer.module.parameters()), 0
    (part,) = layer.sub_layers_of(kind)
    total = _count(part.parameters())
    if kind in ("attention", "mlp"):
        return layer.index, kind, 1, total, 0
    attention, mlp = layer.attention, layer.mlp
    count = attention.num_kv_groups if kind == "kv_group" else mlp.num_channels // bundle
    unit_cost = _cost_of_units(part) // count
    return layer.index, kind, count, unit_cost, total - count * unit_cost


def _cost_of_units(part: SubLayer) -> int:
    """Parameters of a sub-layer that belong to units: rows into it and columns out of it."""
    rows = sum(_count(projection.linear.parameters()) for projection in part.inputs)
    return rows + part.output.weight.numel()


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


_COMBINATIONS = ({"kv_group", "mlp_channel"}, {"attention", "mlp"}, {"layer"})
"""Kinds that may be chosen together: no unit of one is a part of another's."""
