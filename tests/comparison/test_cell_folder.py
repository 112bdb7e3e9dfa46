"""Whose a cell's folder is, and what a killed process leaves of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pgprune_lightning.atomic_write import TEMPORARY
from pgprune_lightning.comparison import load_experiment
from pgprune_lightning.comparison.cell import Cell, cells_of
from pgprune_lightning.comparison.cell_folder import begin

LEFT = f"{TEMPORARY}0123456789abcdef"


@pytest.fixture
def cell(experiment_file: Callable[..., Path], tmp_path: Path) -> Cell:
    path = experiment_file(methods={"dense": {"kind": "dense"}}, settings=None)
    (cell,) = cells_of(load_experiment(path), tmp_path / "out")
    return cell


@pytest.mark.parametrize("left", [[], [LEFT]])
def test_a_folder_that_a_killed_process_left_empty_is_used(cell: Cell, left: list[str]) -> None:
    cell.folder.mkdir(parents=True)
    for name in left:
        (cell.folder / name).touch()
    begin(cell)
    assert [path.name for path in cell.folder.iterdir()] == ["options.json"]
    assert [path.name for path in cell.folder.parent.iterdir()] == ["seed0"]


def test_another_cell_is_moved_aside(cell: Cell) -> None:
    cell.folder.mkdir(parents=True)
    (cell.folder / "options.json").write_text('{"digest": "of another", "identity": {}}')
    begin(cell)
    assert {path.name for path in cell.folder.parent.iterdir()} == {"seed0", "seed0-1"}
