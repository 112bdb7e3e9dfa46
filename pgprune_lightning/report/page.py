"""The report: one HTML file that needs no network, no script and no other file.

`templates/run.html` lays out a run and `templates/compared.html` several runs beside each other;
this module computes their tables and charts. Jinja2 escapes every value, since names of models,
texts and options come from files of others and may hold `<script>`.

Shapes: N units of one kind.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from pgprune_lightning import __version__, number_text
from pgprune_lightning.credentials import without_secrets
from pgprune_lightning.number_text import (
    NOTHING,
    bytes_text,
    count_text,
    finite,
    perplexity_text,
    plain_text,
    seconds_text,
    share_text,
)
from pgprune_lightning.plan import PruningPlan
from pgprune_lightning.report.charts import (
    KIND_NAMES,
    Chart,
    Point,
    Series,
    Table,
    keep_probability_map,
    line_chart,
    removed_by_layer,
    sparsity_chart,
)
from pgprune_lightning.report.included_files import file_section, found_files
from pgprune_lightning.report.run_record import RunRecord, at

MODELS = {"dense": "dense model", "initial": "untrained mask", "learned": "learned mask"}
NATS = "nats per token"
NEAR_BOUND = 0.05
MORE_CURVES = (
    ("Advantage: loss less baseline", "train/advantage", NATS, False),
    ("Loss: standard deviation over the masks", "train/loss_spread", NATS, False),
    ("Norm of the gradient", "train/gradient_norm", "nats per token and unit of s", False),
    ("Expected keep ratio", "policy/expected_keep_ratio", "kept", True),
    ("Parameters removed by the mask", "sparsity/parameters", "removed", True),
)
"""Title, metric, axis and whether it is a share, of the folded curves."""
COMPARED = (
    *("run", "keep ratio", "steps", "dense", "untrained", "learned"),
    *("best validation", "at step", "parameters", "time", "memory"),
)
DECIDING_GROUPS = ("seed_everything", "model", "data", "trainer.max_steps", "trainer.devices")
"""Options that a result depends on; the others say where it is written and what is shown."""

NOT_GIVEN: tuple[Any, ...] = (None, [], {})


def report_page(
    records: Sequence[RunRecord],
    included: Mapping[str, dict[str, Any]],
    title: str,
    command: str,
) -> str:
    """Render the whole page.

    Args:
        records: The runs, at least one.
        included: The content of JSON files of other commands, by name.
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
            files=[file_section(name, content) for name, content in included.items()],
            written=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
            command=command,
        )
    )


def policy_pictures(plan: PruningPlan, initial: PruningPlan | None) -> dict[str, str]:
    """Render the charts of a policy, each as a page of its own for a dashboard.

    Args:
        plan: The policy and its mask.
        initial: The untrained policy, whose mask is drawn beside it.

    Returns:
        HTML by name: keep-probabilities and sparsity by layer of each kind of unit.
    """
    template = _templates().get_template("picture.html")
    charts: dict[str, Chart] = {}
    for kind in plan.space.kinds:
        charts[f"pictures/keep_probabilities/{kind}"] = keep_probability_map(plan, kind)
        charts[f"pictures/sparsity_by_layer/{kind}"] = sparsity_chart(plan, kind, initial)
    return {name: template.render(title=name, chart=chart) for name, chart in charts.items()}


@cache
def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("pgprune_lightning.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        finalize=_without_secrets,
    )
    for name in ("perplexity", "plain", "count", "bytes", "seconds", "share"):
        environment.filters[name] = getattr(number_text, f"{name}_text")
    environment.globals |= {"at": at, "first_known": _first_known, "models": MODELS}
    environment.globals |= {"nothing": NOTHING, "version": __version__}
    return environment


