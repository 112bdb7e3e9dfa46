"""A run's folder, read as far as it is intact.

A run may still be under way, or have failed. Each reader therefore returns what is intact and adds
a sentence to `missing` for what is not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pgprune_lightning.credentials import hidden
from pgprune_lightning.errors import UserError
from pgprune_lightning.plan import PLAN_FILE, PruningPlan
from pgprune_lightning.record_file import read_object
from pgprune_lightning.report.charts import Point
from pgprune_lightning.training.loggers import WANDB_ID_FILE
from pgprune_lightning.training.metrics_file import METRICS_FILE, read_metrics
from pgprune_lightning.training.run_folder import RUN_FILES

PLAN_NAMES = ("initial", "best", "last")


@dataclass(frozen=True)
class RunRecord:
    """A run, finished or not.

    Args:
        folder: The run's folder.
        name: The run's name in the report.
        config: Its options; empty if `config.yaml` cannot be read.
        metrics: Logged values by name: (step, value), ascending in step, all finite.
        plans: The readable plans of `initial`, `best` and `last`.
        summary: `summary.json`; empty before the run ends.
        wandb_id: Its id on Weights & Biases, if it was logged there.
        missing: One sentence for each file that is missing or damaged.
    """

    folder: Path
    name: str
    config: dict[str, Any]
    metrics: dict[str, list[Point]]
    plans: dict[str, PruningPlan]
    summary: dict[str, Any]
    wandb_id: str | None = None
    missing: list[str] = field(default_factory=list)

    @property
    def plan(self) -> PruningPlan | None:
        """The best plan, or else the last one."""
        return self.plans.get("best", self.plans.get("last"))

    @property
    def last_step(self) -> int | None:
        """The newest step in the metrics."""
        return max((int(points[-1][0]) for points in self.metrics.values()), default=None)

    def option(self, *names: str) -> Any:
        """An option by the names of its groups; None if it is not known."""
        return at(self.config, *names)


def at(data: Any, *names: str) -> Any:
    """A value deep in nested dictionaries; None if any of them is missing."""
    for name in names:
        data = data.get(name) if isinstance(data, dict) else None
    return data


def read_run(folder: Path, name: str) -> RunRecord:
    """Read a run's folder.

    Args:
        folder: The folder, with the files that `fit` has written so far.
        name: The run's name in the report.

    Raises:
        UserError: If it holds nothing of a run.
    """
    check_run(folder)
    missing: list[str] = []
    config = _read_config(folder / "config.yaml", missing)
    metrics = _read_metrics(folder / METRICS_FILE, missing)
    plans = _read_plans(folder / "plans", missing)
    summary = _read_summary(folder / "summary.json", missing)
    wandb_id = _read_wandb_id(folder / WANDB_ID_FILE, config, missing)
    record = RunRecord(folder, name, config, metrics, plans, summary, wandb_id, missing)
    if not summary:
        missing.insert(0, _unfinished(record))
    return record


def check_run(folder: Path) -> None:
    """Refuse a folder that holds nothing of a run.

    Raises:
        UserError: If it does not.
    """
    if not folder.is_dir():
        raise UserError(f"report: there is no folder {folder}; give folders that fit has written.")
    if not any((folder / name).exists() for name in RUN_FILES):
        results = [name for name in ("compare.json", "study.json") if (folder / name).exists()]
        hint = f" Its results are shown by --include {folder / results[0]}." if results else ""
        raise UserError(f"report: {folder} holds no run (none of {', '.join(RUN_FILES)}).{hint}")


def distinct_names(folders: Iterable[Path]) -> list[str]:
    """The shortest ends of paths that tell the folders apart."""
    parts = [folder.absolute().parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return names


def _unfinished(record: RunRecord) -> str:
    steps = record.option("trainer", "max_steps")
    so_far = "" if record.last_step is None else f"; it has logged up to step {record.last_step:,}"
    of = f" of {steps:,}" if so_far and isinstance(steps, int) and steps > 0 else ""
    return (
        f"summary.json is missing: the run has not come to its end{so_far}{of}. Its test texts "
        "have not been measured. It goes on by fit --resume auto."
    )


def _read_summary(path: Path, missing: list[str]) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        summary: dict[str, Any] = hidden(read_object(path, "report", finite=False))
    except UserError as error:
        missing.append(str(error))
        return {}
    return summary


def _read_config(path: Path, missing: list[str]) -> dict[str, Any]:
    try:
        config = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        missing.append("config.yaml is missing: the options of the run are not known.")
        return {}
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        missing.append(f"config.yaml cannot be read: {error}.")
        return {}
    return hidden(config) if isinstance(config, dict) else {}


def _read_metrics(path: Path, missing: list[str]) -> dict[str, list[Point]]:
    try:
        rows = read_metrics(path).rows
    except FileNotFoundError:
        missing.append(f"{METRICS_FILE} is missing: there are no curves.")
        return {}
    except (OSError, UserError) as error:
        missing.append(f"{METRICS_FILE} cannot be read, and there are no curves: {error}")
        return {}
    metrics: dict[str, list[Point]] = {}
    left_out = 0
    for row in rows:
        for name in row.keys() - {"step"}:
            value = _number(row[name])
            if value is not None:
                metrics.setdefault(name, []).append((int(row["step"]), value))
            elif row[name]:
                left_out += 1
    if left_out:
        missing.append(f"{left_out} values of {METRICS_FILE} are no finite numbers: not drawn.")
    if not metrics:
        missing.append(f"{METRICS_FILE} holds no values yet.")
    return {name: sorted(points) for name, points in metrics.items()}


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _read_plans(folder: Path, missing: list[str]) -> dict[str, PruningPlan]:
    plans = {}
    for name in PLAN_NAMES:
        if not (folder / name / PLAN_FILE).exists():
            missing.append(f"plans/{name} is missing.")
            continue
        try:
            plans[name] = PruningPlan.load(folder / name)
        except UserError as error:
            missing.append(str(error))
    return plans


def _read_wandb_id(path: Path, config: dict[str, Any], missing: list[str]) -> str | None:
    mode = at(config, "wandb", "mode")
    try:
        return path.read_text().strip()
    except (OSError, ValueError):
        if mode in ("online", "offline"):
            missing.append(f"{WANDB_ID_FILE} is missing, though the run logged to W&B ({mode}).")
        return None
