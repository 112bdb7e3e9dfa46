import csv
import errno
import io
import math
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from pgprune_lightning.errors import UserError
from pgprune_lightning.training.metrics_file import MetricsFile, read_metrics
from tests.damaged_files import METRICS


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


def write_steps(folder: Path, *steps: int) -> MetricsFile:
    """Log a loss in each step, as a run does that is then killed in the step after."""
    metrics = MetricsFile(folder)
    for step in (*steps, steps[-1] + 1):
        metrics.log_metrics({"loss": 1 / step, "baseline": 2.0}, step=step)
    return metrics


READABLE = {"NULs at the end, as after a power cut": [1, 2, 3, 4], "half a row": [1, 2, 3, 4]}
"""What a killed process or machine leaves behind rows that are whole: those of steps 1 to 4."""
MORE_DAMAGE = {
    "an open quote": lambda path: path.write_bytes(path.read_bytes() + b'5,"2.5,1\r\n'),
    "a NUL in a row": lambda path: path.write_bytes(path.read_bytes() + b"5,0.2\0,1\r\n"),
    "a column twice": lambda path: path.write_bytes(path.read_bytes().replace(b"loss", b"step")),
    "a step of 5,000 digits": lambda path: path.write_bytes(
        path.read_bytes() + b"9" * 5000 + b",1,1\r\n"
    ),
    "a step below zero": lambda path: path.write_bytes(path.read_bytes() + b"-5,1,1\r\n"),
}


@pytest.mark.parametrize("name", [*METRICS, *MORE_DAMAGE])
def test_a_damaged_file_is_set_aside_and_the_run_goes_on(tmp_path: Path, name: str) -> None:
    path, damage = tmp_path / "metrics.csv", (METRICS | MORE_DAMAGE)[name]
    for number in (1, 2):
        write_steps(tmp_path, *range(1, 7))
        damage(path)
        spoilt = path.read_bytes() if path.is_file() else None
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            write_steps(tmp_path, 5, 6).finalize("success")
        kept = READABLE.get(name, [])
        assert [int(row["step"]) for row in read_metrics(path).rows] == [*kept, 5, 6, 7]
        if name in READABLE:
            assert not said
            continue
        (warning,) = (str(warning.message) for warning in said)
        aside = tmp_path / f"metrics.csv.damaged-{number}"
        assert f"moved to {aside.name}" in warning
        assert (aside.read_bytes() if aside.is_file() else None) == spoilt
        path.unlink()


def test_a_row_may_be_torn_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    write_steps(tmp_path, 1, 2, 3)
    whole = path.read_bytes()
    last = whole.index(b"3,0.33")
    for end in range(last, len(whole)):
        path.write_bytes(whole[:end])
        assert [row["step"] for row in read_metrics(path).rows] == ["1", "2"]
        write_steps(tmp_path, 3)
        assert path.read_bytes() == whole


def test_a_row_is_appended_by_one_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it is: a process can be killed between two calls."""
    many = {f"sparsity/mlp_channel/layer_{layer:03d}": 1 / 3 for layer in range(2000)}
    calls: list[bytes] = []

    class Recorder(io.FileIO):
        def write(self, content: Any) -> int:
            calls.append(bytes(content))
            return super().write(content)

    def opened(path: Path, mode: str, buffering: int = -1) -> Any:
        assert (mode, buffering) == ("ab", 0)
        return Recorder(path, "ab")

    metrics = MetricsFile(tmp_path)
    metrics.log_metrics(many, step=1)
    metrics.log_metrics(many, step=2)
    monkeypatch.setattr(Path, "open", opened)
    metrics.finalize("success")
    monkeypatch.undo()
    (row,) = calls
    assert row == (tmp_path / "metrics.csv").read_bytes().splitlines(keepends=True)[2]
    assert len(row) > 30_000


def test_rows_that_cannot_be_written_are_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = MetricsFile(tmp_path)
    metrics.log_metrics({"loss": 1.0}, step=1)
    metrics.log_metrics({"loss": 1.0}, step=2)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "open", full)
    with pytest.warns(UserWarning, match="written later"):
        metrics.finalize("failed")
    with pytest.raises(UserError, match=r"1 rows of .*metrics\.csv could not be written"):
        metrics.finalize("success")
    monkeypatch.undo()
    metrics.finalize("success")
    assert [row["step"] for row in rows(tmp_path)] == ["1", "2"]