def _first_known(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def _without_secrets(value: Any) -> Any:
    return without_secrets(value) if type(value) is str else value  # Markup is ours


def _run(record: RunRecord, *, alone: bool) -> dict[str, Any]:
    """The variable `run` of run.html; a run that is alone shows its other policies too."""
    plan, initial = record.plan, record.plans.get("initial")
    before = initial if plan is not None and initial and initial.space == plan.space else None
    options = yaml.safe_dump(record.config, sort_keys=False, allow_unicode=True)
    return {
        "record": record,
        "best": best_validation(record),
        "kept_share": _parameters(record, "learned")[1],
        "outcome": _outcome(record),
        "main_curves": _drawn(_loss(record), _validation(record), *_decisions(record)),
        "more_curves": _drawn(*(_single(record, *curve) for curve in MORE_CURVES)),
        "decisions": _changed_decisions(before, plan) if plan and before else None,
        "policy": _policy(plan, before) if plan else [],
        "other_policies": _other_policies(record) if alone else [],
        "units": _units(plan) if plan else None,
        "decisive_options": list(_decisive_options(record)),
        "options": options if record.config else None,
        "files": [file_section(*file) for file in found_files(record.folder).items()],
    }


def best_validation(record: RunRecord) -> Point | None:
    """Step and perplexity of the best validation, from the best plan or else the metrics."""
    best = record.plans.get("best")
    if best is not None and isinstance(best.validation.get("perplexity"), float):
        return float(best.step), best.validation["perplexity"]
    points = record.metrics.get("val/perplexity", [])
    return min(points, key=lambda point: point[1], default=None)


def _outcome(record: RunRecord) -> Table:
    """Perplexity on each text, and parameters, of the dense, untrained and learned model."""
    text, others = record.summary.get("text"), at(record.summary, "learned", "other_texts")
    others = list(others) if isinstance(others, dict) else []
    rows = []
    for key, name in MODELS.items():
        measured = [at(record.summary, key, "other_texts", other) for other in others]
        measured = [] if text is None else [at(record.summary, key, "perplexity"), *measured]
        plan = record.plans.get({"initial": "initial", "learned": "best"}.get(key, ""))
        measured.append(None if plan is None else plan.validation.get("perplexity"))
        parameters, share = _parameters(record, key)
        perplexities = map(perplexity_text, measured)
        rows.append([name, *perplexities, count_text(parameters), share_text(share)])
    texts = [] if text is None else [text, *others]
    validation = record.plan.validation.get("text") if record.plan else None
    texts.append("validation" if validation is None else f"validation: {validation}")
    return Table(["perplexity", *texts, "parameters", "of dense"], rows, chosen=(2,))


def _parameters(record: RunRecord, key: str) -> tuple[float | None, float | None]:
    """Parameters of one of MODELS, and their share of the dense model's."""
    dense = finite(at(record.summary, "dense", "parameters"))
    parameters = finite(at(record.summary, key, "parameters"))
    plan = record.plan if key == "learned" else record.plans.get("initial")
    if plan is not None and parameters is None:
        dense = float(plan.space.total_parameters)
        parameters = dense if key == "dense" else float(plan.kept_parameters)
    return parameters, (parameters / dense if parameters is not None and dense else None)


def _changed_decisions(before: PruningPlan, after: PruningPlan) -> Table:
    """How the decisions of the learned mask differ from those of the untrained mask."""
    rows = []
    for kind in after.space.kinds:
        units_N = after.space.units_of(kind)
        first_N, last_N = before.mask_U[units_N], after.mask_U[units_N]
        s_N = after.keep_probabilities_U[units_N]
        moved = float((s_N - before.keep_probabilities_U[units_N]).abs().mean())
        undecided = float(((s_N > NEAR_BOUND) & (s_N < 1 - NEAR_BOUND)).double().mean())
        counted = (first_N, last_N, first_N & ~last_N, ~first_N & last_N)
        counts = (f"{int(one_N.sum()):,}" for one_N in counted)
        name, number = KIND_NAMES[kind], f"{len(units_N):,}"
        rows.append([name, number, *counts, f"{moved:.3f}", share_text(undecided)])
    head = ["units", "all", "kept untrained", "kept learned", "newly removed", "brought back"]
    return Table([*head, "mean change of s", "s from 0.05 to 0.95"], rows)


def _drawn(*charts: Chart | None) -> list[Chart]:
    return [chart for chart in charts if chart is not None]


def _loss(record: RunRecord) -> Chart | None:
    loss = record.metrics.get("train/loss", [])
    baseline = record.metrics.get("train/baseline", [])
    lines = [Series("loss, mean over the masks", loss, 0, True), Series("baseline", baseline, 1)]
    return line_chart("Loss and baseline", NATS, lines)


def _validation(record: RunRecord) -> Chart | None:
    lines = [Series("perplexity", record.metrics.get("val/perplexity", []))]
    best, spot = best_validation(record), None
    if best is not None:
        spot = best, f"best {perplexity_text(best[1])}, step {best[0]:,.0f}"
    note = _validation_text([record])
    return line_chart("Validation perplexity", "perplexity", lines, spot=spot, note=note)


def _decisions(record: RunRecord) -> list[Chart | None]:
    """How many units of each kind are near a bound."""
    charts: list[Chart | None] = []
    for kind, name in KIND_NAMES.items():
        lower = record.metrics.get(f"policy/near_lower/{kind}")
        if lower is None:
            continue
        upper = record.metrics.get(f"policy/near_upper/{kind}", [])
        at_upper = dict(upper)
        lines = [
            Series("near the upper bound (kept)", upper, 0),
            Series("near the lower bound (removed)", lower, 1),
            Series("undecided", [(x, 1 - y - at_upper[x]) for x, y in lower if x in at_upper], 6),
        ]
        title, axis = f"How s moved to the bounds: {name}", "share of the units"
        note = "Near: within a twentieth of the way from one bound to the other."
        charts.append(line_chart(title, axis, lines, shares=True, note=note))
    return charts


def _single(record: RunRecord, title: str, metric: str, axis: str, shares: bool) -> Chart | None:
    line = Series(title, record.metrics.get(metric, []), with_range=True)
    return line_chart(title, axis, [line], shares=shares)


def _policy(plan: PruningPlan, before: PruningPlan | None) -> list[Chart]:
    maps = [keep_probability_map(plan, kind) for kind in plan.space.kinds]
    return maps + [sparsity_chart(plan, kind, before) for kind in plan.space.kinds]


def _other_policies(record: RunRecord) -> list[tuple[str, list[Chart]]]:
    """The policies before and after the best one."""
    others = []
    for name, title in {"initial": "The untrained policy", "last": "The policy at the end"}.items():
        plan = record.plans.get(name)
        if plan is not None and record.plan is not None and plan.step != record.plan.step:
            maps = [keep_probability_map(plan, kind) for kind in plan.space.kinds]
            others.append((f"{title}, step {plan.step:,}", maps))
    return others


def _units(plan: PruningPlan) -> str:
    space = plan.space
    counts = (f"{len(space.units_of(kind)):,} {KIND_NAMES[kind]}" for kind in space.kinds)
    return f"{', '.join(counts)} in {space.num_layers} layers"


def _decisive_options(record: RunRecord) -> Iterator[tuple[str, str]]:
    """The options of the model and of the batches that are set, a line for each group."""
    model = record.option("model")
    options = {f"model.{name}": model[name] for name in model} if isinstance(model, dict) else {}
    for names in (("train", "path"), ("block_length",), ("batch_size",)):
        options[".".join(("data", *names))] = record.option("data", *names)
    for name, value in options.items():
        if value not in NOT_GIVEN and name != "model.base_model":
            yield name, _value_text(value)


def _compared(records: Sequence[RunRecord]) -> dict[str, Any]:
    """The variable `compared` of compared.html."""
    texts = {_test_text(record) for record in records if record.summary}
    names = [record.name for record in records]
    return {
        "cautions": _cautions(records),
        "text": f"Perplexity on {texts.pop()}, lower is better." if len(texts) == 1 else "",
        "outcomes": Table(COMPARED, [_row(record) for record in records], chosen=_lowest(records)),
        "curves": _compared_curves(records),
        "options": Table(["option", *names], differing_options(records), range(len(names) + 1)),
    }


def _row(record: RunRecord) -> list[str]:
    best, summary = best_validation(record), record.summary
    return [
        record.name,
        plain_text(record.option("model", "keep_ratio")),
        plain_text(summary.get("steps", record.last_step)),
        *(perplexity_text(at(summary, key, "perplexity")) for key in MODELS),
        NOTHING if best is None else perplexity_text(best[1]),
        NOTHING if best is None else f"{best[0]:,.0f}",
        share_text(_parameters(record, "learned")[1]),
        seconds_text(summary.get("seconds")),
        bytes_text(summary.get("peak_memory_bytes")),
    ]


def _lowest(records: Sequence[RunRecord]) -> list[int]:
    """The runs whose learned mask has the lowest perplexity, if they can be compared."""
    values = [at(record.summary, "learned", "perplexity") for record in records]
    if _cautions(records) or not all(isinstance(value, float) for value in values):
        return []
    return [number for number, value in enumerate(values) if value == min(values)]


def _cautions(records: Sequence[RunRecord]) -> list[str]:
    sets: dict[str, set[object]] = {
        "models": {one.plan.base_model.fingerprint for one in records if one.plan is not None},
        "test texts or lengths": {_test_text(one) for one in records if one.summary},
        "keep ratios": {one.option("model", "keep_ratio") for one in records},
    }
    cautions = [
        f"These runs have different {name}: their perplexities do not compare."
        for name, values in sets.items()
        if len(values - {None}) > 1
    ]
    unfinished = ", ".join(one.name for one in records if not one.summary)
    return [*cautions, f"Not finished: {unfinished}."] if unfinished else cautions


def _test_text(record: RunRecord) -> str:
    return f"{record.summary.get('text')} at {record.summary.get('sequence_length')} tokens"


def _validation_text(records: Sequence[RunRecord]) -> str | None:
    """The validation text, if all runs have the same."""
    labels = set()
    for record in records:
        validation = {} if record.plan is None else record.plan.validation
        if "text" in validation:
            labels.add(f"{validation['text']}, {validation.get('sequence_length')} tokens")
    return labels.pop() if len(labels) == 1 else None


def _compared_curves(records: Sequence[RunRecord]) -> list[Chart]:
    """Validation, loss and sparsity by layer of several runs, one line for each run."""
    losses, validations = (
        [Series(one.name, one.metrics.get(metric, []), style) for style, one in enumerate(records)]
        for metric in ("train/loss", "val/perplexity")
    )
    read = _validation_text(records)
    note = "Means over neighbouring steps; each run's masks and texts are its own."
    charts = [
        line_chart("Validation perplexity", "perplexity", validations, note=read),
        line_chart("Training loss", NATS, losses, note=note),
    ]
    for kind, name in KIND_NAMES.items():
        lines = [
            Series(one.name, list(removed_by_layer(one.plan, kind).items()), style)
            for style, one in enumerate(records)
            if one.plan is not None
        ]
        title = f"Sparsity by layer: {name}"
        charts.append(line_chart(title, "removed", lines, x_label="layer", shares=True))
    return _drawn(*charts)


def differing_options(records: Sequence[RunRecord]) -> list[list[str]]:
    """A row for each option whose values differ between the runs: name, then a value each.

    A run of an older program may not know an option of a newer one.
    """
    flat = [dict(_leaves(record.config)) for record in records]
    rows = []
    for name in dict.fromkeys(name for options in flat for name in options):
        values = [options.get(name, NOTHING) for options in flat]
        decides = any(f"{name}.".startswith(f"{group}.") for group in DECIDING_GROUPS)
        if decides and len(set(values)) > 1:
            rows.append([name, *values])
    return rows


def _leaves(options: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in options.items():
        if isinstance(value, dict) and value and "class_path" not in value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", _value_text(value)


def _value_text(value: Any) -> str:
    """A value in a line: classes as calls, a group as `name=value`, one inside it in braces."""
    if isinstance(value, dict) and "class_path" in value:
        arguments = value.get("init_args") or {}
        return f"{str(value['class_path']).rpartition('.')[2]}({_value_text(arguments)})"
    if isinstance(value, dict):
        texts = {name: _value_text(one) for name, one in value.items() if one not in NOT_GIVEN}
        inner = (name for name in texts if isinstance(value[name], dict))
        texts |= {name: f"{{{texts[name]}}}" for name in inner if "class_path" not in value[name]}
        return ", ".join(f"{name}={text}" for name, text in texts.items())
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_value_text(item) for item in value) + "]"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)
