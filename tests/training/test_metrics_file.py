import csv
import math
import subprocess
import sys
from pathlib import Path

import pytest

from pgprune_lightning.training.metrics_file import MetricsFile


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_all_metrics_of_a_step_share_a_row(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path)
    metrics.log_metrics({"loss": 2.5}, step=1)
    metrics.log_metrics({"baseline": 2.0}, step=1)
    metrics.log_metrics({"loss": 2.25, "baseline": 2.5}, step=2)
    metrics.finalize("success")
    assert rows(tmp_path) == [
        {"step": "1", "loss": "2.5", "baseline": "2.0"},
        {"step": "2", "loss": "2.25", "baseline": "2.5"},
    ]


def test_a_later_metric_gets_a_column_and_earlier_rows_stay(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path)
    for step in (1, 2):
        metrics.log_metrics({"loss": float(step)}, step=step)
    metrics.log_metrics({"val/perplexity": 30.5}, step=3)
    metrics.finalize("success")
    assert [row["loss"] for row in rows(tmp_path)] == ["1.0", "2.0", ""]
    assert [row["val/perplexity"] for row in rows(tmp_path)] == ["", "", "30.5"]


def test_a_resumed_run_appends(tmp_path: Path) -> None:
    for steps in ((1, 2), (3, 4)):
        metrics = MetricsFile(tmp_path)
        for step in steps:
            metrics.log_metrics({"loss": float(step), f"from_{steps[0]}": 1.0}, step=step)
        metrics.finalize("success")
    assert [row["step"] for row in rows(tmp_path)] == ["1", "2", "3", "4"]
    assert [row["from_3"] for row in rows(tmp_path)] == ["", "", "1.0", "1.0"]
    assert (tmp_path / "metrics.csv").read_text().count("step,") == 1


def test_rows_after_the_checkpoint_are_replaced(tmp_path: Path) -> None:
    for loss, steps in ((1.0, (1, 2, 3, 4)), (2.0, (3, 4, 5))):
        metrics = MetricsFile(tmp_path)
        for step in steps:
            metrics.log_metrics({"loss": loss}, step=step)
        metrics.finalize("success")
    assert [row["step"] for row in rows(tmp_path)] == ["1", "2", "3", "4", "5"]
    assert [row["loss"] for row in rows(tmp_path)] == ["1.0", "1.0", "2.0", "2.0", "2.0"]


@pytest.mark.parametrize("name", ["test/a, b/perplexity", 'test/"quoted"', "two\nlines"])
def test_any_name_of_a_text_is_a_column(tmp_path: Path, name: str) -> None:
    for step in (1, 2):
        metrics = MetricsFile(tmp_path)
        metrics.log_metrics({name: 1.5}, step=step)
        metrics.finalize("success")
    assert [row[name] for row in rows(tmp_path)] == ["1.5", "1.5"]


def test_values_come_back_exactly(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path)
    metrics.log_metrics({"third": 1 / 3, "nan": math.nan, "inf": math.inf}, step=1)
    metrics.finalize("success")
    row = {name: float(value) for name, value in rows(tmp_path)[0].items()}
    assert row["third"] == 1 / 3
    assert math.isnan(row["nan"])
    assert row["inf"] == math.inf


def test_a_killed_run_leaves_all_rows_but_the_last(tmp_path: Path) -> None:
    program = """
import os, signal, sys
from pathlib import Path
from pgprune_lightning.training.metrics_file import MetricsFile

metrics = MetricsFile(Path(sys.argv[1]))
for step in (1, 2, 3):
    metrics.log_metrics({"loss": float(step)}, step=step)
os.kill(os.getpid(), signal.SIGKILL)
"""
    run = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert run.returncode == -9
    assert [row["step"] for row in rows(tmp_path)] == ["1", "2"]


def test_nothing_is_written_before_something_is_logged(tmp_path: Path) -> None:
    MetricsFile(tmp_path).finalize("failed")
    assert not list(tmp_path.iterdir())
