"""Format `uniform`: the plan's projection onto layers of equal widths, for stock classes.

Shapes: U units.
"""

from __future__ import annotations

import math
import warnings
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
from pgprune_lightning.policy import UnitKind, layer_indices, scope_costs


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

    How many, the mask says: the average of the layers that its budget counts, rounded down to a
    whole unit or multiple, but not to none. Where kinds share one budget, channels take what the
    rounding left of it. Protected layers become as narrow as the others, with a warning: a plan
    does not rank their units.

    Args:
        plan: The plan.
        mask_U: A mask of its probabilities, (U,), bool.
        multiples: Units that stay or go together.

    Returns:
        The mask, (U,), bool. It keeps no more than the one given, but for the one unit a layer.

    Raises:
        UserError: The plan prunes one kind of sub-layer as a whole.
    """
    kinds = set(plan.space.kinds)
    if kinds == {"layer"}:
        return mask_U
    if kinds == {"attention", "mlp"}:
        return _whole_layers(plan, mask_U)
    if kinds & {"attention", "mlp"}:
        raise UserError(
            f"export: uniform: the plan drops {' and '.join(kinds)} as a whole, and every layer of "
            "a stock class has both sub-layers. Give --format hf or padded."
        )
    kept = _kept_a_layer(plan, mask_U, multiples)
    _warn_of_protected_layers(plan, kept)
    uniform_U = torch.zeros_like(mask_U)
    ranked_U = ranking(plan)
    for group in plan.space.groups:
        best = ranked_U[group.start : group.end].argsort(descending=True, stable=True)
        uniform_U[group.start + best[: kept[group.kind]]] = True
    return uniform_U


def _warn_of_protected_layers(plan: PruningPlan, kept: dict[UnitKind, int]) -> None:
    protected = _protected_layers(plan)
    cut = {
        f"{kept[group.kind]} of {group.count} {group.kind}s"
        for group in plan.space.groups
        if group.layer in protected and kept[group.kind] < group.count
    }
    if cut:
        warnings.warn(
            f"export: uniform cuts the protected layers {', '.join(map(str, sorted(protected)))} "
            f"as it does all others, to {' and '.join(sorted(cut))} each, because a stock class "
            "has one width. The plan does not rank their units, so the first ones stay: measure "
            "the result, or give --format hf or padded, which leave these layers whole.",
            stacklevel=2,
        )


def _protected_layers(plan: PruningPlan) -> set[int]:
    return layer_indices(plan.budget["protected_layers"], plan.space.num_layers)


def _kept_a_layer(plan: PruningPlan, mask_U: Tensor, multiples: Multiples) -> dict[UnitKind, int]:
    space, scope = plan.space, plan.budget["scope"]
    # Where each layer has a budget of its own, protected ones have none.
    without = _protected_layers(plan) if scope == "per_layer" else set()
    counted = [group for group in space.groups if group.layer not in without] or space.groups
    kept: dict[UnitKind, int] = {}
    for kind in space.kinds:
        groups = [group for group in counted if group.kind == kind]
        total = sum(int(mask_U[group.start : group.end].sum()) for group in groups)
        kept[kind] = _rounded(total / len(groups), multiples.get(kind, 1))
    if scope in ("units", "parameters") and len(kept) == 2:
        costs_U = scope_costs(space, scope)
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
    sums[list(_protected_layers(plan))] = math.inf
    stays = torch.zeros(space.num_layers, dtype=torch.bool)
    stays[sums.argsort(descending=True, stable=True)[:num_layers]] = True
    uniform_U = torch.zeros_like(mask_U)
    for group in space.groups:
        uniform_U[group.start] = stays[group.layer]
    return uniform_U
