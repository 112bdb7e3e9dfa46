"""How far masks of one model lie apart, layer by layer, whatever units they are made of.

Shapes: U units of a mask, A the model's KV groups and MLP channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pgprune_lightning.plan import PruningPlan
from pgprune_lightning.policy import UnitKind, UnitLayout

PARTS: tuple[UnitKind, UnitKind] = ("kv_group", "mlp_channel")
"""The smallest units: every other is made of them."""

CONTAINERS: dict[UnitKind, tuple[UnitKind, ...]] = {
    "kv_group": ("kv_group", "attention", "layer"),
    "mlp_channel": ("mlp_channel", "mlp", "layer"),
}


def hamming_by_layer(one_A: Tensor, other_A: Tensor, parts: UnitLayout) -> list[float]:
    """Share of each layer's KV groups and MLP channels on which two masks differ.

    Args:
        one_A: A mask, (A,), bool.
        other_A: Another, (A,), bool.
        parts: The model's KV groups and MLP channels.

    Returns:
        One number in [0, 1] for each layer.

    Source: Paper, A.14: normalized Hamming distance according to each layer.
    """
    counts, differing = [0] * parts.num_layers, [0] * parts.num_layers
    for group in parts.groups:
        counts[group.layer] += group.count
        one = parts.view(one_A, group.layer, group.kind)
        other = parts.view(other_A, group.layer, group.kind)
        differing[group.layer] += int((one != other).sum())
    return [number / count for number, count in zip(differing, counts, strict=True)]


def expanded_mask(plan: PruningPlan, parts: UnitLayout) -> Tensor:
    """A plan's mask over KV groups and MLP channels: a part goes with what it is a part of.

    Args:
        plan: A plan over units of any kind.
        parts: The model's KV groups and MLP channels.

    Returns:
        Which parts stay, (A,), bool; parts of no unit of the plan do.
    """
    kept = [_expanded(plan, group.layer, group.kind, group.count) for group in parts.groups]
    return torch.cat(kept)


def _expanded(plan: PruningPlan, layer: int, part: UnitKind, count: int) -> Tensor:
    for kind in CONTAINERS[part]:
        if kind in plan.space.kinds:
            kept = plan.space.view(plan.mask_U, layer, kind)
            return kept.repeat_interleave(count // len(kept))
    return torch.ones(count, dtype=torch.bool)


def sparsity_by_layer(plan: PruningPlan) -> dict[UnitKind, list[float]]:
    """Share of the units of each kind that a plan removes, layer by layer."""
    kept = plan.space.keep_ratio_by_layer(plan.mask_U)
    return {
        kind: [1 - ratio for (_, other), ratio in kept.items() if other == kind]
        for kind in plan.space.kinds
    }
