"""The results as tables: for a terminal, as Markdown, and as CSV."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

from rich.console import Console

from pgprune_lightning.comparison.results import Results, grouped
from pgprune_lightning.evaluation.table import (
    LATENCY_VALUES,
    OTHER_VALUES,
    ZERO_SHOT_AVERAGE,
    Table,
    Value,
    leaves,
    perplexity,
    rows_as_csv,
)
from pgprune_lightning.number_text import NOTHING, share_text


def markdown(results: Results) -> str:
    """All tables as Markdown."""
    lines = [f"# {results['title']}", ""]
    for table in _tables(results):
        if table.title:
            lines += [f"## {table.title}", ""]
        lines += [*table.markdown(), ""]
    for note in _notes(results):
        lines += [note, ""]
    source = results["provenance"]
    lines.append(f"`{results['command']}` on {source['device']}, commit {source['commit']}.")
    return "\n".join(lines) + "\n"


def csv_text(results: Results) -> str:
    """One line for each seed of each method in each setting, full precision."""
    return rows_as_csv(list(_csv_rows(results)))


def print_tables(results: Results) -> None:
    """Print all tables to the terminal."""
    console = Console()
    for table in _tables(results):
        table.print(console, results["title"])
    for note in _notes(results):
        console.print(note, markup=False, highlight=False)


def _tables(results: Results) -> list[Table]:
    """One table of all values where there is one setting, and those of extras; else one a value."""
    lengths = results["evaluation_lengths"]
    values = [Value(f"perplexity_{n}", _length_title(results, n), perplexity) for n in lengths]
    extras = _extra_values(results)
    settings = results["settings"]
    if len(settings) == 1:
        (label,) = settings
        methods = settings[label]["methods"]
        # Of their own, because a terminal has room for some nine columns.
        tables = {"": [*values, *OTHER_VALUES], **extras}
        return [_single(title, methods, columns) for title, columns in tables.items()]
    return [
        _by_setting(group, part, value)
        for value in (*values, *chain(*extras.values()), *OTHER_VALUES[1:])
        for group, part in grouped(settings).items()
    ]


def _single(title: str, methods: dict[str, Any], values: Sequence[Value]) -> Table:
    rows = [[name, *(_shown(entry, value) for value in values)] for name, entry in methods.items()]
    return Table(title, ["", *(value.title for value in values)], rows)


def _by_setting(group: str, settings: dict[str, Any], value: Value) -> Table:
    names = dict.fromkeys(name for entry in settings.values() for name in entry["methods"])
    rows = [
        [name, *(_shown(entry["methods"].get(name), value) for entry in settings.values())]
        for name in names
    ]
    return Table(", ".join(filter(None, (group, value.title))), ["", *settings], rows)


def _shown(entry: dict[str, Any] | None, value: Value) -> str:
    if entry is None:
        return NOTHING
    text = value.show(dict(leaves(entry)).get(value.name))
    deviation = dict(leaves(entry["deviation"])).get(value.name)
    return text if not deviation else f"{text} ± {value.show(deviation)}"


def _extra_values(results: Results) -> dict[str, list[Value]]:
    """What is measured where an experiment asks for it, by the title of its table."""
    tasks = results.get("zero_shot", [])
    by_task = [Value(f"zero_shot.{task}", task, share_text) for task in tasks]
    zero_shot = {"zero-shot accuracy": [*by_task, ZERO_SHOT_AVERAGE]} if tasks else {}
    latency = {"forward pass": list(LATENCY_VALUES)} if results.get("latency") else {}
    return zero_shot | latency


def _length_title(results: Results, length: int) -> str:
    mark = " (*)" if length in _beyond_positions(results) else ""
    return f"perplexity at {length}{mark}"


def _entries(results: Results) -> Iterator[dict[str, Any]]:
    for setting in results["settings"].values():
        yield from setting["methods"].values()


def _positions(results: Results) -> int | None:
    """Positions that the models were made for, the fewest of them."""
    return min((e["max_positions"] for e in _entries(results) if e["max_positions"]), default=None)


def _beyond_positions(results: Results) -> list[int]:
    positions = _positions(results)
    lengths: list[int] = results["evaluation_lengths"]
    return [length for length in lengths if positions is not None and length > positions]


def _notes(results: Results) -> list[str]:
    notes = []
    texts = dict.fromkeys(entry["text"] for entry in _entries(results))
    if texts:
        notes.append(f"Perplexity on {', '.join(texts)}; lower is better.")
    if results.get("zero_shot"):
        limit = results["zero_shot_limit"]
        part = f" on the first {limit} examples of each task" if limit else ""
        notes.append(f"Zero-shot accuracy, not normalised by length{part}; higher is better.")
    tuned = dict.fromkeys(
        name
        for setting in results["settings"].values()
        for name, entry in setting["methods"].items()
        if "finetuned" in entry
    )
    if tuned:
        notes.append(
            f"Fine-tuned by low-rank adapters before they were measured: {', '.join(tuned)}; time "
            "and peak memory are those of pruning."
        )
    if results.get("latency"):
        shape = results["latency"]
        notes.append(
            f"Latency: the median of {shape['repetitions']} forward passes of the cut model over "
            f"{shape['batch_size']} x {shape['sequence_length']:,} tokens."
        )
    if _beyond_positions(results):
        notes.append(
            f"(*) The model was made for {_positions(results)} positions; beyond them its rotary "
            "embeddings go on untrained."
        )
    if any(entry["deviation"] for entry in _entries(results)):
        notes.append("Mean ± sample standard deviation over seeds.")
    if any(entry["kind"] == "slicegpt" for entry in _entries(results)):
        notes.append(
            "SliceGPT's parameters include the matrices that it adds to the shortcuts, and an "
            "embedding of its own where the dense model's is tied."
        )
    notes += [f"Failed: {name}: {message}" for name, message in results["errors"].items()]
    return notes


def _csv_rows(results: Results) -> Iterator[dict[str, Any]]:
    for label, setting in results["settings"].items():
        for name, entry in setting["methods"].items():
            for seed in entry["seeds"]:
                yield {"setting": label, "method": name} | dict(leaves(seed))
