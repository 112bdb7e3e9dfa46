"""Results of other commands that belong to a run: exports, evaluations, comparisons."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgprune_lightning.credentials import without_secrets
from pgprune_lightning.errors import UserError
from pgprune_lightning.number_text import (
    NOTHING,
    bytes_text,
    count_text,
    finite,
    plain_text,
    share_text,
)
from pgprune_lightning.reporting.markup import Markup, element, joined
from pgprune_lightning.reporting.run_record import at
from pgprune_lightning.reporting.tables import details, facts, table

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


@dataclass(frozen=True)
class IncludedFile:
    """A JSON file that the report shows.

    Args:
        name: What it is called there.
        content: What it holds; None where it is damaged.
    """

    name: str
    content: dict[str, Any] | None


def read_included(path: Path) -> IncludedFile:
    """Read a file that the user names.

    Raises:
        UserError: If it is no JSON object.
    """
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"--include: {path} cannot be read as JSON: {error}.") from error
    if not isinstance(content, dict):
        raise UserError(f"--include: {path} holds no JSON object; give a result of a command.")
    return IncludedFile(str(path), content)


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


def included_section(file: IncludedFile, heading: str) -> Markup:
    """A file as a section.

    Args:
        file: The file.
        heading: Tag of its title.
    """
    content = file.content
    if content is None:
        damaged = element("p", "It is damaged: not a JSON object.")
        return joined(element(heading, file.name), damaged)
    if "runtimes" in content and "format" in content:
        body = _export(content)
        title = f"Export: {content['format']}"
    elif isinstance(content.get("models"), list) and "protocol" in content:
        body, title = _evaluation(content), "Evaluation"
    elif isinstance(content.get("settings"), dict):
        body, title = _comparison(content), f"Comparison: {content.get('title', file.name)}"
    else:
        body, title = _any(content), file.name
    where = element("p", file.name, class_="soft") if title != file.name else None
    return element("section", element(heading, title), where, body)


def _export(content: dict[str, Any]) -> Markup:
    counted = [
        _against("parameters", content, count_text),
        _against("bytes", content, bytes_text),
        ("largest difference of a logit", plain_text(content.get("max_logit_difference"))),
    ]
    runtimes = content["runtimes"] if isinstance(content["runtimes"], dict) else {}
    rows = []
    for name, verdict in runtimes.items():
        accepts = at(verdict, "accepts")
        said = element("span", "yes" if accepts else "no", class_="yes" if accepts else "no")
        rows.append([str(name), said, str(at(verdict, "reason") or "")])
    shown = {"parameters", "dense_parameters", "bytes", "dense_bytes", "max_logit_difference"}
    rest = {name: value for name, value in content.items() if name not in shown | {"runtimes"}}
    return joined(
        facts(counted),
        table(["runtime", "takes it", "why"], rows, words=(0, 1, 2)) if rows else None,
        details("Everything in it", _any(rest)),
    )


def _against(name: str, content: dict[str, Any], said: Any) -> tuple[str, str]:
    count, dense = finite(content.get(name)), finite(content.get(f"dense_{name}"))
    share = "" if not count or not dense else f", {share_text(count / dense)} of dense"
    return name, f"{said(count)}{share}"


def _evaluation(content: dict[str, Any]) -> Markup:
    """What was measured of each model; how, and of what, folded."""
    measured = []
    for model in content["models"]:
        values = {"model": at(model, "model")}
        for name, value in _leaves(model):
            if name.startswith(MEASURED):
                values[name.replace(".", ": ").replace("_", " ")] = value
        measured.append(values)
    return joined(_records(measured, transposed=True), details("Everything in it", _any(content)))


def _comparison(content: dict[str, Any]) -> Markup:
    records = []
    for setting, cells in content["settings"].items():
        methods = at(cells, "methods")
        for method, cell in (methods if isinstance(methods, dict) else {}).items():
            values = cell if isinstance(cell, dict) else {}
            numbers = {name: value for name, value in values.items() if finite(value) is not None}
            name = method if len(content["settings"]) == 1 else f"{method}, {setting}"
            records.append({"method": name} | numbers)
    rest = {name: value for name, value in content.items() if name != "settings"}
    return joined(_records(records), details("Everything else in it", _any(rest)))


def _any(content: dict[str, Any]) -> Markup:
    """Lists of objects as tables, the rest as facts."""
    tables = []
    for name, value in content.items():
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            tables.append(joined(element("p", str(name), class_="soft"), _records(value)))
    pairs = [(name, text) for name, text in _leaves(content) if text]
    return joined(*tables, facts(pairs[:MOST_ROWS]) if pairs else None)


def _records(records: list[dict[str, Any]], *, transposed: bool = False) -> Markup:
    """A row a record; a column where few records, such as models, have many values."""
    flat = [dict(_leaves(record)) for record in records[:MOST_ROWS]]
    names = list(dict.fromkeys(name for record in flat for name in record))[:MOST_ROWS]
    columns = [[name, *(record.get(name) or NOTHING for record in flat)] for name in names]
    if not columns:
        return joined()
    if transposed or len(flat) < MOST_COLUMNS < len(names):
        return table(columns[0], columns[1:])
    rows = list(zip(*columns[:MOST_COLUMNS], strict=True))
    return table(rows[0], rows[1:])


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(inner, f"{prefix}.{name}" if prefix else str(name))
    elif isinstance(value, list) and not any(isinstance(item, dict) for item in value):
        said = ", ".join(without_secrets(plain_text(item)) for item in value[:MOST_ITEMS])
        yield prefix, f"{said}, …" if len(value) > MOST_ITEMS else said
    elif not isinstance(value, list):
        yield prefix, without_secrets(plain_text(value))
