"""Format `uniform`: the plan's projection onto layers of equal widths, for stock classes.

Shapes: U units.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig

from pgprune_lightning.errors import UserError
from pgprune_lightning.export.export_format import ExportFormat, ExportOptions, Logits, PrunedModel
from pgprune_lightning.export.hf import reloaded_logits, save_cut
from pgprune_lightning.export.rethreshold import Multiples, ranking
from pgprune_lightning.export.stock import stock_config
from pgprune_lightning.export.widths import LayerWidths
from pgprune_lightning.plan import PruningPlan
from pgprune_lightning.policy import UnitKind
from pgprune_lightning.policy.constraint import scope_costs


class Uniform(ExportFormat):
    """Every layer keeps equally many units of a kind, those with the highest probabilities."""

    name = "uniform"
    purpose = "cut to equal widths, which is another mask: stock class"

    def choose_mask(self, plan: PruningPlan, mask_U: Tensor, multiples: Multiples) -> Tensor:
        """Project a mask onto equal widths."""
        return uniform_mask(plan, mask_U, multiples)

    def check(
        self, config: PreTrainedConfig, widths: tuple[LayerWidths, ...], options: ExportOptions
    ) -> None:
        """Refuse what has no stock class."""
        obstacle = stock_config(config, widths)
        if isinstance(obstacle, str):
            raise UserError(f"export: uniform: {obstacle}. Give --format hf or padded.")

    def write(self, pruned: PrunedModel, folder: Path, options: ExportOptions) -> None:
        """Write the cut model as a stock class."""
        config = stock_config(pruned.dense.config, pruned.widths)
        assert not isinstance(config, str), config
        with torch.device("meta"):
            shell = AutoModelForCausalLM.from_config(config)
        save_cut(pruned, shell, folder)

    def reload(self, folder: Path, pruned: PrunedModel, device: torch.device) -> Logits:
        """What `from_pretrained` makes of the folder."""
        return reloaded_logits(folder, pruned, device)


def uniform_mask(plan: PruningPlan, mask_U: Tensor, multiples: Multiples) -> Tensor:
    """Keep the best units of every layer, equally many of a kind.

    How many, the mask says: the average of its layers, rounded down to a whole unit or multiple,
    but not to none. Where kinds share one budget, channels take what the rounding left of it.

    Args:
        plan: The plan.
        mask_U: A mask of its probabilities, (U,), bool.
        multiples: Units that stay or go together.

    Returns:
        The mask, (U,), bool. It keeps no more than the one given, but for the one unit a layer.

    Raises:
        UserError: The plan protects layers, or prunes one kind of sub-layer as a whole.
    """
    kinds = set(plan.space.kinds)
    if kinds == {"layer"}:
        return mask_U
    if plan.budget["protected_layers"]:
        raise UserError(
            f"export: uniform would cut layers {plan.budget['protected_layers']} too, which the "
            "plan protects. Give --format hf or padded."
        )
    if kinds == {"attention", "mlp"}:
        return _whole_layers(plan, mask_U)
    if kinds & {"attention", "mlp"}:
        raise UserError(
            f"export: uniform: the plan drops {' and '.join(kinds)} as a whole, and every layer of "
            "a stock class has both sub-layers. Give --format hf or padded."
        )
    kept = _kept_a_layer(plan, mask_U, multiples)
    uniform_U = torch.zeros_like(mask_U)
    ranked_U = ranking(plan)
    for group in plan.space.groups:
        best = ranked_U[group.start : group.end].argsort(descending=True, stable=True)
        uniform_U[group.start + best[: kept[group.kind]]] = True
    return uniform_U


def _kept_a_layer(plan: PruningPlan, mask_U: Tensor, multiples: Multiples) -> dict[UnitKind, int]:
    space = plan.space
    kept: dict[UnitKind, int] = {}
    for kind, total in space.kept_by_kind(mask_U).items():
        num_groups = sum(group.kind == kind for group in space.groups)
        kept[kind] = _rounded(total / num_groups, multiples.get(kind, 1))
    if plan.budget["scope"] in ("units", "parameters") and len(kept) == 2:
        costs_U = scope_costs(space, plan.budget["scope"])
        left = float(costs_U @ mask_U.double())
        cost_of_each = {group.kind: 0.0 for group in space.groups}
        for group in space.groups:
            cost_of_each[group.kind] += float(costs_U[group.start])
            left -= float(costs_U[group.start]) * kept[group.kind]
        count, size = space.group(0, "mlp_channel").count, multiples.get("mlp_channel", 1)
        wanted = kept["mlp_channel"] + left / cost_of_each["mlp_channel"]
        kept["mlp_channel"] = _rounded(min(count, wanted), size)
    return kept


def _rounded(units: float, multiple: int) -> int:
    return max(1, int(units + 1e-9) // multiple) * multiple


def _whole_layers(plan: PruningPlan, mask_U: Tensor) -> Tensor:
    """Keep as many layers as the mask has pairs of sub-layers, those with the highest sums."""
    space, ranked_U = plan.space, ranking(plan)
    num_layers = max(1, int(mask_U.sum()) // 2)
    sums = torch.zeros(space.num_layers, dtype=torch.float64)
    for group in space.groups:
        sums[group.layer] += ranked_U[group.start]
    stays = torch.zeros(space.num_layers, dtype=torch.bool)
    stays[sums.argsort(descending=True, stable=True)[:num_layers]] = True
    uniform_U = torch.zeros_like(mask_U)
    for group in space.groups:
        uniform_U[group.start] = stays[group.layer]
    return uniform_U
