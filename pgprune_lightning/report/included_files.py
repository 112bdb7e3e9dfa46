"""JSON files of other commands that belong to a run: exports, evaluations, comparisons."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgprune_lightning.credentials import hidden
from pgprune_lightning.errors import UserError
from pgprune_lightning.number_text import (
    NOTHING,
    bytes_text,
    count_text,
    finite,
    plain_text,
    share_text,
)
from pgprune_lightning.record_file import read_object
from pgprune_lightning.report.charts import Table
from pgprune_lightning.report.run_record import at

EXPORTS = ("*/export.json", "*/*/export.json", "*/*/*/export.json")
MOST_ROWS = 200
MOST_COLUMNS = 12
MOST_ITEMS = 10
MEASURED = (
    *("parameters", "disk_bytes", "perplexity", "zero_shot"),
    *("speed.prefill_tokens", "speed.decode_tokens", "speed.peak_memory"),
)
"""The values of a model in a result of `evaluate` that are shown unfolded."""

Part = Table | list[tuple[str, str]]
"""A piece of a section: a table, or names and values."""


@dataclass(frozen=True)
class FileSection:
    """A file as `templates/parts.html` shows it.

    Args:
        name: The file's name.
        title: The section's title.
        shown: The parts that are shown.
        folded: The parts that a click unfolds.
        damaged: Whether the file cannot be read.
    """

    name: str
    title: str
    shown: Sequence[Part] = ()
    folded: Sequence[Part] = ()
    damaged: bool = False


def read_included(path: Path) -> dict[str, Any]:
    """Read a file that the user names, without its secrets.

    Raises:
        UserError: If it is no JSON object.
    """
    content: dict[str, Any] = hidden(read_object(path, "--include", finite=False))
    return content


def found_files(folder: Path) -> dict[str, dict[str, Any] | None]:
    """The exports in a run's folder and the JSON files beside its summary; None for damaged."""
    beside = [path for path in sorted(folder.glob("*.json")) if path.name != "summary.json"]
    exports = [path for pattern in EXPORTS for path in sorted(folder.glob(pattern))]
    found: dict[str, dict[str, Any] | None] = {}
    for path in [*beside, *exports]:
        name = path.relative_to(folder).as_posix()
        try:
            found[name] = read_included(path)
        except UserError:
            found[name] = None
    return found


def file_section(name: str, content: dict[str, Any] | None) -> FileSection:
    """Arrange a file by the command that wrote it; a content of None is damaged."""
    if content is None:
        return FileSection(name, name, damaged=True)
    if "runtimes" in content and "format" in content:
        shown, rest = _export(content)
        return FileSection(name, f"Export: {content['format']}", shown, _any(rest))
    if isinstance(content.get("models"), list) and "protocol" in content:
        return FileSection(name, "Evaluation", _evaluation(content["models"]), _any(content))
    if isinstance(content.get("settings"), dict):
        rest = {key: value for key, value in content.items() if key != "settings"}
        title = f"Comparison: {content.get('title', name)}"
        return FileSection(name, title, _comparison(content["settings"]), _any(rest))
    return FileSection(name, name, _any(content))


def _export(content: dict[str, Any]) -> tuple[list[Part], dict[str, Any]]:
    """Sizes and runtimes of an export, and its other values."""
    facts = []
    for name, as_text in (("parameters", count_text), ("bytes", bytes_text)):
        number, dense = finite(content.get(name)), finite(content.get(f"dense_{name}"))
        share = f", {share_text(number / dense)} of dense" if number and dense else ""
        facts.append((name, f"{as_text(number)}{share}"))
    difference = plain_text(content.get("max_logit_difference"))
    facts.append(("largest difference of a logit", difference))
    runtimes = content["runtimes"] if isinstance(content["runtimes"], dict) else {}
    rows = [
        [str(runtime), bool(at(verdict, "accepts")), str(at(verdict, "reason") or "")]
        for runtime, verdict in runtimes.items()
    ]
    verdicts = [Table(["runtime", "takes it", "why"], rows, words=(0, 1, 2))] if rows else []
    told = {"parameters", "dense_parameters", "bytes", "dense_bytes", "max_logit_difference"}
    rest = {name: content[name] for name in content if name not in told | {"runtimes"}}
    return [facts, *verdicts], rest


def _evaluation(models: list[Any]) -> list[Part]:
    """A column for each model, a row for each measurement."""
    measured = []
    for model in models:
        values = {"model": at(model, "model")}
        for key, value in _leaves(model):
            if key.startswith(MEASURED):
                values[key.replace(".", ": ").replace("_", " ")] = value
        measured.append(values)
    return _records(measured, transposed=True)


def _comparison(settings: dict[str, Any]) -> list[Part]:
    """A row for each method in each setting."""
    records = []
    for setting, of_setting in settings.items():
        methods = at(of_setting, "methods")
        for method, measured in (methods if isinstance(methods, dict) else {}).items():
            values = measured if isinstance(measured, dict) else {}
            numbers = {key: value for key, value in values.items() if finite(value) is not None}
            name = method if len(settings) == 1 else f"{method}, {setting}"
            records.append({"method": name} | numbers)
    return _records(records)


def _any(content: dict[str, Any]) -> list[Part]:
    """Lists of objects as tables, the rest as names and values."""
    parts: list[Part] = []
    for name, value in content.items():
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            parts += _records(value, title=str(name))
    pairs = [(name, text) for name, text in _leaves(content) if text]
    return [*parts, pairs[:MOST_ROWS]] if pairs else parts


def _records(
    records: list[dict[str, Any]], *, title: str = "", transposed: bool = False
) -> list[Part]:
    """A row for each record; a column if few records, such as models, have many values."""
    flat = [dict(_leaves(record)) for record in records[:MOST_ROWS]]
    names = list(dict.fromkeys(name for record in flat for name in record))[:MOST_ROWS]
    lines = [[name, *(record.get(name) or NOTHING for record in flat)] for name in names]
    if not (transposed or len(flat) < MOST_COLUMNS < len(names)):
        lines = [list(row) for row in zip(*lines[:MOST_COLUMNS], strict=True)]
    return [Table(lines[0], lines[1:], title=title)] if lines else []


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """The values deep in an object as text, by their path; lists of objects are left out."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(inner, f"{prefix}.{name}" if prefix else str(name))
    elif not isinstance(value, list):
        yield prefix, plain_text(value)
    elif not any(isinstance(item, dict) for item in value):
        items = [plain_text(item) for item in value[:MOST_ITEMS]]
        yield prefix, ", ".join([*items, "…"] if len(value) > MOST_ITEMS else items)
