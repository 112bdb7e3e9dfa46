"""All metrics of a run in one CSV file, across resumptions."""

from __future__ import annotations

import csv
import io
import os
import warnings
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from pgprune_lightning.atomic_write import write_atomically
from pgprune_lightning.errors import UserError

METRICS_FILE = "metrics.csv"


class MetricsFile(Logger):
    """Writes `RUN_DIR/metrics.csv`, one row a step, on disk as soon as the next step logs.

    Lightning's CSVLogger deletes the file of the run it resumes. Here a run that goes on from a
    checkpoint replaces what was logged after that checkpoint and keeps the rest. Rows that cannot
    be written are kept and tried again: a full disk does not end a run.

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
        self._has_written = False
        self._is_resuming = self._path.exists()
        if self._path.exists():
            with self._path.open(newline="") as file:
                self._columns = next(csv.reader(file), self._columns)

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
        """The run's folder, where Lightning puts the resolved configuration."""
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
        """Write what is still collected."""
        del status
        self._close_row()

    def _close_row(self) -> None:
        if self._row:
            self._unwritten.append(self._row)
            self._row = {}
        self.save()

    def _append(self, row: dict[str, float]) -> None:
        new_columns = [name for name in row if name not in self._columns]
        if self._has_written and not self._path.exists():
            warnings.warn(f"{self._path} has vanished, with its earlier rows.", stacklevel=2)
        if new_columns or self._is_resuming or not self._path.exists():
            self._rewrite([*self._columns, *new_columns], before_step=row["step"])
            self._is_resuming = False
        size = self._path.stat().st_size
        try:
            with self._path.open("a", newline="") as file:
                csv.DictWriter(file, self._columns).writerow(row)
        except OSError:
            os.truncate(self._path, size)  # a full disk takes a part
            raise
        self._has_written = True

    def _rewrite(self, columns: list[str], before_step: float) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(self._rows_before(before_step))
        write_atomically(self._path, text.getvalue().encode())
        self._columns = columns

    def _rows_before(self, step: float) -> list[dict[str, str]]:
        """The rows of earlier steps, without the part of a line that a power cut may leave."""
        if not self._path.exists():
            return []
        whole_lines, _, _ = self._path.read_text().rpartition("\n")
        rows = csv.DictReader(io.StringIO(whole_lines + "\n", newline=""))
        return [row for row in rows if (row["step"] or "").isdigit() and int(row["step"]) < step]
