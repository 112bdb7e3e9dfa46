"""Collects the numbers and masks of all trials into one description: `compare.json`.

Shapes: U units of a mask, A the model's KV groups and MLP channels.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import permutations
from typing import Any

import torch
from torch import Tensor

from pgprune_lightning.comparison.experiment import Experiment
from pgprune_lightning.comparison.experiment_file import nested
from pgprune_lightning.comparison.trial import Trial, TrialResult
from pgprune_lightning.comparison.trial_run import PLAN_FOLDER
from pgprune_lightning.evaluation import provenance
from pgprune_lightning.evaluation.table import leaves
from pgprune_lightning.masking.frozen_model import load_model_config, model_on_meta
from pgprune_lightning.masking.model_source import resolve_model_source
from pgprune_lightning.masking.model_units import unit_layout_of
from pgprune_lightning.plan import PLAN_FILE, PruningPlan
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


Settings = dict[str, dict[str, Any]]


def grouped(settings: Settings) -> dict[str, Settings]:
    """Split settings by the name before their number.

    Args:
        settings: Results by label.

    Returns:
        Settings by group, with the numbers as labels, where each label is a name, a space and a
        number, and the names are at least two; else all of them in a group without a name.
    """
    groups: dict[str, Settings] = {}
    for label, setting in settings.items():
        name, _, number = label.rpartition(" ")
        if not name or not _is_numeral(number):
            return {"": settings}
        groups.setdefault(name, {})[number] = setting
    return groups if len(groups) > 1 else {"": settings}


def _is_numeral(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


NOT_NUMBERS = ("seed", "max_positions", "steps", "learned_at_step", "width")

Results = dict[str, Any]
"""What `compare.json` holds: primitives."""


def collect(
    experiment: Experiment,
    finished: Sequence[tuple[Trial, TrialResult]],
    errors: Sequence[tuple[Trial, str]],
    command: str,
) -> Results:
    """Put the numbers of all trials together.

    Args:
        experiment: What was compared.
        finished: Trials with their numbers, in the order of the experiment.
        errors: Trials without.
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
        "errors": {trial.title: message for trial, message in errors},
    }
    only = next(iter(settings.values())) if len(settings) == 1 else {}
    return results | only


def _provenance(results: Sequence[TrialResult], command: str) -> dict[str, Any]:
    """That of this run, with the commits and machines that the trials were computed by.

    Trials may come from earlier runs, and their numbers are not this commit's.
    """
    source = provenance(torch.device("cpu")) | {"command": command}
    for name in ("commit", "device") if results else ():
        values = dict.fromkeys(result["provenance"][name] for result in results)
        source[name] = ", ".join(value for value in values if value) or None
    return source


def _setting(finished: Sequence[tuple[Trial, TrialResult]]) -> dict[str, Any]:
    by_method: dict[str, list[TrialResult]] = {}
    plans: dict[str, PruningPlan] = {}
    for trial, result in finished:
        by_method.setdefault(trial.method, []).append(result)
        folder = trial.folder / PLAN_FOLDER
        if trial.method not in plans and (folder / PLAN_FILE).is_file():
            plans[trial.method] = PruningPlan.load(folder)
    return {
        "methods": {name: aggregated(results) for name, results in by_method.items()},
        "hamming": _distances(plans),
        "sparsity": {name: sparsity_by_layer(plan) for name, plan in plans.items()},
    }


def aggregated(seeds: Sequence[TrialResult]) -> dict[str, Any]:
    """One entry for all seeds of a trial.

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


def _without_provenance(result: TrialResult) -> TrialResult:
    return {name: value for name, value in result.items() if name != "provenance"}


def _is_number(name: str, value: Any, seeds: Sequence[TrialResult]) -> bool:
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
