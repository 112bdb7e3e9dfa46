"""The options of a run that decide what it finds, in a line each; and in which runs differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pgprune_lightning.number_text import NOTHING
from pgprune_lightning.report.run_record import RunRecord, at

DECISIVE = {
    "keep ratio": "model.keep_ratio",
    "budget": "model.budget",
    "units": "model.unit_kinds",
    "channels per unit": "model.channels_per_unit",
    "protected layers": "model.protected_layers",
    "layer keep ratios": "model.layer_keep_ratios",
    "policy": "model.policy",
    "update": "model.update",
    "step size": "model.lr",
    "its rule": "model.lr_rule",
    "its factors": "model.lr_factors",
    "its schedule": "model.lr_schedule",
    "estimator": "model.estimator",
    "masks a step": "model.num_mask_samples",
    "masks for each": "model.mask_granularity",
    "objective": "model.objective",
    "bounds of s": "model.probability_bounds",
    "budget filled": "model.fill_budget",
    "falling keep ratio": "model.progressive",
    "initialization": "model.initialization",
    "weights": "model.dtype",
    "text learned from": "data.train.path",
    "sequence, tokens": "data.block_length",
    "batch, sequences": "data.batch_size",
}
"""What the report calls them, in the order of the method."""

DECIDING_GROUPS = ("seed_everything", "model", "data", "trainer.max_steps", "trainer.devices")
"""What a result depends on; the other options say where it is written and what is shown."""


def decisive_options(record: RunRecord) -> list[tuple[str, str]]:
    """Name and value of the options that decide, without those left empty."""
    chosen = []
    for name, option in DECISIVE.items():
        value = at(record.config, *option.split("."))
        if value not in (None, [], {}):
            chosen.append((name, value_text(value)))
    return chosen


def differing_options(records: Sequence[RunRecord]) -> list[list[str]]:
    """Rows of the options whose values are not the same in all runs: name, then a value each.

    A run of an older program may not know an option of a newer one.
    """
    flat = [dict(_leaves(record.config)) for record in records]
    names = dict.fromkeys(name for options in flat for name in options)
    rows = []
    for name in names:
        values = [options.get(name, NOTHING) for options in flat]
        decides = any(f"{name}.".startswith(f"{group}.") for group in DECIDING_GROUPS)
        if decides and len(set(values)) > 1:
            rows.append([name, *values])
    return rows


def value_text(value: Any) -> str:
    """A value in a line: classes as calls, groups as `name value`."""
    if isinstance(value, dict) and "class_path" in value:
        arguments = value.get("init_args") or {}
        return f"{str(value['class_path']).rpartition('.')[2]}({_named(arguments)})"
    if isinstance(value, dict):
        return _named(value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(value_text(item) for item in value) + "]"
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _named(values: dict[str, Any]) -> str:
    given = (f"{name}={value_text(value)}" for name, value in values.items() if value is not None)
    return ", ".join(given)


def _leaves(options: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in options.items():
        whole = f"{prefix}.{name}" if prefix else str(name)
        if isinstance(value, dict) and value and "class_path" not in value:
            yield from _leaves(value, whole)
        else:
            yield whole, value_text(value)
