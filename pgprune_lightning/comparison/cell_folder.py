"""A cell's folder: what it belongs to, and whether it is finished.

`options.json` is written when a cell begins and says what it is; `cell.json` is written last and
holds its numbers. A folder with the first and without the second is gone on with.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pgprune_lightning.atomic_directory import atomic_directory, claimed_directory
from pgprune_lightning.atomic_write import remove_temp_files, write_atomically
from pgprune_lightning.comparison.cell import Cell
from pgprune_lightning.comparison.cell_identity import digest_of, first_difference
from pgprune_lightning.comparison.experiment import MethodKind
from pgprune_lightning.errors import UserError
from pgprune_lightning.record_file import (
    Count,
    PartOfRecord,
    PositiveCount,
    Record,
    checked,
    read_object,
)
from pgprune_lightning.training.run_folder import free_name

ExistingCells = Literal["reuse", "stop"]

OPTIONS_FILE = "options.json"
RESULT_FILE = "cell.json"

CellResult = dict[str, Any]
"""What `cell.json` holds."""


def check_folders(cells: Sequence[Cell], existing: ExistingCells) -> None:
    """Refuse cells of other options, before anything is computed.

    Args:
        cells: The cells that are wanted.
        existing: `stop`: refuse; `reuse`: they will be moved aside and computed anew.

    Raises:
        UserError: If there is one and it is to stop; it names the first difference.
    """
    for cell in cells if existing == "stop" else ():
        old = _read(cell.folder / OPTIONS_FILE)
        if old is not None and not _is_of(cell, old):
            difference = first_difference(old["identity"], cell.identity)
            raise UserError(
                f"{cell.folder} was computed with other options ({difference}). Choose another "
                "--output, or pass --existing reuse, which moves such cells aside."
            )


def finished_result(cell: Cell) -> CellResult | None:
    """The numbers of a finished cell with the same options; None if there are none."""
    same = _is_of(cell, _read(cell.folder / OPTIONS_FILE))
    return _read(cell.folder / RESULT_FILE) if same else None


def begin(cell: Cell) -> None:
    """Make the folder of a cell that is to be computed; another's is moved aside.

    Raises:
        UserError: If it cannot be written.
    """
    remove_temp_files(cell.folder)
    is_empty = not any(cell.folder.glob("*"))  # as a process leaves it that is killed at once
    if not is_empty and not _is_of(cell, _read(cell.folder / OPTIONS_FILE)):
        cell.folder.rename(free_name(cell.folder))
    description = {"digest": digest_of(cell.identity), "identity": cell.identity}
    write_atomically(cell.folder / OPTIONS_FILE, json.dumps(description, indent=1).encode())


def finish(cell: Cell, result: CellResult) -> None:
    """Write a cell's numbers, by which it counts as finished.

    Raises:
        UserError: If they cannot be written.
    """
    _write_result(cell.folder, result)


def copy_finished(source: Cell, cell: Cell) -> CellResult:
    """Take over the folder of a finished cell with the same options, under this cell's name."""
    if cell.folder.exists():
        cell.folder.rename(free_name(cell.folder))
    result = _read(source.folder / RESULT_FILE)
    assert result is not None, source.folder
    renamed = result | {"setting": cell.setting, "method": cell.method}
    claimed = claimed_directory(cell.folder, "--output")
    with claimed, atomic_directory(cell.folder) as folder:
        shutil.copytree(source.folder, folder, dirs_exist_ok=True)
        _write_result(folder, renamed)
    return renamed


def _write_result(folder: Path, result: CellResult) -> None:
    text = json.dumps(result, indent=1, allow_nan=False)
    write_atomically(folder / RESULT_FILE, text.encode())


def _is_of(cell: Cell, description: dict[str, Any] | None) -> bool:
    """Whether a folder's `options.json` is that of a cell."""
    return description is not None and description["digest"] == digest_of(cell.identity)


class _Options(Record):
    digest: str
    identity: dict[str, Any]


class _Provenance(PartOfRecord):
    commit: str | None
    device: str


class _Result(PartOfRecord):
    """What tables and pictures take for granted; other numbers may be there."""

    setting: str
    method: str
    kind: MethodKind
    seed: Count
    parameters: PositiveCount
    parameters_share: float
    seconds: float
    peak_memory_bytes: Count | None
    text: str
    base_model: str
    max_positions: Count | None
    provenance: _Provenance


def _read(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        of_options = path.name == OPTIONS_FILE
        data = read_object(path, "compare", finite=not of_options)  # an option may be infinite
        checked(_Options if of_options else _Result, data, path, "compare")
    except UserError as error:
        raise UserError(f"{error} To compute the cell anew, delete {path.parent}.") from error
    return data
