"""A disk that takes nothing more, for a while or for good, costs no step and no good checkpoint."""

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from pgprune_lightning import atomic_write
from pgprune_lightning.training.metrics_file import read_metrics
from tests.run_traces import files_of, recorded_steps, steps_of
from tests.tiny_commands import AtStep, TinyCommand, refused

EVERY_STEP = ("--checkpoint.every_n_train_steps=1", "--resume=auto")


def _breaking(number: int) -> Callable[..., NoReturn]:
    def fail(*_: Any, **__: Any) -> NoReturn:
        raise OSError(number, os.strerror(number))

    return fail


def _last_step(run_dir: Path) -> int:
    step: int = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    return step


def _but_kept(files: dict[str, Any]) -> dict[str, Any]:
    """Without the names of the checkpoints, some of which could not be written."""
    files.pop("kept")
    return files


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_the_run_goes_on_and_its_last_good_checkpoint_stands(
    tiny_command: TinyCommand,
    tmp_path: Path,
    at_step: AtStep,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
) -> None:
    at_step(4, lambda: monkeypatch.setattr(atomic_write, "_create_in", _breaking(number)))
    with (
        recorded_steps(tmp_path / "steps.jsonl"),
        pytest.warns(UserWarning, match="no checkpoint: cannot write") as said,
    ):
        outcome = tiny_command("fit", *EVERY_STEP)
    assert len([w for w in said if "no checkpoint" in str(w.message)]) == 1
    refused(outcome, "cannot write", os.strerror(number))
    assert list(steps_of(tmp_path / "steps.jsonl")) == list(range(6))
    assert _last_step(tiny_command.run_dir) == 4
    monkeypatch.undo()
    assert tiny_command("fit", *EVERY_STEP).status == 0
    whole = tiny_command.run_dir.with_name("whole")
    assert tiny_command("fit", *EVERY_STEP, f"--run_dir={whole}").status == 0
    assert files_of(tiny_command.run_dir) == files_of(whole)


def test_a_disk_that_is_full_for_a_while_leaves_no_trace(
    tiny_command: TinyCommand,
    at_step: AtStep,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = tiny_command.run_dir.with_name("whole")
    assert tiny_command("fit", *EVERY_STEP, f"--run_dir={whole}").status == 0
    fsync, write, append = os.fsync, Path.open, _breaking(errno.ENOSPC)

    def full() -> None:
        monkeypatch.setattr(os, "fsync", append)
        monkeypatch.setattr(Path, "open", append)

    def empty() -> None:
        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(Path, "open", write)

    at_step(2, full)
    at_step(4, empty)  # the validation after step 3 saw the full disk
    with pytest.warns(UserWarning, match="is kept|are kept|no checkpoint") as said:
        assert tiny_command("fit", *EVERY_STEP).status == 0
    phrases = ("no checkpoint", "metrics are kept", "plans are kept", "written again")
    for phrase in phrases:
        assert len([w for w in said if phrase in str(w.message)]) == 1, phrase
    assert _but_kept(files_of(tiny_command.run_dir)) == _but_kept(files_of(whole))


def test_metrics_that_cannot_be_written_in_the_end(
    tiny_command: TinyCommand, at_step: AtStep
) -> None:
    metrics = tiny_command.run_dir / "metrics.csv"

    def replace() -> None:
        metrics.unlink()
        metrics.mkdir()

    at_step(3, replace)
    with pytest.warns(UserWarning, match="metrics are kept in memory"):
        outcome = tiny_command("fit")
    refused(outcome, f"4 rows of {metrics} could not be written", "complete")
    metrics.rmdir()
    assert tiny_command("fit", "--resume=auto").status == 0
    assert [row["step"] for row in read_metrics(metrics).rows] == ["6"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, check=False).returncode:
        pytest.skip("a file system of its own can be mounted by root alone")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_real_disk_that_fills_up(
    tiny_command: TinyCommand,
    tmp_path: Path,
    small_disk: Path,
    at_step: AtStep,
) -> None:
    filler = small_disk / "filler"

    def fill() -> None:
        free = shutil.disk_usage(small_disk).free
        filler.write_bytes(bytes(free))

    at_step(3, fill)
    at_step(5, filler.unlink)
    on_disk = ("--checkpoint.every_n_train_steps=1", f"--run_dir={small_disk}/run")
    with pytest.warns(UserWarning, match="No space left on device"):
        outcome = tiny_command("fit", *on_disk)
    assert outcome.status == 0, outcome.err
    assert tiny_command("fit", *EVERY_STEP).status == 0
    left, expected = files_of(small_disk / "run"), files_of(tiny_command.run_dir)
    assert _but_kept(left) == _but_kept(expected)
