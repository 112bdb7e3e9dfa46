"""Every kind of bad input: one clear error, status 2, no traceback, and nothing overwritten."""

from __future__ import annotations

from pathlib import Path

import yaml

from tests.damaged_files import CHECKPOINTS, PLANS, spoiled
from tests.faults.processes import refusal
from tests.faults.tally import Tally
from tests.faults.warm_runs import WarmRuns
from tests.test_bad_input import (
    BEFORE_ANYTHING_IS_READ,
    BEFORE_THE_MODEL_IS_LOADED,
    make_wrong_files,
)
from tests.tiny_commands import tiny_config
from tests.tiny_runs import write_tiny_model, write_tiny_texts

OPTIONS = BEFORE_ANYTHING_IS_READ | BEFORE_THE_MODEL_IS_LOADED


def make_tiny_runs(folder: Path) -> WarmRuns:
    """Runs of the random model that the catalogues of bad input are written for."""
    model, texts = write_tiny_model(folder / "m"), write_tiny_texts(folder / "t")
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(tiny_config(model, texts, folder / "run")))
    return WarmRuns(path, folder)


def give_bad_input(runs: WarmRuns, number: int) -> Tally:
    """Give each of the first so many kinds to a run of its own, beside a finished one.

    Args:
        runs: Runs of the model that the catalogues of bad input are written for.
        number: How many.
    """
    tally, wrong = Tally(), runs.folder / "wrong"
    wrong.mkdir()
    make_wrong_files(wrong)
    runs.whole()
    finished = runs.run_dir("whole")
    for name in [*OPTIONS, *CHECKPOINTS, *PLANS][:number]:
        if name in OPTIONS:
            options, *phrases = OPTIONS[name]
            given = [option.format(wrong) for option in options]
        else:
            given, phrases = spoiled(name, finished, runs.folder / f"spoiled {name}")
        tally.add(name, _refusal(runs, name, finished, given, tuple(phrases)))
    return tally


def _refusal(
    runs: WarmRuns, name: str, finished: Path, options: list[str], phrases: tuple[str, ...]
) -> str:
    before = _contents(finished)
    status = runs.run(name, *options)
    if wrong := refusal(status, runs.log(name), *phrases):
        return wrong
    if _contents(finished) != before:
        return "it changed another run"
    if any((runs.run_dir(name) / kept).exists() for kept in ("plans", "checkpoints")):
        return "it began to train"
    return ""


def _contents(folder: Path) -> dict[Path, tuple[int, int]]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in files}
