import warnings
from pathlib import Path

import pytest

from pgprune_lightning.errors import UserError
from pgprune_lightning.training.folder_watch import FolderWatch

NAMES = ("a", "b/c", "never")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "b").mkdir()
    for name in ("a", "b/c", "other"):
        (tmp_path / name).write_text("")
    return tmp_path


def test_nothing_is_said_of_what_is_there_or_never_was(folder: Path) -> None:
    watch = FolderWatch(folder, NAMES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        watch.look()
        (folder / "other").unlink()
        watch.look()
    watch.check()


def test_what_is_deleted_is_said_once_and_refused_in_the_end(folder: Path) -> None:
    watch = FolderWatch(folder, NAMES)
    watch.look()
    (folder / "a").unlink()
    (folder / "b" / "c").unlink()
    with pytest.warns(UserWarning, match="deleted during the run: a, b/c"):
        watch.look()
    (folder / "a").write_text("again")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        watch.look()
        (folder / "a").unlink()
        watch.look()
    (folder / "a").write_text("again")
    with pytest.raises(
        UserError, match=r"deleted during the run: a, b/c.* Still missing: b/c; --resume auto"
    ):
        watch.check()


def test_a_disk_that_does_not_answer_has_deleted_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = FolderWatch(folder, NAMES)
    watch.look()

    def stale(_: Path) -> None:
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(Path, "stat", stale)
    watch.look()
    monkeypatch.undo()
    watch.look()
    watch.check()
