"""Several runs beside each other."""

from __future__ import annotations

from collections.abc import Sequence

from pgprune_lightning.number_text import (
    NOTHING,
    bytes_text,
    perplexity_text,
    plain_text,
    seconds_text,
    share_text,
)
from pgprune_lightning.reporting.curves import best_validation, compared_curves
from pgprune_lightning.reporting.markup import Markup, element
from pgprune_lightning.reporting.outcome import kept_share
from pgprune_lightning.reporting.run_options import differing_options
from pgprune_lightning.reporting.run_record import RunRecord, at
from pgprune_lightning.reporting.tables import details, notes, table

HEAD = [
    *("run", "keep ratio", "steps", "dense", "untrained", "learned"),
    *("best validation", "at step", "parameters", "time", "memory"),
]


def comparison_section(records: Sequence[RunRecord]) -> Markup:
    """One table, the options in which the runs differ, and their curves as lines together."""
    options = differing_options(records)
    return element(
        "section",
        element("h2", "The runs compared", id="compared"),
        notes("Mind", _cautions(records)),
        element("p", _texts(records), class_="soft"),
        table(HEAD, [_row(record) for record in records], chosen=_lowest(records)),
        element("div", *compared_curves(records), class_="charts"),
        details("Options in which they differ", _options(records, options)) if options else None,
    )


def _row(record: RunRecord) -> list[str]:
    best = best_validation(record)
    summary = record.summary
    return [
        record.name,
        plain_text(record.option("model", "keep_ratio")),
        plain_text(summary.get("steps", record.last_step)),
        *(
            perplexity_text(at(summary, key, "perplexity"))
            for key in ("dense", "initial", "learned")
        ),
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
        "models": {_fingerprint(record) for record in records},
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


def _fingerprint(record: RunRecord) -> str | None:
    return None if record.plan is None else record.plan.base_model.fingerprint


def _text(record: RunRecord) -> str:
    return f"{record.summary.get('text')} at {record.summary.get('sequence_length')} tokens"


def _texts(records: Sequence[RunRecord]) -> str:
    texts = {_text(record) for record in records if record.summary}
    return f"Perplexity on {texts.pop()}, lower is better." if len(texts) == 1 else ""


def _options(records: Sequence[RunRecord], rows: list[list[str]]) -> Markup:
    names = [record.name for record in records]
    return table(["option", *names], rows, words=range(len(names) + 1))
