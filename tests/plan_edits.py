"""Edits of a plan's description, each of one field, as a slip of the hand or a bad program makes.

Twelve numbers are edited in ten ways and sixteen other fields in six: 216 edits.
"""

from __future__ import annotations

import copy
import json
import math
from typing import Any

NUMBERS = (
    *("base_model.parameters", "budget.keep_ratio", "step", "kept_parameters"),
    *("validation.sequence_length", "validation.perplexity", "mask_space.total_parameters"),
    *("mask_space.groups.0.layer", "mask_space.groups.0.start", "mask_space.groups.0.count"),
    *("mask_space.groups.0.unit_cost", "mask_space.groups.0.remnant_cost"),
)
OTHERS = (
    *("base_model", "base_model.source", "base_model.model_type", "base_model.fingerprint"),
    *("budget", "budget.scope", "budget.protected_layers", "budget.layer_keep_ratios"),
    *("validation", "validation.text", "validation.bos_per_block", "kept_units"),
    *("tensors.file", "tensors.sha256", "mask_space.groups", "mask_space.groups.0.kind"),
)
DEPTH = 10_000

_REMOVED, _DEEP, _AGAIN = object(), "@deep", "@again"


def edits(plan: dict[str, Any]) -> list[tuple[str, str]]:
    """Edit every field in every way.

    Args:
        plan: What `plan.json` of a validated plan holds.

    Returns:
        (name, text of the edited file); the names are different, and the order is always the same.
    """
    return [
        (f"{path}: {way}", _edited(plan, path.split("."), way, value))
        for paths, make_ways in ((NUMBERS, _ways_of_number), (OTHERS, _ways))
        for path in paths
        for way, value in make_ways(_at(plan, path.split("."))).items()
    ]


def _ways(value: Any) -> dict[str, Any]:
    """What is put in the place of a value."""
    return {
        "missing": _REMOVED,
        "null": None,
        "another type": 7 if isinstance(value, (str, dict, list)) else "yes",
        "empty": "" if isinstance(value, str) else [] if isinstance(value, list) else {},
        "deep": _DEEP,
        "given twice": value,
    }


def _ways_of_number(value: float) -> dict[str, Any]:
    others = {"NaN": math.nan, "Infinity": math.inf, "negative": -value - 1, "10^18": 10**18}
    return _ways(value) | {"another type": str(value)} | others


def _at(plan: Any, names: list[str]) -> Any:
    for name in names:
        plan = plan[int(name)] if isinstance(plan, list) else plan[name]
    return plan


def _edited(plan: dict[str, Any], names: list[str], way: str, value: Any) -> str:
    edited = copy.deepcopy(plan)
    parent, name = _at(edited, names[:-1]), names[-1]
    if value is _REMOVED:
        del parent[name]
    elif way == "given twice":
        parent[name + _AGAIN] = value
    else:
        parent[name] = value
    text = json.dumps(edited, indent=1)
    return text.replace(f'"{name}{_AGAIN}"', f'"{name}"').replace(
        f'"{_DEEP}"', "[" * DEPTH + "]" * DEPTH
    )
