"""Of two processes with one output the second is refused, and changes nothing."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, NoReturn

import pytest

from pgprune_lightning.errors import UserError
from pgprune_lightning.folder_lock import exclusive_output
from tests.held_outputs import HOLDER, ROOT, Hold, traces


def lock(output: Path, wait_seconds: float = 0.0) -> None:
    with exclusive_output(output, "--output", wait_seconds=wait_seconds):
        pass


def test_the_second_process_is_refused_and_changes_nothing(hold: Hold, tmp_path: Path) -> None:
    output = tmp_path / "runs" / "a"
    output.mkdir(parents=True)
    (output / "config.yaml").write_text("first")
    holder = hold(output)
    before = traces(tmp_path)
    for spelled in (output, output.parent / ".." / "runs" / "a"):
        with pytest.raises(UserError, match=rf"--output: .* in use by process {holder.pid} on "):
            lock(spelled)
    assert traces(tmp_path) == before
    lock(output.with_name("b"))  # another output beside it


def test_a_process_that_ends_leaves_nothing(hold: Hold, tmp_path: Path) -> None:
    holder = hold(tmp_path / "runs" / "deep" / "a")
    assert [path.name for path in (tmp_path / "runs" / "deep").iterdir()] == [".a.pgprune.lock"]
    holder.communicate()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("worker", [(), ("fork",)])
def test_a_killed_process_holds_nothing(
    worker: tuple[str, ...], hold: Hold, tmp_path: Path
) -> None:
    """Nor does a worker that it has forked and that lives on."""
    holder = hold(tmp_path / "a", *worker)
    holder.kill()
    holder.wait()
    assert (tmp_path / ".a.pgprune.lock").exists()
    lock(tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_a_process_that_is_ending_is_waited_for(
    hold: Hold, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    holder = hold(tmp_path / "a")
    with pytest.raises(UserError, match="in use"):
        lock(tmp_path / "a", wait_seconds=0.1)
    assert "waiting for it to end, 0 s at most" in capsys.readouterr().err
    threading.Timer(0.3, holder.communicate).start()
    lock(tmp_path / "a", wait_seconds=30.0)


def test_one_process_has_one_lock(tmp_path: Path) -> None:
    """A POSIX lock has one owner, the process, which loses it where it closes any descriptor."""
    with exclusive_output(tmp_path / "a", "--output"):
        with pytest.raises(UserError, match="in use by this process"):
            lock(tmp_path / "a")
        refused = subprocess.run(
            [sys.executable, "-c", HOLDER, str(tmp_path / "a")],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    assert "in use by process" in refused.stderr


def test_a_lock_on_a_file_that_its_holder_removes_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening and locking, the holder ends, and a third process locks a new file."""
    file, call, calls = tmp_path / ".a.pgprune.lock", fcntl.lockf, [0]

    def lockf(*arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] == 1:
            file.unlink()
            file.write_text("a new one")
        return call(*arguments)

    monkeypatch.setattr(fcntl, "lockf", lockf)
    with exclusive_output(tmp_path / "a", "--output"):
        assert calls == [2]
        assert file.read_text().startswith(f"process {os.getpid()} on ")


def test_a_folder_that_is_moved_aside_takes_no_lock_along(hold: Hold, tmp_path: Path) -> None:
    output = tmp_path / "a"
    output.mkdir()
    hold(output)
    output.rename(tmp_path / "a-1")
    with pytest.raises(UserError, match="in use"):
        lock(output)
    lock(tmp_path / "a-1")


def test_a_mount_point_is_locked_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its parent is another file system, which other machines may not share."""
    monkeypatch.setattr(Path, "is_mount", lambda self: self == tmp_path / "a")
    (tmp_path / "a").mkdir()
    with exclusive_output(tmp_path / "a", "--output"):
        assert [path.name for path in (tmp_path / "a").iterdir()] == [".pgprune.lock"]
        assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert not list((tmp_path / "a").iterdir())


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> NoReturn:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", fail)
    with (
        pytest.warns(UserWarning, match=r"has no locks .* no other process writes there"),
        exclusive_output(tmp_path / "a", "--output") as is_locked,
    ):
        assert not is_locked
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    with pytest.raises(UserError, match=r"--output: .* cannot be written \(File exists: .*/file\)"):
        lock(tmp_path / "file" / "a")
