"""Running all cells of an experiment, and writing what comes of them."""

from __future__ import annotations

import gc
import json
import sys
import traceback
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from pgprune_lightning.atomic_write import remove_temp_files, write_atomically
from pgprune_lightning.comparison import pictures, table
from pgprune_lightning.comparison.cell import Cell, cells_of
from pgprune_lightning.comparison.cell_folder import (
    CellResult,
    ExistingCells,
    begin,
    check_folders,
    copy_finished,
    finish,
    finished_result,
)
from pgprune_lightning.comparison.cell_identity import digest_of
from pgprune_lightning.comparison.cell_result import compute_cell
from pgprune_lightning.comparison.experiment import Experiment
from pgprune_lightning.comparison.extras import check_extras
from pgprune_lightning.comparison.results import Results, collect
from pgprune_lightning.comparison.table_values import perplexity
from pgprune_lightning.console import print_error
from pgprune_lightning.errors import UserError
from pgprune_lightning.masking.model_reuse import one_model_kept
from pgprune_lightning.number_text import seconds_text

LOG_FILE = "log.txt"


def run_comparison(
    experiment: Experiment, output: Path, existing: ExistingCells, command: str
) -> bool:
    """Compute the cells that are not there yet, then write tables, pictures and `compare.json`.

    Args:
        experiment: What is compared.
        output: Folder of the results.
        existing: What to do with cells that were computed with other options.
        command: How the program was called.

    Returns:
        Whether every cell is there, and on the disk.

    Raises:
        UserError: If a cell's options cannot work, before any of them is computed.
    """
    cells = cells_of(experiment, output)
    check_folders(cells, existing)
    remove_temp_files(output)
    check_extras(experiment, [cell for cell in cells if finished_result(cell) is None])
    print(f"{experiment.title}: {len(cells)} cells, each with a log in {output}/cells", flush=True)
    finished: list[tuple[Cell, CellResult]] = []
    errors: list[tuple[Cell, str]] = []
    with one_model_kept():
        for cell in cells:
            try:
                finished.append((cell, _result(cell, experiment, finished)))
            except Exception as error:  # other cells are worth having without this one
                errors.append((cell, _report(cell, error)))
    _write(experiment, collect(experiment, finished, errors, command), output)
    deleted = [cell for cell, _ in finished if finished_result(cell) is None]
    for cell in deleted:
        print_error(
            f"{cell.title}: {cell.folder}, or a part of it, was deleted during the run. The tables "
            "have its numbers; the same command computes it again."
        )
    return not (errors or deleted)


def _result(
    cell: Cell, experiment: Experiment, finished: Sequence[tuple[Cell, CellResult]]
) -> CellResult:
    result = finished_result(cell)
    origin = "from an earlier run"
    if result is None:
        digest = digest_of(cell.identity)
        same = [other for other, _ in finished if digest_of(other.identity) == digest]
        origin = f"as in {same[0].setting} / {same[0].method}" if same else ""
        result = copy_finished(same[0], cell) if same else _computed(cell, experiment)
    _print_result(cell, experiment, result, origin)
    return result


def _computed(cell: Cell, experiment: Experiment) -> CellResult:
    begin(cell)
    # Line by line, so that a long run can be watched.
    with (
        (cell.folder / LOG_FILE).open("a", buffering=1) as log,
        redirect_stdout(log),
        redirect_stderr(log),
    ):
        try:
            result = compute_cell(cell, experiment)
        except Exception:
            traceback.print_exc()
            raise
    finish(cell, result)
    gc.collect()  # Trainer and module refer to each other, and to the model
    return result


def _print_result(cell: Cell, experiment: Experiment, result: CellResult, origin: str) -> None:
    shown = [
        f"{perplexity(result[f'perplexity_{length}'])} at {length}"
        for length in experiment.evaluation_lengths
    ]
    made = origin or f"made in {seconds_text(result['seconds'])}"
    print(f"{cell.title}: perplexity {', '.join(shown)}; {made}", flush=True)


def _report(cell: Cell, error: Exception) -> str:
    message = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    print_error(f"{cell.title}: {message} (all of it: {cell.folder / LOG_FILE})")
    sys.stderr.flush()
    return message


def _write(experiment: Experiment, results: Results, output: Path) -> None:
    files: dict[str, Any] = {
        "compare.json": json.dumps(results, indent=1, allow_nan=False),
        "table.md": table.markdown(results),
        "table.csv": table.csv_text(results),
    }
    for name, text in files.items():
        write_atomically(output / name, text.encode())
    drawn = pictures.draw(experiment, results, output)
    table.print_table(results)
    print(f"Written to {output}: {', '.join([*files, *drawn])}")
