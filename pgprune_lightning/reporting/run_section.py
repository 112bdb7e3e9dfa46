"""One run, from its outcome to its options."""

from __future__ import annotations

import yaml

from pgprune_lightning.credentials import without_secrets
from pgprune_lightning.number_text import (
    bytes_text,
    count_text,
    plain_text,
    seconds_text,
)
from pgprune_lightning.reporting.curves import main_curves, more_curves
from pgprune_lightning.reporting.heat_map import keep_probability_map
from pgprune_lightning.reporting.included_files import found_files, included_section
from pgprune_lightning.reporting.kinds import KIND_NAMES
from pgprune_lightning.reporting.markup import Markup, element, joined
from pgprune_lightning.reporting.outcome import decision_table, outcome_table, outcome_tiles
from pgprune_lightning.reporting.run_options import decisive_options
from pgprune_lightning.reporting.run_record import RunRecord, at
from pgprune_lightning.reporting.sparsity_chart import sparsity_chart
from pgprune_lightning.reporting.tables import details, facts, notes


def run_section(record: RunRecord, number: int, *, alone: bool) -> Markup:
    """Everything that is known of a run.

    Args:
        record: The run.
        number: Its place in the report, which links lead to.
        alone: Whether there is no other run, and so room for the policies before and after.
    """
    more = more_curves(record)
    curves = element("div", *main_curves(record), class_="charts")
    return element(
        "section",
        element("h2", record.name, id=f"run{number}"),
        element("p", headline(record), class_="soft"),
        notes("What is missing", record.missing),
        outcome_tiles(record),
        element("h3", "Outcome"),
        _protocol(record),
        outcome_table(record),
        element("h3", "Learning"),
        curves,
        details("More curves", element("div", *more, class_="charts")) if more else None,
        _policy(record, alone),
        _sample(record),
        element("h3", "What was run"),
        facts(_facts(record)),
        _all_options(record),
        *(included_section(file, "h3") for file in found_files(record.folder)),
    )


def headline(record: RunRecord) -> str:
    """Model, keep ratio, steps and seed in a line."""
    model = record.summary.get("base_model") or record.option("model", "base_model")
    if model is None and record.plan is not None:
        model = record.plan.base_model.source
    ratio = record.option("model", "keep_ratio")
    if ratio is None and record.plan is not None:
        ratio = record.plan.budget.get("keep_ratio")
    steps = record.summary.get("steps", record.last_step)
    seed = record.summary.get("seed", record.option("seed_everything"))
    parts = [
        None if model is None else str(model),
        None if ratio is None else f"keep ratio {plain_text(ratio)}",
        None if steps is None else f"{plain_text(steps)} steps",
        None if seed is None else f"seed {seed}",
    ]
    return ", ".join(part for part in parts if part)


def _protocol(record: RunRecord) -> Markup | None:
    length = record.summary.get("sequence_length")
    if length is None:
        return None
    step = record.summary.get("learned_at_step")
    words = f"Perplexity at {plain_text(length)} tokens, lower is better."
    if step is not None:
        words += f" The learned mask is that of step {plain_text(step)}, the best by validation."
    return element("p", words, class_="soft")


def _policy(record: RunRecord, alone: bool) -> Markup | None:
    plan, initial = record.plan, record.plans.get("initial")
    if plan is None:
        return None
    before = initial if initial is not None and initial.space == plan.space else None
    maps = [keep_probability_map(plan, kind) for kind in plan.space.kinds]
    bars = [sparsity_chart(plan, kind, before) for kind in plan.space.kinds]
    parts = [element("h3", f"The policy at step {plan.step:,}")]
    if before is not None:
        parts.append(decision_table(before, plan))
    parts.append(element("div", *maps, *bars, class_="charts"))
    for name, title in (("initial", "The untrained policy"), ("last", "The policy at the end")):
        other = record.plans.get(name)
        if alone and other is not None and other.step != plan.step:
            drawn = [keep_probability_map(other, kind, brief=True) for kind in other.space.kinds]
            whole = f"{title}, step {other.step:,}"
            parts.append(details(whole, element("div", *drawn, class_="charts")))
    return joined(*parts)


def _sample(record: RunRecord) -> Markup | None:
    prompt = at(record.summary, "sample", "prompt")
    if not prompt:
        return None
    quotes = [
        joined(
            element("p", name, class_="soft"),
            element("blockquote", str(at(record.summary, "sample", key)).strip(), class_=side),
        )
        for key, name, side in (
            ("dense", "Dense model", "first"),
            ("learned", "Learned mask, not fine-tuned", "second"),
        )
    ]
    begin = element("p", element("em", str(prompt)), " …")
    return joined(element("h3", "A sample of text"), begin, *quotes)


def _facts(record: RunRecord) -> list[tuple[str, str | None]]:
    summary, plan = record.summary, record.plan
    origin = summary.get("provenance")
    versions = [f"{name} {at(origin, name)}" for name in ("python", "torch", "transformers")]
    model = None if plan is None else plan.base_model
    return [
        *decisive_options(record),
        (
            "model",
            None
            if model is None
            else f"{model.source} ({model.model_type}, "
            f"{count_text(model.parameters)} parameters, {model.fingerprint[:12]})",
        ),
        ("units", None if plan is None else _units(record)),
        ("steps", _known(summary.get("steps", record.last_step))),
        ("tokens through the masks", _known(summary.get("training_tokens"))),
        ("execution", _known(summary.get("execution"))),
        ("time", seconds_text(summary["seconds"]) if "seconds" in summary else None),
        (
            "memory at the peak",
            bytes_text(summary["peak_memory_bytes"]) if "peak_memory_bytes" in summary else None,
        ),
        ("machine", _known(at(origin, "device"))),
        ("threads", _known(at(origin, "threads"))),
        ("versions", ", ".join(versions) if origin else None),
        ("program", _known(at(origin, "pgprune_lightning"))),
        ("commit", _known(at(origin, "commit"))),
        ("command", without_secrets(str(at(origin, "command"))) if origin else None),
        ("W&B", _wandb(record)),
    ]


def _units(record: RunRecord) -> str:
    assert record.plan is not None
    space = record.plan.space
    counts = (f"{len(space.units_of(kind)):,} {KIND_NAMES[kind]}" for kind in space.kinds)
    return f"{', '.join(counts)} in {space.num_layers} layers"


def _known(value: object) -> str | None:
    return None if value is None else plain_text(value)


def _wandb(record: RunRecord) -> str:
    mode = record.option("wandb", "mode")
    if record.wandb_id is None:
        return "not logged there"
    project = record.option("wandb", "project")
    return f"run {record.wandb_id} in project {project} ({mode})"


def _all_options(record: RunRecord) -> Markup | None:
    if not record.config:
        return None
    text = yaml.safe_dump(record.config, sort_keys=False, allow_unicode=True)
    return details("All options (config.yaml)", element("pre", without_secrets(text)))
