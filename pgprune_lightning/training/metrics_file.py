"""All metrics of a run in one CSV file, across resumptions."""

from __future__ import annotations

import csv
import errno
import io
import os
import warnings
from argparse import Namespace
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from pgprune_lightning.atomic_write import write_atomically
from pgprune_lightning.errors import UserError
from pgprune_lightning.training.run_folder import free_name

METRICS_FILE = "metrics.csv"
_LONGEST_STEP = 18
"""Digits; a longer number is no count of steps, and too long ones are slow to read."""


@dataclass(frozen=True)
class Metrics:
    """What a metrics file holds.

    Args:
        columns: The names of the columns; `step` is one of them.
        rows: The cells of each step by column, in the order of the file; a cell is empty where
            nothing was logged.
    """

    columns: list[str]
    rows: list[dict[str, str]]


def read_metrics(path: Path) -> Metrics:
    """Read a metrics file, whether its run has ended or is writing it.

    A last line without its end is left out: the run was killed there, or is about to go on.

    Args:
        path: The file.

    Raises:
        OSError: If it is missing or cannot be read.
        UserError: If it is damaged: anything but rows of numbered steps under a header.
    """
    content = path.read_bytes()
    try:
        text = content[: content.rfind(b"\n") + 1].decode()
        lines = csv.reader(io.StringIO(text, newline=""), strict=True)
        columns = next(lines, [])
        if "step" not in columns or len(set(columns)) < len(columns):
            raise ValueError("its first line is no header of metrics by step")
        return Metrics(columns, [_row(columns, cells, lines.line_num) for cells in lines])
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path} is damaged: {error}.") from error


def _row(columns: list[str], cells: list[str], line: int) -> dict[str, str]:
    if len(cells) != len(columns):
        raise ValueError(f"line {line} has {len(cells)} cells for {len(columns)} columns")
    row = dict(zip(columns, cells, strict=True))
    step = row["step"]
    if not (step.isascii() and step.isdecimal() and len(step) <= _LONGEST_STEP):
        raise ValueError(f"line {line} is of step {step[:40]!r}")
    if any("\0" in cell for cell in cells):
        raise ValueError(f"line {line} holds a NUL")
    return row


class MetricsFile(Logger):
    """Writes `RUN_DIR/metrics.csv`, one row a step, on disk as soon as the next step logs.

    Lightning's CSVLogger deletes the file of the run it resumes. Here a run that goes on from a
    checkpoint replaces what was logged after that checkpoint and keeps the rest. A damaged file is
    set aside as `metrics.csv.damaged-1`, `-2`, ... Rows that cannot be written are kept and tried
    again: a full disk does not end a run.

    The header is renamed into place; each row is then appended by one system call. A process that
    is killed in this call leaves a part of one line, which readers leave out and the resumed run
    replaces.

    Args:
        run_dir: The run's folder.
    """

    def __init__(self, run_dir: Path) -> None:
        super().__init__()
        self._path = run_dir / METRICS_FILE
        self._columns: list[str] = ["step"]
        self._row: dict[str, float] = {}
        self._unwritten: list[dict[str, float]] = []
        self._has_failed = False
        self._is_resuming = False
        self._take_over()

    @rank_zero_only
    def _take_over(self) -> None:
        """Go on with the file of the run that is resumed, where there is one."""
        try:
            metrics = self._read()
        except OSError as error:
            self._set_aside(f"{self._path} cannot be read: {error.strerror}.")
            return
        if metrics is not None:
            self._columns, self._is_resuming = metrics.columns, True

    @property
    def name(self) -> str:
        """Not used in paths."""
        return ""

    @property
    def version(self) -> str:
        """Not used in paths."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run's folder."""
        return str(self._path.parent)

    @property
    def open_row(self) -> dict[str, float]:
        """The row of the present step, which is not on the disk: for the checkpoint."""
        return dict(self._row)

    def go_on_with(self, row: dict[str, float]) -> None:
        """Take the open row of a checkpoint; it and what follows replace what the file holds.

        Args:
            row: What `open_row` was.
        """
        self._row = dict(row)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *_: Any, **__: Any) -> None:
        """Nothing to do: the configuration is a file of its own."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Collect the metrics of a step; those of the step before are written.

        Args:
            metrics: Values by name.
            step: Optimizer steps taken.
        """
        if self._row and self._row["step"] != step:
            self._close_row()
        self._row["step"] = 0 if step is None else step
        self._row.update(metrics)

    @rank_zero_only
    def save(self) -> None:
        """Write the rows of past steps; more may come for that of the present one."""
        try:
            for _ in range(len(self._unwritten)):
                self._append(self._unwritten[0])
                del self._unwritten[0]
            self._has_failed = False
        except (OSError, UserError) as error:
            if not self._has_failed:
                warnings.warn(
                    f"metrics are kept in memory and written later: {error}", stacklevel=2
                )
            self._has_failed = True

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is still collected.

        Raises:
            UserError: If rows of a run that was successful otherwise cannot be written.
        """
        self._close_row()
        if status == "success" and self._unwritten:
            raise UserError(
                f"{len(self._unwritten)} rows of {self._path} could not be written, and are lost; "
                "the rest of the run is complete. Make room, or make the file writable."
            )

    def _close_row(self) -> None:
        if self._row:
            self._unwritten.append(self._row)
            self._row = {}
        self.save()

    def _append(self, row: dict[str, float]) -> None:
        new_columns = [name for name in row if name not in self._columns]
        if new_columns or self._is_resuming or not self._path.exists():
            self._rewrite([*self._columns, *new_columns], before_step=row["step"])
            self._is_resuming = False
        line = _csv_text(self._columns, [row])
        size = self._path.stat().st_size
        try:
            with self._path.open("ab", buffering=0) as file:
                if file.write(line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            os.truncate(self._path, size)  # a full disk takes a part
            raise

    def _rewrite(self, columns: list[str], before_step: float) -> None:
        """Write the header, and again the rows of earlier steps."""
        metrics = self._read()
        rows = [] if metrics is None else metrics.rows
        earlier = [row for row in rows if int(row["step"]) < before_step]
        header = dict(zip(columns, columns, strict=True))
        write_atomically(self._path, _csv_text(columns, [header, *earlier]))
        self._columns = columns

    def _read(self) -> Metrics | None:
        """What the file holds; None where there is none, or a damaged one was set aside."""
        try:
            return read_metrics(self._path)
        except FileNotFoundError:
            return None
        except UserError as error:
            self._set_aside(str(error))
            return None

    def _set_aside(self, reason: str) -> None:
        aside = free_name(self._path.with_name(f"{METRICS_FILE}.damaged"))
        self._path.rename(aside)
        warnings.warn(
            f"{reason} It was moved to {aside.name}, and a new {METRICS_FILE} begins here.",
            stacklevel=2,
        )


def _csv_text(columns: list[str], rows: Iterable[Mapping[str, Any]]) -> bytes:
    text = io.StringIO(newline="")
    csv.DictWriter(text, columns, extrasaction="ignore").writerows(rows)
    return text.getvalue().encode()
