"""The result as one table, measures down and models across; and as CSV, a line a model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console

from pgprune_lightning.evaluation.table import (
    OVERFLOW,
    Table,
    Value,
    leaves,
    perplexity,
    rows_as_csv,
)
from pgprune_lightning.number_text import (
    NOTHING,
    bytes_text,
    count_text,
    latency_text,
    plain_text,
    share_text,
)

Result = dict[str, Any]
Flat = dict[str, Any]

_SIZES = (Value("parameters", "parameters", count_text),)
_DISK = Value("disk_bytes", "size on disk", bytes_text)
_SPEED = (
    Value("speed.prefill_tokens_per_second", "prefill, tokens/s", plain_text),
    Value("speed.decode_tokens_per_second", "decode, tokens/s", plain_text),
    Value("speed.prefill_seconds", "latency of prefill", latency_text),
    Value("speed.decode_seconds_per_token", "latency of a token", latency_text),
    Value("speed.peak_memory_bytes", "peak memory", bytes_text),
)


def print_table(result: Result) -> None:
    """Print the table and its notes to the terminal."""
    console = Console()
    _table(result).print(console)
    for note in _notes(result):
        console.print(note, markup=False, highlight=False)


def markdown(result: Result) -> str:
    """The table and its notes as Markdown."""
    lines = _table(result).markdown()
    for note in _notes(result):
        lines += ["", note]
    source = result["provenance"]
    lines += ["", f"`{source['command']}` on {source['device']}, commit {source['commit']}."]
    return "\n".join(lines) + "\n"


def csv_text(result: Result) -> str:
    """One line for each model, full precision."""
    return rows_as_csv([_without_lists(model) for model in result["models"]])


def _without_lists(model: dict[str, Any]) -> Flat:
    return {name: value for name, value in leaves(model) if not isinstance(value, list)}


def _table(result: Result) -> Table:
    models = [dict(leaves(model)) for model in result["models"]]
    rows = [[title, *cells] for title, cells in _rows(result, models)]
    return Table("", ["", *(model["model"] for model in models)], rows)


def _rows(result: Result, models: list[Flat]) -> Iterator[tuple[str, list[str]]]:
    for passage in result["passages"]:
        key = f"perplexity.{passage['title']}"
        mark = " (*)" if _is_beyond_positions(passage, result) else ""
        cells = [perplexity(model[key]) if key in model else NOTHING for model in models]
        yield f"{passage['title']}{mark}", cells
    tasks = (result["protocol"]["zero_shot"] or {}).get("tasks", [])
    accuracies = [Value(f"zero_shot.{task}", task, share_text) for task in tasks]
    if len(tasks) > 1:
        accuracies.append(Value("zero_shot_average", "zero-shot average", share_text))
    yield from (_row(value, models) for value in (*accuracies, *_SIZES))
    if len(models) > 1:
        first = models[0]
        shares = [share_text(model["parameters"] / first["parameters"]) for model in models]
        yield f"of {first['model']}", shares
    speed = _SPEED if result["protocol"]["speed"] else ()
    for value in (_DISK, *speed):
        title, cells = _row(value, models)
        if set(cells) != {NOTHING}:
            yield title, cells


def _row(value: Value, models: list[Flat]) -> tuple[str, list[str]]:
    found = [model.get(value.name) for model in models]
    return value.title, [NOTHING if each is None else value.show(each) for each in found]


def _positions(result: Result) -> int | None:
    """Positions that the models were made for, the fewest of them."""
    known = [model["max_positions"] for model in result["models"] if model["max_positions"]]
    return min(known, default=None)


def _is_beyond_positions(passage: dict[str, Any], result: Result) -> bool:
    positions = _positions(result)
    return positions is not None and passage["length"] > positions


def _notes(result: Result) -> Iterator[str]:
    protocol = result["protocol"]
    if protocol["perplexity"]:
        read = protocol["perplexity"]["tokens"]
        part = f" on {read:,} tokens of each text at most" if read else ""
        yield f"Perplexity{part} in blocks of so many tokens; lower is better."
    if any(passage["stride"] for passage in result["passages"]):
        yield "With a stride, windows overlap and each token is scored once, by the first of them."
    if any(_is_beyond_positions(passage, result) for passage in result["passages"]):
        yield f"(*) A model was made for {_positions(result)} positions, and reads beyond them."
    if protocol["zero_shot"]:
        limit = protocol["zero_shot"]["limit"]
        part = f" on the first {limit} examples of each task" if limit else ""
        yield f"Zero-shot accuracy, not normalised by length{part}; higher is better."
    if speed := protocol["speed"]:
        yield (
            f"Speed: medians of {speed['repetitions']} generations in turn, batches of "
            f"{speed['batch_size']}: {speed['prompt_tokens']} tokens read, then "
            f"{speed['new_tokens']} written one by one with a cache."
        )
    values = [v for model in result["models"] for v in model.get("perplexity", {}).values()]
    if None in values:
        yield f"{OVERFLOW}: the loss is too great for its exponential."
    if any(model["kind"] == "llama.cpp" for model in result["models"]) and protocol["zero_shot"]:
        yield "Zero-shot tasks are asked of models that transformers runs."
    for name, message in result["errors"].items():
        yield f"Failed: {name}: {message}"
