"""A reader finds the old content or the new one, whatever goes wrong in between."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pgprune_lightning.atomic_write import remove_temp_files, write_atomically
from pgprune_lightning.errors import UserError


def full_disk(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_writes_and_replaces(tmp_path: Path) -> None:
    target = tmp_path / "made" / "on the way" / "file.bin"
    write_atomically(target, b"old and longer")
    write_atomically(target, b"new")
    assert target.read_bytes() == b"new"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize(
    ("umask", "of_file", "of_folder"),
    [(0o077, 0o600, 0o700), (0o027, 0o640, 0o750), (0o022, 0o644, 0o755), (0o002, 0o664, 0o775)],
)
def test_the_umask_decides_who_may_read_it(
    tmp_path: Path, umask: int, of_file: int, of_folder: int
) -> None:
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "folder" / "file", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "folder" / "file").stat().st_mode & 0o777 == of_file
    assert (tmp_path / "folder").stat().st_mode & 0o777 == of_folder


def test_content_is_on_the_disk_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, flushed, fsync = tmp_path / "file", [], os.fsync

    def record(handle: int) -> None:
        flushed.append((os.fstat(handle).st_size, target.exists()))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", record)
    write_atomically(target, b"12345")
    assert flushed[0] == (5, False)
    assert len(flushed) == 2  # then the folder, with its new name


@pytest.mark.parametrize(
    "failing", ["os.fsync", "pathlib.Path.replace", "pgprune_lightning.atomic_write._create_in"]
)
def test_full_disk_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    target = tmp_path / "file"
    write_atomically(target, b"old")
    monkeypatch.setattr(failing, full_disk)
    with pytest.raises(UserError, match=r"cannot write .*file: No space left on device"):
        write_atomically(target, b"new")
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_an_interrupt_leaves_nothing_beside_the_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_handle: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "file", b"new")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="cannot write"):
        write_atomically(tmp_path / "file" / "inside", b"")


USERS_FILES = (
    *(".config.yaml.20261130", ".notes.v2.markdown", ".env.prod.secrets1"),
    *(".config.yaml.abcd1234", "pgprune-tmp-0123456789abcdef", ".pgprune-tmp-notes"),
    *(".gitignore", ".last.ckpt.a1b2c3d4", ".pgprune-tmp-0123456789abcdef.txt"),
)


def test_only_own_temporary_files_are_removed(tmp_path: Path) -> None:
    for name in USERS_FILES:
        (tmp_path / name).write_text("mine")
    script = (
        "import os, sys, pathlib; from pgprune_lightning import atomic_write\n"
        "os.fsync = lambda _: os.kill(os.getpid(), 9)\n"
        "atomic_write.write_atomically(pathlib.Path(sys.argv[1]), b'new')"
    )
    killed = [sys.executable, "-c", script, str(tmp_path / "config.yaml")]
    assert subprocess.run(killed, check=False).returncode == -9
    assert len(list(tmp_path.iterdir())) == len(USERS_FILES) + 1
    remove_temp_files(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(USERS_FILES)
    assert {path.read_text() for path in tmp_path.iterdir()} == {"mine"}
