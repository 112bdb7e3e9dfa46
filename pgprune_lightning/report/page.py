"""The report: one HTML file that needs no network, no script and no other file.

The templates are in `templates/`; Jinja2 escapes every value, since names of models, texts and
options come from files of others and may hold `<script>`. This module computes what they show.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cache
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from pgprune_lightning import __version__
from pgprune_lightning.credentials import without_secrets
from pgprune_lightning.number_text import (
    NOTHING,
    bytes_text,
    count_text,
    perplexity_text,
    plain_text,
    seconds_text,
    share_text,
)
from pgprune_lightning.plan import PruningPlan
from pgprune_lightning.report.charts import (
    KIND_NAMES,
    Chart,
    Table,
    keep_probability_map,
    sparsity_chart,
)
from pgprune_lightning.report.curves import (
    best_validation,
    compared_curves,
    main_curves,
    more_curves,
)
from pgprune_lightning.report.included_files import IncludedFile, file_section, found_files
from pgprune_lightning.report.outcome import (
    decision_table,
    kept_share,
    outcome_table,
    outcome_tiles,
)
from pgprune_lightning.report.run_options import decisive_options, differing_options
from pgprune_lightning.report.run_record import RunRecord, at

COMPARED = [
    *("run", "keep ratio", "steps", "dense", "untrained", "learned"),
    *("best validation", "at step", "parameters", "time", "memory"),
]
POLICIES_OF_A_LONE_RUN = {"initial": "The untrained policy", "last": "The policy at the end"}


def report_page(
    records: Sequence[RunRecord], included: Sequence[IncludedFile], title: str, command: str
) -> str:
    """Render the whole page.

    Args:
        records: The runs, at least one.
        included: Results of other commands.
        title: The page's title.
        command: The command that writes it again.
    """
    alone = len(records) == 1
    return (
        _templates()
        .get_template("report.html")
        .render(
            title=title,
            compared=None if alone else _compared(records),
            runs=[_run(record, alone=alone) for record in records],
            files=[file_section(file) for file in included],
            version=__version__,
            written=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
            command=command,
        )
    )


def policy_pictures(plan: PruningPlan, initial: PruningPlan | None) -> dict[str, str]:
    """Render the charts of a policy, each as a page of its own for a dashboard.

    Args:
        plan: The policy and its mask.
        initial: The untrained one, to compare the mask with.

    Returns:
        HTML by name: keep-probabilities and sparsity by layer, of each kind of unit.
    """
    template = _templates().get_template("picture.html")
    charts: dict[str, Chart] = {}
    for kind in plan.space.kinds:
        charts[f"pictures/keep_probabilities/{kind}"] = keep_probability_map(plan, kind)
        charts[f"pictures/sparsity_by_layer/{kind}"] = sparsity_chart(plan, kind, initial)
    return {name: template.render(title=name, chart=chart) for name, chart in charts.items()}


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


@cache
def _templates() -> Environment:
    return Environment(
        loader=PackageLoader("pgprune_lightning.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        finalize=_shown,
    )


def _shown(value: Any) -> Any:
    """Hide the secrets of every text, whatever file it comes from."""
    return without_secrets(value) if type(value) is str else value  # Markup is ours


def _run(record: RunRecord, *, alone: bool) -> dict[str, Any]:
    """What run.html shows of a run."""
    plan, initial = record.plan, record.plans.get("initial")
    before = initial if plan is not None and initial and initial.space == plan.space else None
    return {
        "record": record,
        "headline": headline(record),
        "tiles": outcome_tiles(record),
        "protocol": _protocol(record),
        "outcome": outcome_table(record),
        "main_curves": main_curves(record),
        "more_curves": more_curves(record),
        "decisions": decision_table(before, plan) if plan and before else None,
        "policy": _policy(plan, before) if plan else [],
        "other_policies": _other_policies(record) if alone else [],
        "sample": _sample(record),
        "facts": _facts(record),
        "options": _all_options(record),
        "files": [file_section(file) for file in found_files(record.folder)],
    }


def _protocol(record: RunRecord) -> str | None:
    length = record.summary.get("sequence_length")
    if length is None:
        return None
    words = f"Perplexity at {plain_text(length)} tokens, lower is better."
    step = record.summary.get("learned_at_step")
    if step is not None:
        words += f" The learned mask is that of step {plain_text(step)}, the best by validation."
    return words


def _policy(plan: PruningPlan, before: PruningPlan | None) -> list[Chart]:
    maps = [keep_probability_map(plan, kind) for kind in plan.space.kinds]
    return maps + [sparsity_chart(plan, kind, before) for kind in plan.space.kinds]


def _other_policies(record: RunRecord) -> list[tuple[str, list[Chart]]]:
    """The policies before and after the best one."""
    others = []
    for name, title in POLICIES_OF_A_LONE_RUN.items():
        plan = record.plans.get(name)
        if plan is not None and record.plan is not None and plan.step != record.plan.step:
            maps = [keep_probability_map(plan, kind) for kind in plan.space.kinds]
            others.append((f"{title}, step {plan.step:,}", maps))
    return others


def _sample(record: RunRecord) -> dict[str, str] | None:
    prompt = at(record.summary, "sample", "prompt")
    if not prompt:
        return None
    texts = {key: str(at(record.summary, "sample", key)).strip() for key in ("dense", "learned")}
    return texts | {"prompt": str(prompt)}


def _facts(record: RunRecord) -> list[tuple[str, str | None]]:
    summary, plan = record.summary, record.plan
    origin = summary.get("provenance")
    versions = [f"{name} {at(origin, name)}" for name in ("python", "torch", "transformers")]
    return [
        *decisive_options(record),
        ("model", None if plan is None else _model(plan)),
        ("units", None if plan is None else _units(plan)),
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
        ("command", str(at(origin, "command")) if origin else None),
        ("W&B", _wandb(record)),
    ]


def _model(plan: PruningPlan) -> str:
    model = plan.base_model
    size = f"{count_text(model.parameters)} parameters"
    return f"{model.source} ({model.model_type}, {size}, {model.short_fingerprint})"


def _units(plan: PruningPlan) -> str:
    space = plan.space
    counts = (f"{len(space.units_of(kind)):,} {KIND_NAMES[kind]}" for kind in space.kinds)
    return f"{', '.join(counts)} in {space.num_layers} layers"


def _known(value: object) -> str | None:
    return None if value is None else plain_text(value)


def _wandb(record: RunRecord) -> str:
    if record.wandb_id is None:
        return "not logged there"
    project, mode = record.option("wandb", "project"), record.option("wandb", "mode")
    return f"run {record.wandb_id} in project {project} ({mode})"


def _all_options(record: RunRecord) -> str | None:
    if not record.config:
        return None
    text: str = yaml.safe_dump(record.config, sort_keys=False, allow_unicode=True)
    return text


def _compared(records: Sequence[RunRecord]) -> dict[str, Any]:
    """What compared.html shows of several runs."""
    names = [record.name for record in records]
    words = range(len(names) + 1)
    return {
        "cautions": _cautions(records),
        "text": _common_text(records),
        "outcomes": Table(COMPARED, [_row(record) for record in records], chosen=_lowest(records)),
        "curves": compared_curves(records),
        "options": Table(["option", *names], differing_options(records), words),
    }


def _row(record: RunRecord) -> list[str]:
    best, summary = best_validation(record), record.summary
    measured = (at(summary, key, "perplexity") for key in ("dense", "initial", "learned"))
    return [
        record.name,
        plain_text(record.option("model", "keep_ratio")),
        plain_text(summary.get("steps", record.last_step)),
        *(perplexity_text(value) for value in measured),
        NOTHING if best is None else perplexity_text(best[1]),
        NOTHING if best is None else f"{best[0]:,.0f}",
        share_text(kept_share(record)),
        seconds_text(summary.get("seconds")),
        bytes_text(summary.get("peak_memory_bytes")),
    ]


def _lowest(records: Sequence[RunRecord]) -> list[int]:
    """The runs with the lowest perplexity of the learned mask, where they can be compared."""
    values = [at(record.summary, "learned", "perplexity") for record in records]
    if _cautions(records) or not all(isinstance(value, float) for value in values):
        return []
    return [number for number, value in enumerate(values) if value == min(values)]


def _cautions(records: Sequence[RunRecord]) -> list[str]:
    cautions = []
    sets: dict[str, set[object]] = {
        "models": {r.plan.base_model.fingerprint for r in records if r.plan is not None},
        "test texts or lengths": {_text(record) for record in records if record.summary},
        "keep ratios": {record.option("model", "keep_ratio") for record in records},
    }
    for name, values in sets.items():
        if len(values - {None}) > 1:
            cautions.append(f"These runs have different {name}: their perplexities do not compare.")
    unfinished = [record.name for record in records if not record.summary]
    if unfinished:
        cautions.append(f"Not finished: {', '.join(unfinished)}.")
    return cautions


def _text(record: RunRecord) -> str:
    return f"{record.summary.get('text')} at {record.summary.get('sequence_length')} tokens"


def _common_text(records: Sequence[RunRecord]) -> str:
    texts = {_text(record) for record in records if record.summary}
    return f"Perplexity on {texts.pop()}, lower is better." if len(texts) == 1 else ""
