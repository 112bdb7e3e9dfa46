"""All metrics of a run in one CSV file, across resumptions."""

from __future__ import annotations

import csv
import io
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from pgprune_lightning.atomic_write import write_atomically

METRICS_FILE = "metrics.csv"


class MetricsFile(Logger):
    """Writes `RUN_DIR/metrics.csv`, one row a step, on disk as soon as the next step logs.

    Lightning's CSVLogger deletes the file of the run it resumes. Here a run that goes on from a
    checkpoint replaces what was logged after that checkpoint and keeps the rest.

    Args:
        run_dir: The run's folder.
    """

    def __init__(self, run_dir: Path) -> None:
        super().__init__()
        self._path = run_dir / METRICS_FILE
        self._columns: list[str] = ["step"]
        self._row: dict[str, float] = {}
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
            self.save()
        self._row["step"] = 0 if step is None else step
        self._row.update(metrics)

    @rank_zero_only
    def save(self) -> None:
        """Append the collected row, with new columns for new metrics."""
        if not self._row:
            return
        new_columns = [name for name in self._row if name not in self._columns]
        if new_columns or self._is_resuming or not self._path.exists():
            self._rewrite([*self._columns, *new_columns], before_step=self._row["step"])
            self._is_resuming = False
        with self._path.open("a", newline="") as file:
            csv.DictWriter(file, self._columns).writerow(self._row)
        self._row = {}

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is still collected."""
        del status
        self.save()

    def _rewrite(self, columns: list[str], before_step: float) -> None:
        rows: list[dict[str, str]] = []
        if self._path.exists():
            with self._path.open(newline="") as file:
                rows = [row for row in csv.DictReader(file) if int(row["step"]) < before_step]
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns)
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self._path, text.getvalue().encode())
        self._columns = columns
