import warnings
from pathlib import Path

import pytest

from pgprune_lightning.errors import UserError
from pgprune_lightning.training.run_folder import (
    RUN_FILES,
    FolderWatch,
    check_run_folder,
    claim_run_folder,
)


@pytest.fixture
def old_run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text("old")
    return folder


def test_a_new_folder_is_made_with_its_parents(tmp_path: Path) -> None:
    claim_run_folder(tmp_path / "a" / "b", "stop", resumes=False)
    assert (tmp_path / "a" / "b").is_dir()


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    claim_run_folder(tmp_path, "stop", resumes=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", RUN_FILES)
def test_any_trace_of_a_run_stops_the_next(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    for refuse in (check_run_folder, claim_run_folder):
        with pytest.raises(UserError, match="already holds a run") as refusal:
            refuse(tmp_path, "stop", resumes=False)
        assert "--existing_run move_aside" in str(refusal.value)
        assert "--resume auto" in str(refusal.value)


def test_a_check_changes_nothing(old_run: Path) -> None:
    check_run_folder(old_run, "move_aside", resumes=False)
    assert (old_run / "config.yaml").read_text() == "old"


def test_a_run_goes_on_in_its_own_folder(old_run: Path) -> None:
    claim_run_folder(old_run, "stop", resumes=True)
    claim_run_folder(old_run, "move_aside", resumes=True)
    assert [path.name for path in old_run.parent.iterdir()] == ["run"]
    assert (old_run / "config.yaml").read_text() == "old"


def test_each_old_run_is_moved_to_a_name_of_its_own(old_run: Path) -> None:
    for number in (1, 2):
        claim_run_folder(old_run, "move_aside", resumes=False)
        assert not list(old_run.iterdir())
        (old_run / "config.yaml").write_text(f"new {number}")
    contents = {path.parent.name: path.read_text() for path in old_run.parent.glob("*/*")}
    assert contents == {"run-1": "old", "run-2": "new 1", "run": "new 2"}


def test_a_file_in_the_way_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(UserError, match="cannot be made: File exists"):
        claim_run_folder(tmp_path / "run", "stop", resumes=False)


NAMES = ("a", "b/c", "never")


@pytest.fixture
def watched(tmp_path: Path) -> Path:
    (tmp_path / "b").mkdir()
    for name in ("a", "b/c", "other"):
        (tmp_path / name).write_text("")
    return tmp_path


def test_nothing_is_said_of_what_is_there_or_never_was(watched: Path) -> None:
    watch = FolderWatch(watched, NAMES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        watch.look()
        (watched / "other").unlink()
        watch.look()
    watch.check()


def test_what_is_deleted_is_said_once_and_refused_in_the_end(watched: Path) -> None:
    watch = FolderWatch(watched, NAMES)
    watch.look()
    (watched / "a").unlink()
    (watched / "b" / "c").unlink()
    with pytest.warns(UserWarning, match="deleted during the run: a, b/c"):
        watch.look()
    (watched / "a").write_text("again")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        watch.look()
        (watched / "a").unlink()
        watch.look()
    (watched / "a").write_text("again")
    with pytest.raises(
        UserError, match=r"deleted during the run: a, b/c.* Still missing: b/c; --resume auto"
    ):
        watch.check()


def test_a_disk_that_does_not_answer_has_deleted_nothing(
    watched: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = FolderWatch(watched, NAMES)
    watch.look()

    def stale(_: Path) -> None:
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(Path, "stat", stale)
    watch.look()
    monkeypatch.undo()
    watch.look()
    watch.check()
