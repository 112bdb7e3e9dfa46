"""The parts of a decoder layer that a mask touches, whatever its family calls them.

Shapes: K kept units, W rows of a projection.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn

from pgprune_lightning.policy.unit_layout import UnitKind


@dataclass(frozen=True)
class InputProjection:
    """A projection into what the units of a sub-layer share.

    Args:
        linear: The projection.
        parts: Rows of each of its parts, one behind the other. In each, the first of its rows are
            the first unit's, as many are the next one's, and so on. A projection of its own has one
            part, one that is fused of several has several: all queries, then all keys. Fused unit
            by unit (a head's query, key and value, then the next head's) is one part again.
    """

    linear: nn.Linear
    parts: tuple[int, ...]

    def rows_of(self, units_K: Tensor, num_units: int) -> Tensor:
        """Indices of the rows of some units, (W,) int64, part after part.

        Args:
            units_K: Indices of the units, (K,), int64.
            num_units: How many units the sub-layer is divided into.
        """
        starts = (0, *accumulate(self.parts))
        rows = [
            rows_of_units(units_K, part // num_units) + start
            for start, part in zip(starts, self.parts, strict=False)
        ]
        return rows[0] if len(rows) == 1 else torch.cat(rows)


def rows_of_units(units_K: Tensor, width: int) -> Tensor:
    """Indices of the rows, or columns, of units that have `width` each side by side, (W,)."""
    if width == 1:
        return units_K
    offsets = torch.arange(width, device=units_K.device)
    return (units_K[:, None] * width + offsets).flatten()


@dataclass(frozen=True)
class SubLayer:
    """An attention or an MLP: what reads the residual stream, and what adds to it.

    Args:
        module: The module that is called with the normalised stream; None where the projections lie
            in the layer itself.
        norms: Norms that serve it alone, and leave the model with it: the one in front, and in some
            families one behind.
        inputs: The projections into what its units share.
        output: The projection out of it.
        last: What returns what is added to the residual stream: the norm behind, or `output`.
    """

    module: nn.Module | None
    norms: tuple[nn.Module, ...]
    inputs: tuple[InputProjection, ...]
    output: nn.Linear
    last: nn.Module

    def parameters(self) -> Iterator[nn.Parameter]:
        """Everything that leaves the model with the sub-layer."""
        projections = [*(projection.linear for projection in self.inputs), self.output]
        inside = projections if self.module is None else [self.module]
        for module in (*inside, *self.norms):
            yield from module.parameters()


@dataclass(frozen=True)
class Attention(SubLayer):
    """The attention of one layer; its unit is a KV group: a key-value head and its query heads.

    Args:
        num_kv_groups: Number of key-value heads.
        head_dim: Width of a head.
        head_counts: Numbers by which the module's forward divides its projections into heads, and
            how many of what they count a KV group has. Most families need none: they divide by
            the width of a head. `config.NAME` is an attribute of the module's configuration.
    """

    module: nn.Module
    num_kv_groups: int
    head_dim: int
    head_counts: dict[str, int]

    @property
    def group_width(self) -> int:
        """Columns of the output projection that belong to one KV group."""
        return self.output.in_features // self.num_kv_groups

    def set_num_kv_groups(self, count: int) -> None:
        """Let the module's forward expect projections of as many KV groups."""
        for name, per_group in self.head_counts.items():
            if name.startswith("config."):
                # Layers share a configuration, and each has as many heads as it keeps.
                self.module.config = copy.copy(self.module.config)
                setattr(self.module.config, name.removeprefix("config."), count * per_group)
            else:
                setattr(self.module, name, count * per_group)

    @contextmanager
    def narrowed(self, count: int) -> Iterator[None]:
        """Expect projections of `count` KV groups for the length of a `with` block."""
        attributes = self.module.__dict__
        names = {name.partition(".")[0] for name in self.head_counts}
        before = {name: attributes[name] for name in names}
        self.set_num_kv_groups(count)
        try:
            yield
        finally:
            attributes.update(before)


@dataclass(frozen=True)
class Mlp(SubLayer):
    """The MLP of one layer; its unit is a channel of the intermediate activation."""

    @property
    def num_channels(self) -> int:
        """Width of the intermediate activation."""
        return self.output.in_features


@dataclass(frozen=True)
class DecoderLayer:
    """One decoder layer and its two sub-layers."""

    index: int
    module: nn.Module
    attention: Attention
    mlp: Mlp

    def sub_layers_of(self, kind: UnitKind) -> tuple[SubLayer, ...]:
        """What units of a kind are parts of, or are: attention, MLP, or both."""
        if kind == "layer":
            return self.attention, self.mlp
        return (self.attention,) if kind in ("kv_group", "attention") else (self.mlp,)
