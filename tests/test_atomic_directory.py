"""A directory appears whole, or what was there stays, also where the program is killed."""

from __future__ import annotations

import errno
import itertools
import json
import os
import signal
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from pgprune_lightning.atomic_directory import (
    atomic_directory,
    check_no_foreign_files,
    claimed_directory,
    files_in,
)
from pgprune_lightning.errors import UserError


def fill(folder: Path, text: str = "new") -> None:
    (folder / "inner").mkdir()
    (folder / "inner" / "file").write_text(text)
    (folder / "inner" / "file").chmod(0o600)


def fail_in(place: Path, error: BaseException) -> None:
    with atomic_directory(place) as folder:
        fill(folder)
        raise error


def test_a_new_folder_appears_at_the_end(tmp_path: Path) -> None:
    place = tmp_path / "above" / "place"
    with atomic_directory(place) as folder:
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
        with atomic_directory(place) as folder:
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
    with atomic_directory(place) as folder:
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


def test_what_was_there_is_put_back_where_the_new_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, rename = tmp_path / "place", os.rename
    place.mkdir()
    (place / "old").write_text("old")

    def fail(source: Path, target: Path) -> None:
        if Path(target) == place and not Path(source).name.endswith("-old"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(UserError, match="Input/output error"), atomic_directory(place) as folder:
        fill(folder)
    assert [path.name for path in place.iterdir()] == ["old"]
    assert [path.name for path in tmp_path.iterdir()] == ["place"]


FILE_EVENTS = ("mkdir", "rename", "chmod", "unlink", "rmdir")


def killed_at(event: int, work: Callable[[], None]) -> bool:
    """Do some work in a process that is killed before its n-th change of the disk.

    Returns:
        Whether it was; False if it ended before.
    """
    process = os.fork()
    if process:
        _, status = os.waitpid(process, 0)
        assert os.waitstatus_to_exitcode(status) in (0, -signal.SIGKILL)
        return os.WIFSIGNALED(status)
    calls = 0

    def dying(call: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            if calls == event:
                os.kill(os.getpid(), signal.SIGKILL)
            calls += 1
            return call(*arguments, **options)

        return called

    try:
        for name in FILE_EVENTS:
            setattr(os, name, dying(getattr(os, name)))
        work()
        os._exit(0)
    finally:
        os._exit(1)


def write(place: Path, text: str) -> None:
    with claimed_directory(place, "--output"), atomic_directory(place) as folder:
        fill(folder, text)


def claim(place: Path) -> None:
    with claimed_directory(place, "--output"):
        pass


def text_in(place: Path) -> str:
    return (place / "inner" / "file").read_text()


def test_killed_at_any_moment_the_old_or_the_new_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the next start, killed at any moment in its turn; and the one after that goes on."""
    monkeypatch.setattr(os, "fsync", lambda _: None)  # for a test of seconds
    name, found, kills = "[a]*", set(), 0
    for event in itertools.count():
        for event_of_the_next in itertools.count():
            place = tmp_path / f"{event}-{event_of_the_next}" / name
            write(place, "old")
            was_killed = killed_at(event, lambda place=place: write(place, "new"))
            was_killed_again = killed_at(event_of_the_next, lambda place=place: claim(place))
            kills += 1
            claim(place)
            found.add(text_in(place))
            assert [path.name for path in place.parent.iterdir()] == [name]
            write(place, "newest")
            assert text_in(place) == "newest"
            if not was_killed_again:
                break
        if not was_killed:
            break
    assert found == {"old", "new"}
    assert kills > 20


def test_an_empty_folder_made_in_place_of_what_is_gone_does_not_cost_it(tmp_path: Path) -> None:
    place = tmp_path / "place"
    write(place, "old")
    place.rename(tmp_path / ".place.pgprune-old")  # as a kill between the two renames leaves it
    place.mkdir()
    claim(place)
    assert text_in(place) == "old"


def test_the_work_of_others_is_left_alone(tmp_path: Path) -> None:
    """Of other outputs, and of users: a name is no pattern, and no prefix of another's."""
    others = [".place2.pgprune-abcdefgh", ".place.pgprune-x.pgprune-abcdefgh", ".place.pgprune-my"]
    for name in (".place.pgprune-abcdefgh", *others):
        (tmp_path / name).mkdir()
    claim(tmp_path / "*")
    claim(tmp_path / "[p]lace")
    assert len(list(tmp_path.iterdir())) == 4
    claim(tmp_path / "place")
    assert {path.name for path in tmp_path.iterdir()} == set(others)


def test_without_locks_nothing_that_may_be_alive_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.lockf", no_locks)
    (tmp_path / ".place.pgprune-abcdefgh").mkdir()
    (tmp_path / ".place.pgprune-old").mkdir()
    with pytest.warns(UserWarning, match="has no locks"):
        claim(tmp_path / "place")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {".place.pgprune-abcdefgh", "place"}, "what was there is put back all the same"


def test_a_link_leads_to_what_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "place").symlink_to(tmp_path / "disk" / "place")
    write(tmp_path / "place", "old")
    write(tmp_path / "place", "new")
    assert (tmp_path / "place").is_symlink()
    assert text_in(tmp_path / "disk" / "place") == "new"
    assert len(list(tmp_path.iterdir())) == 2


def test_what_cannot_be_replaced_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("a file")
    with pytest.raises(UserError, match="cannot be written; give a folder of yours"):
        claim(tmp_path / "file" / "place")
    monkeypatch.setattr(Path, "is_mount", lambda self: self == tmp_path)
    with pytest.raises(UserError, match="is a mount point"):
        claim(tmp_path)


def test_files_that_are_in_no_record_are_foreign(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "notes").write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "record.json").write_text(json.dumps({"files": ["inner/file", "record.json"]}))
    (tmp_path / "damaged.json").write_text("[]")
    assert files_in(tmp_path) == ["damaged.json", "inner/file", "link", "notes", "record.json"]
    records = ("record.json", "missing.json", "damaged.json")
    message = r"did not write: link, notes\. Move them elsewhere"
    with pytest.raises(UserError, match=message):
        check_no_foreign_files(tmp_path, records, "export")
    for name in ("notes", "link"):
        (tmp_path / name).unlink()
    check_no_foreign_files(tmp_path, records, "export")
    check_no_foreign_files(tmp_path / "missing", records, "export")
