"""Whose a trial's folder is, and what a killed process leaves of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pgprune_lightning.atomic_write import TEMPORARY
from pgprune_lightning.comparison import load_experiment
from pgprune_lightning.comparison.trial import Trial, begin, trials_of

LEFT = f"{TEMPORARY}0123456789abcdef"


@pytest.fixture
def trial(experiment_file: Callable[..., Path], tmp_path: Path) -> Trial:
    path = experiment_file(methods={"dense": {"kind": "dense"}}, settings=None)
    (trial,) = trials_of(load_experiment(path), tmp_path / "out")
    return trial


@pytest.mark.parametrize("left", [[], [LEFT]])
def test_a_folder_that_a_killed_process_left_empty_is_used(trial: Trial, left: list[str]) -> None:
    trial.folder.mkdir(parents=True)
    for name in left:
        (trial.folder / name).touch()
    begin(trial)
    assert [path.name for path in trial.folder.iterdir()] == ["options.json"]
    assert [path.name for path in trial.folder.parent.iterdir()] == ["seed0"]


def test_another_trial_is_moved_aside(trial: Trial) -> None:
    trial.folder.mkdir(parents=True)
    (trial.folder / "options.json").write_text('{"digest": "of another", "cache_key": {}}')
    begin(trial)
    assert {path.name for path in trial.folder.parent.iterdir()} == {"seed0", "seed0-1"}
