"""Plans with an edited field: a command that reads one refuses it, or gives the right result."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.faults.commands import Command, Commands, left_in
from tests.faults.processes import refusal
from tests.faults.tally import Tally
from tests.plan_edits import edits

DESCRIPTION = "plans/best/plan.json"


def edit_plans(commands: Commands, number: int) -> Tally:
    """Give each of the first so many edits to `export`, `evaluate` and `report`."""
    tally, run = Tally(), commands.runs.run_dir("whole")
    readers = {reader: _results_without_edit(reader, run) for reader in _readers(commands, run)}
    plan = json.loads((run / DESCRIPTION).read_text())
    for index, (name, text) in enumerate(edits(plan)[:number]):
        losses = []
        for reader, results in readers.items():
            if loss := _read(reader, f"edit-{index}", run, text, results):
                losses.append(f"{reader.name}: {loss}")
        tally.add(name, "; ".join(losses))
    return tally


def _readers(commands: Commands, run: Path) -> list[Command]:
    """The commands that read a run, each for the copy of it in its own place."""
    folder = commands.runs.folder
    report = Command("report", ("report", str(run), "--output", "PLACE/out.html"), folder, folder)
    readers = [command for command in (*commands.each, report) if command.name in RESULTS]
    return [
        replace(
            reader,
            name=f"{reader.name} of edited",
            arguments=tuple(text.replace(str(run), "PLACE/run") for text in reader.arguments),
        )
        for reader in readers
    ]


def _results_without_edit(reader: Command, run: Path) -> Any:
    shutil.copytree(run, reader.place("whole") / "run")
    reader.whole()
    return _results(reader, "whole")


def _read(reader: Command, name: str, run: Path, text: str, expected: Any) -> str:
    place = reader.place(name)
    shutil.copytree(run, place / "run")
    (place / "run" / DESCRIPTION).write_text(text)
    if status := reader.run(name):
        return refusal(status, reader.log(name))
    if _results(reader, name) != expected:
        return "another result"
    shutil.rmtree(place)
    return ""


def _results(reader: Command, name: str) -> Any:
    return RESULTS[reader.name.removesuffix(" of edited")](reader.place(name))


def _exported(place: Path) -> Any:
    files = left_in(place / "out")
    del files["export.json"]  # which repeats what the plan says
    return files


def _perplexities(place: Path) -> Any:
    models = json.loads((place / "out.json").read_text())["models"]
    return [model["perplexity"] for model in models]


def _is_whole_page(place: Path) -> Any:
    return (place / "out.html").read_text().rstrip().endswith("</html>")


RESULTS: dict[str, Callable[[Path], Any]] = {
    "export": _exported,
    "evaluate": _perplexities,
    "report": _is_whole_page,
}
"""What of the results of a command does not repeat the fields of a plan."""
