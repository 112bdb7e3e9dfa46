"""The prunable units of a model: their place in the flat mask, and their cost in parameters.

Shapes: S samples, U units of the whole model, G groups.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from pgprune_lightning.errors import UserError

UnitKind = Literal["kv_group", "mlp_channel", "attention", "mlp", "layer"]


@dataclass(frozen=True)
class UnitGroup:
    """All units of one kind in one decoder layer, adjacent in the flat mask.

    Args:
        layer: Index of the decoder layer, from 0.
        kind: Kind of unit.
        start: Flat index of the group's first unit.
        count: Number of units.
        unit_cost: Parameters that are removed with one unit.
        remnant_cost: Further parameters that are removed with the group's last unit, such as the
            norm before the sub-layer.
    """

    layer: int
    kind: UnitKind
    start: int
    count: int
    unit_cost: int
    remnant_cost: int

    @property
    def end(self) -> int:
        """Flat index after the group's last unit."""
        return self.start + self.count


@dataclass(frozen=True)
class UnitLayout:
    """The flat vector of a model's prunable units.

    Args:
        groups: The groups in the order of the flat vector, without gaps; one a layer and kind.
        total_parameters: Parameters of the whole model, prunable or not.

    Raises:
        ValueError: The groups do not tile a vector, or cost more than the model has.
    """

    groups: Sequence[UnitGroup]
    total_parameters: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", tuple(self.groups))
        if not self.groups:
            raise ValueError("there is no group of prunable units")
        expected_start = 0
        for group in self.groups:
            _check_group(group)
            if group.start != expected_start:
                raise ValueError(f"{group} should start at {expected_start}")
            expected_start = group.end
        if len(self._group_of) != len(self.groups):
            raise ValueError("two groups have the same layer and kind")
        prunable = sum(g.count * g.unit_cost + g.remnant_cost for g in self.groups)
        if prunable > self.total_parameters:
            raise ValueError(f"groups cost {prunable} of {self.total_parameters} parameters")

    @classmethod
    def build(
        cls, sizes: Iterable[tuple[int, UnitKind, int, int, int]], total_parameters: int
    ) -> UnitLayout:
        """Lay groups one after another.

        Args:
            sizes: For each group (layer, kind, count, unit_cost, remnant_cost).
            total_parameters: Parameters of the whole model.

        Returns:
            The unit layout.
        """
        groups: list[UnitGroup] = []
        start = 0
        for layer, kind, count, unit_cost, remnant_cost in sizes:
            groups.append(UnitGroup(layer, kind, start, count, unit_cost, remnant_cost))
            start += count
        return cls(groups, total_parameters)

    @property
    def num_units(self) -> int:
        """Length of the flat vector."""
        return self.groups[-1].end

    @cached_property
    def num_layers(self) -> int:
        """Number of decoder layers: one more than the highest layer index."""
        return max(group.layer for group in self.groups) + 1

    @cached_property
    def kinds(self) -> tuple[UnitKind, ...]:
        """The kinds of unit, in the order of their first group."""
        return tuple(dict.fromkeys(group.kind for group in self.groups))

    @cached_property
    def unit_costs_U(self) -> Tensor:  # noqa: N802 - the suffix is the shape
        """Parameters that are removed with each unit, (U,) float64."""
        costs_G = torch.tensor([g.unit_cost for g in self.groups], dtype=torch.float64)
        return costs_G.repeat_interleave(torch.tensor([g.count for g in self.groups]))

    @cached_property
    def _group_of(self) -> dict[tuple[int, UnitKind], UnitGroup]:
        return {(group.layer, group.kind): group for group in self.groups}

    def group(self, layer: int, kind: UnitKind) -> UnitGroup:
        """The group of one layer and kind.

        Raises:
            UserError: There is none.
        """
        if (layer, kind) not in self._group_of:
            raise UserError(
                f"There is no group of {kind} in layer {layer}. This model has layers 0 to "
                f"{self.num_layers - 1} with units of kind {', '.join(self.kinds)}."
            )
        return self._group_of[layer, kind]

    def locate(self, unit: int) -> tuple[int, UnitKind, int]:
        """The (layer, kind, index within the group) of a flat index."""
        assert 0 <= unit < self.num_units, f"unit {unit} of {self.num_units}"
        group = self.groups[bisect_right(self.groups, unit, key=lambda g: g.start) - 1]
        return group.layer, group.kind, unit - group.start

    def view(self, values_U: Tensor, layer: int, kind: UnitKind) -> Tensor:
        """The part of a vector (U,), or of vectors (S, U), that belongs to one group."""
        assert values_U.shape[-1] == self.num_units, values_U.shape
        group = self.group(layer, kind)
        return values_U[..., group.start : group.end]

    def units_of(self, kind: UnitKind) -> Tensor:
        """Flat indices of all units of a kind, (N,) int64, ascending."""
        return torch.cat(
            [torch.arange(group.start, group.end) for group in self.groups if group.kind == kind]
        )

    def kept_parameters(self, mask_U: Tensor) -> int:
        """Parameters of the model that is cut by a mask, (U,) bool."""
        kept_G = self._sums_by_group(mask_U)
        removed = 0
        for group, kept in zip(self.groups, kept_G.tolist(), strict=True):
            removed += (group.count - kept) * group.unit_cost
            removed += group.remnant_cost if kept == 0 else 0
        return self.total_parameters - removed

    def kept_by_kind(self, mask_U: Tensor) -> dict[UnitKind, int]:
        """Number of units of each kind that a mask, (U,) bool, keeps."""
        kept: dict[UnitKind, int] = dict.fromkeys(self.kinds, 0)
        for group, count in zip(self.groups, self._sums_by_group(mask_U).tolist(), strict=True):
            kept[group.kind] += count
        return kept

    def keep_ratio_by_layer(self, values_U: Tensor) -> dict[tuple[int, UnitKind], float]:
        """Mean of a mask or of probabilities, (U,), over each layer and kind."""
        sums = self._sums_by_group(values_U).tolist()
        return {
            (group.layer, group.kind): total / group.count
            for group, total in zip(self.groups, sums, strict=True)
        }

    def _sums_by_group(self, values_U: Tensor) -> Tensor:
        # On the host: hundreds of small sums on an accelerator would cost more than one copy.
        assert values_U.shape == (self.num_units,), values_U.shape
        parts = torch.split(values_U.detach().cpu(), [group.count for group in self.groups])
        return torch.stack([part.sum() for part in parts])

    def to_dict(self) -> dict[str, Any]:
        """Primitives from which `from_dict` makes an equal unit layout."""
        return {
            "groups": [asdict(group) for group in self.groups],
            "total_parameters": self.total_parameters,
        }

    @classmethod
    def from_dict(cls, data: Any) -> UnitLayout:
        """Read what `to_dict` wrote.

        Args:
            data: The dictionary, perhaps from a damaged file.

        Returns:
            The unit layout.

        Raises:
            UserError: The data describe no unit layout.
        """
        try:
            if type(data["total_parameters"]) is not int:
                raise ValueError("total_parameters is not an integer")
            groups = [UnitGroup(**group) for group in data["groups"]]
            return cls(groups, data["total_parameters"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"The description of the prunable units is damaged: {error}. "
                "Write the file again, or use an intact copy."
            ) from error


def _check_group(group: UnitGroup) -> None:
    for name in ("layer", "start", "count", "unit_cost", "remnant_cost"):
        value = getattr(group, name)
        lowest = 1 if name in ("count", "unit_cost") else 0
        if type(value) is not int or value < lowest:
            raise ValueError(f"{name} of {group} is not an integer of at least {lowest}")
    if group.kind not in get_args(UnitKind):
        raise ValueError(f"kind of {group} is not one of {', '.join(get_args(UnitKind))}")
