"""Units by kind and layer, as pictures go through them."""

from __future__ import annotations

from torch import Tensor

from pgprune_lightning.plan import PruningPlan
from pgprune_lightning.policy.mask_space import UnitKind

KIND_NAMES: dict[UnitKind, str] = {
    "kv_group": "KV groups",
    "mlp_channel": "MLP channels",
    "attention": "attention sub-layers",
    "mlp": "MLPs",
    "layer": "whole layers",
}


def by_layer(plan: PruningPlan, kind: UnitKind, values_U: Tensor) -> dict[int, Tensor]:
    """The part of a vector (U,) that belongs to each layer with units of a kind."""
    return {
        group.layer: values_U[group.start : group.end]
        for group in plan.space.groups
        if group.kind == kind
    }


def removed_by_layer(plan: PruningPlan, kind: UnitKind) -> dict[int, float]:
    """The share of a kind that the mask removes in each layer, in [0, 1]."""
    kept = by_layer(plan, kind, plan.mask_U)
    return {layer: 1 - float(mask_N.double().mean()) for layer, mask_N in kept.items()}
