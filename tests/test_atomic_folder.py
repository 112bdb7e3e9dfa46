"""A folder appears whole, or what was there stays."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest
from safetensors import SafetensorError

from pgprune_lightning.atomic_folder import whole_folder
from pgprune_lightning.errors import UserError


def fill(folder: Path, text: str = "new") -> None:
    (folder / "inner").mkdir()
    (folder / "inner" / "file").write_text(text)
    (folder / "inner" / "file").chmod(0o600)


def fail_in(place: Path, error: BaseException) -> None:
    with whole_folder(place) as folder:
        fill(folder)
        raise error


def test_a_new_folder_appears_at_the_end(tmp_path: Path) -> None:
    place = tmp_path / "above" / "place"
    with whole_folder(place) as folder:
        fill(folder)
        assert not place.exists()
    assert (place / "inner" / "file").read_text() == "new"
    assert [path.name for path in place.parent.iterdir()] == ["place"]


@pytest.mark.parametrize(
    ("umask", "of_files", "of_folders"), [(0o077, 0o600, 0o700), (0o002, 0o664, 0o775)]
)
def test_the_umask_decides_who_may_read_it(
    tmp_path: Path, umask: int, of_files: int, of_folders: int
) -> None:
    place, before = tmp_path / "above" / "place", os.umask(umask)
    try:
        with whole_folder(place) as folder:
            fill(folder)
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    made = {path: stat.S_IMODE(path.stat().st_mode) for path in place.parent.rglob("*")}
    assert made == {
        place: of_folders,
        place / "inner": of_folders,
        place / "inner" / "file": of_files,
    }


def test_an_old_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    (place / "old").write_text("old")
    with whole_folder(place) as folder:
        fill(folder)
        assert (place / "old").exists()
    assert [path.name for path in place.iterdir()] == ["inner"]
    assert [path.name for path in tmp_path.iterdir()] == ["place"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "No space left on device"),
        (SafetensorError("No space left on device (os error 28)"), "No space left"),
    ],
)
def test_a_full_disk_leaves_what_was_there(error: Exception, message: str, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    (place / "old").write_text("old")
    with pytest.raises(UserError, match=message):
        fail_in(place, error)
    assert [path.name for path in place.iterdir()] == ["old"]
    assert [path.name for path in tmp_path.iterdir()] == ["place"]


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_leaves_nothing(interrupt: type[BaseException], tmp_path: Path) -> None:
    with pytest.raises(interrupt):
        fail_in(tmp_path / "place", interrupt())
    assert not list(tmp_path.iterdir())


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".place.pgprune-abc").mkdir()
    (tmp_path / ".other.pgprune-abc").mkdir()
    with whole_folder(tmp_path / "place") as folder:
        fill(folder)
    assert {path.name for path in tmp_path.iterdir()} == {"place", ".other.pgprune-abc"}
