"""From cells to one description of the comparison: `compare.json`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import permutations
from typing import Any

import torch

from pgprune_lightning.comparison.cell import Cell
from pgprune_lightning.comparison.cell_folder import CellResult
from pgprune_lightning.comparison.cell_result import PLAN_FOLDER
from pgprune_lightning.comparison.experiment import Experiment, leaves, nested
from pgprune_lightning.comparison.hamming import (
    PARTS,
    expanded_mask,
    hamming_by_layer,
    sparsity_by_layer,
)
from pgprune_lightning.evaluation import provenance
from pgprune_lightning.masking.frozen_model import load_model_config, model_on_meta
from pgprune_lightning.masking.model_source import resolve_model_source
from pgprune_lightning.masking.model_units import unit_layout_of
from pgprune_lightning.plan import PLAN_FILE, PruningPlan
from pgprune_lightning.policy import UnitLayout

NOT_NUMBERS = ("seed", "max_positions", "steps", "learned_at_step", "width")

Results = dict[str, Any]
"""What `compare.json` holds: primitives."""


def collect(
    experiment: Experiment,
    finished: Sequence[tuple[Cell, CellResult]],
    errors: Sequence[tuple[Cell, str]],
    command: str,
) -> Results:
    """Put the numbers of all cells together.

    Args:
        experiment: What was compared.
        finished: Cells with their numbers, in the order of the experiment.
        errors: Cells without.
        command: How the program was called.

    Returns:
        `settings.LABEL.methods.NAME` with means over seeds, `seeds` and `deviation`;
        `settings.LABEL.hamming.A.B` and `.sparsity.NAME.KIND`, lists by layer. Where there is one
        setting, its `methods`, `hamming` and `sparsity` stand at the top level too.
    """
    settings = {
        label: _setting([(c, r) for c, r in finished if c.setting == label])
        for label in experiment.settings
    }
    results = {
        "title": experiment.title,
        "command": command,
        "provenance": _provenance([result for _, result in finished], command),
        "evaluation_lengths": list(experiment.evaluation_lengths),
        "zero_shot": list(experiment.zero_shot),
        "zero_shot_limit": experiment.zero_shot_limit,
        "latency": None if experiment.latency is None else asdict(experiment.latency),
        "settings": settings,
        "errors": {cell.title: message for cell, message in errors},
    }
    only = next(iter(settings.values())) if len(settings) == 1 else {}
    return results | only


def _provenance(results: Sequence[CellResult], command: str) -> dict[str, Any]:
    """That of this run, with the commits and machines that the cells were computed by.

    Cells may come from earlier runs, and their numbers are not this commit's.
    """
    source = provenance(torch.device("cpu")) | {"command": command}
    for name in ("commit", "device") if results else ():
        values = dict.fromkeys(result["provenance"][name] for result in results)
        source[name] = ", ".join(value for value in values if value) or None
    return source


def _setting(finished: Sequence[tuple[Cell, CellResult]]) -> dict[str, Any]:
    by_method: dict[str, list[CellResult]] = {}
    plans: dict[str, PruningPlan] = {}
    for cell, result in finished:
        by_method.setdefault(cell.method, []).append(result)
        folder = cell.folder / PLAN_FOLDER
        if cell.method not in plans and (folder / PLAN_FILE).is_file():
            plans[cell.method] = PruningPlan.load(folder)
    return {
        "methods": {name: aggregated(results) for name, results in by_method.items()},
        "hamming": _distances(plans),
        "sparsity": {name: sparsity_by_layer(plan) for name, plan in plans.items()},
    }


def aggregated(seeds: Sequence[CellResult]) -> dict[str, Any]:
    """One entry for all seeds of a cell.

    Args:
        seeds: Results of one method in one setting, one for each seed.

    Returns:
        The first seed's entries, its numbers replaced by the mean over seeds; `deviation`: the
        sample standard deviation of each, where there are two seeds or more; `seeds`: all. Numbers
        in groups, such as accuracies by task, stay in their groups.
    """
    flat = [dict(leaves(_without_provenance(result))) for result in seeds]
    numbers = [name for name, value in flat[0].items() if _is_number(name, value, flat)]
    means = {name: _mean([result[name] for result in flat]) for name in numbers}
    spread = {name: _deviation([result[name] for result in flat]) for name in numbers}
    return {
        **nested(flat[0] | means, "means"),
        "deviation": nested(spread, "deviation") if len(seeds) > 1 else {},
        "seeds": [
            {"seed": r["seed"]} | nested({name: r[name] for name in numbers}, "seeds") for r in flat
        ],
    }


def _without_provenance(result: CellResult) -> CellResult:
    return {name: value for name, value in result.items() if name != "provenance"}


def _is_number(name: str, value: Any, seeds: Sequence[CellResult]) -> bool:
    if name in NOT_NUMBERS:
        return False
    values = [value, *(result.get(name) for result in seeds)]
    return any(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)


def _mean(values: Sequence[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    if len(numbers) < len(values):
        return None
    if len(set(numbers)) == 1:
        return numbers[0]  # a count stays a whole number
    return math.fsum(numbers) / len(numbers)


def _deviation(values: Sequence[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    if len(numbers) < max(2, len(values)):
        return None
    return statistics.stdev(numbers)


def _distances(plans: Mapping[str, PruningPlan]) -> dict[str, dict[str, list[float]]]:
    """Between masks of one model; those of two models have no units in common."""
    sources = {name: plan.base_model.source for name, plan in plans.items()}
    parts = {source: _parts_of(source) for source in dict.fromkeys(sources.values())}
    masks = {name: expanded_mask(plan, parts[sources[name]]) for name, plan in plans.items()}
    distances: dict[str, dict[str, list[float]]] = {name: {} for name in masks}
    for one, other in permutations(masks, 2):
        if sources[one] == sources[other]:
            shared = parts[sources[one]]
            distances[one][other] = hamming_by_layer(masks[one], masks[other], shared)
    return distances


def _parts_of(base_model: str) -> UnitLayout:
    model = model_on_meta(load_model_config(resolve_model_source(base_model)))
    return unit_layout_of(model, PARTS)
