"""Results of other commands that belong to a run: exports, evaluations, comparisons."""

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

EXPORT_FILE = "export.json"
DEEPEST_EXPORT = 3
MOST_ROWS = 200
MOST_COLUMNS = 12
MOST_ITEMS = 10
MEASURED = (
    *("parameters", "disk_bytes", "perplexity", "zero_shot"),
    *("speed.prefill_tokens", "speed.decode_tokens", "speed.peak_memory"),
)
"""Values of a model in a result of `evaluate` that are shown at once."""
OWN_FILES = frozenset({"summary.json"})


Part = tuple[str, Any]
"""A piece of a section: ("table", Table), ("facts", [(name, value)]) or ("heading", text)."""


@dataclass(frozen=True)
class IncludedFile:
    """A JSON file that the report shows.

    Args:
        name: Its name in the report.
        content: Its object; None where it is damaged.
    """

    name: str
    content: dict[str, Any] | None


@dataclass(frozen=True)
class FileSection:
    """A file as the template shows it.

    Args:
        name: The file's name.
        title: The section's title.
        damaged: Whether the file could not be read.
        shown: The parts shown at once.
        folded: The parts that a click unfolds.
        folded_title: Where to click.
    """

    name: str
    title: str
    damaged: bool = False
    shown: Sequence[Part] = ()
    folded: Sequence[Part] = ()
    folded_title: str = "Everything in it"


def read_included(path: Path) -> IncludedFile:
    """Read a file that the user names.

    Raises:
        UserError: If it is no JSON object.
    """
    return IncludedFile(str(path), hidden(read_object(path, "--include", finite=False)))


def found_files(folder: Path) -> list[IncludedFile]:
    """Exports in a run's folder, and other JSON files beside its summary."""
    beside = [path for path in sorted(folder.glob("*.json")) if path.name not in OWN_FILES]
    deeper = [
        path
        for depth in range(1, DEEPEST_EXPORT + 1)
        for path in sorted(folder.glob("*/" * depth + EXPORT_FILE))
    ]
    found = []
    for path in [*beside, *deeper]:
        try:
            content = read_included(path).content
        except UserError:
            content = None
        found.append(IncludedFile(path.relative_to(folder).as_posix(), content))
    return found


def file_section(file: IncludedFile) -> FileSection:
    """Arrange a file by the command that wrote it."""
    content = file.content
    if content is None:
        return FileSection(file.name, file.name, damaged=True)
    if "runtimes" in content and "format" in content:
        return _export(file.name, content)
    if isinstance(content.get("models"), list) and "protocol" in content:
        return _evaluation(file.name, content)
    if isinstance(content.get("settings"), dict):
        return _comparison(file.name, content)
    return FileSection(file.name, file.name, shown=_any(content))


def _export(name: str, content: dict[str, Any]) -> FileSection:
    counted = [
        _against("parameters", content, count_text),
        _against("bytes", content, bytes_text),
        ("largest difference of a logit", plain_text(content.get("max_logit_difference"))),
    ]
    runtimes = content["runtimes"] if isinstance(content["runtimes"], dict) else {}
    rows = [
        [str(runtime), bool(at(verdict, "accepts")), str(at(verdict, "reason") or "")]
        for runtime, verdict in runtimes.items()
    ]
    shown: list[Part] = [("facts", counted)]
    if rows:
        shown.append(("table", Table(["runtime", "takes it", "why"], rows, words=(0, 1, 2))))
    known = {"parameters", "dense_parameters", "bytes", "dense_bytes", "max_logit_difference"}
    rest = {key: value for key, value in content.items() if key not in known | {"runtimes"}}
    return FileSection(name, f"Export: {content['format']}", shown=shown, folded=_any(rest))


def _against(name: str, content: dict[str, Any], as_text: Any) -> tuple[str, str]:
    count, dense = finite(content.get(name)), finite(content.get(f"dense_{name}"))
    share = "" if not count or not dense else f", {share_text(count / dense)} of dense"
    return name, f"{as_text(count)}{share}"


def _evaluation(name: str, content: dict[str, Any]) -> FileSection:
    """Show the measurements of each model; fold how they were made."""
    measured = []
    for model in content["models"]:
        values = {"model": at(model, "model")}
        for key, value in _leaves(model):
            if key.startswith(MEASURED):
                values[key.replace(".", ": ").replace("_", " ")] = value
        measured.append(values)
    shown = _records(measured, transposed=True)
    return FileSection(name, "Evaluation", shown=shown, folded=_any(content))


def _comparison(name: str, content: dict[str, Any]) -> FileSection:
    records = []
    for setting, cells in content["settings"].items():
        methods = at(cells, "methods")
        for method, cell in (methods if isinstance(methods, dict) else {}).items():
            values = cell if isinstance(cell, dict) else {}
            numbers = {key: value for key, value in values.items() if finite(value) is not None}
            row_name = method if len(content["settings"]) == 1 else f"{method}, {setting}"
            records.append({"method": row_name} | numbers)
    rest = {key: value for key, value in content.items() if key != "settings"}
    title = f"Comparison: {content.get('title', name)}"
    return FileSection(name, title, False, _records(records), _any(rest), "Everything else in it")


def _any(content: dict[str, Any]) -> list[Part]:
    """Lists of objects as tables, the rest as facts."""
    parts: list[Part] = []
    for name, value in content.items():
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            parts += [("heading", str(name)), *_records(value)]
    pairs = [(name, text) for name, text in _leaves(content) if text]
    return [*parts, ("facts", pairs[:MOST_ROWS])] if pairs else parts


def _records(records: list[dict[str, Any]], *, transposed: bool = False) -> list[Part]:
    """A row a record; a column where few records, such as models, have many values."""
    flat = [dict(_leaves(record)) for record in records[:MOST_ROWS]]
    names = list(dict.fromkeys(name for record in flat for name in record))[:MOST_ROWS]
    columns = [[name, *(record.get(name) or NOTHING for record in flat)] for name in names]
    if not columns:
        return []
    if transposed or len(flat) < MOST_COLUMNS < len(names):
        return [("table", Table(columns[0], columns[1:]))]
    rows = list(zip(*columns[:MOST_COLUMNS], strict=True))
    return [("table", Table(rows[0], rows[1:]))]


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(inner, f"{prefix}.{name}" if prefix else str(name))
    elif isinstance(value, list) and not any(isinstance(item, dict) for item in value):
        said = ", ".join(plain_text(item) for item in value[:MOST_ITEMS])
        yield prefix, f"{said}, …" if len(value) > MOST_ITEMS else said
    elif not isinstance(value, list):
        yield prefix, plain_text(value)
