"""No file of a command can be seen half: each is renamed into its place, or grows by whole rows.

Nor by users whom the umask excludes.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pgprune_lightning.benchmark.picture import draw
from pgprune_lightning.cli import main
from tests.tiny_commands import Outcome, TinyCommand
from tests.tiny_experiments import Compare

TEMPORARY = ".pgprune-tmp-"
OF_A_FOLDER = ".pgprune-"
"""In the name of a folder that is renamed when it is whole."""
LOCK = ".pgprune.lock"
"""Ends the name of a file that is locked and removed, and holds nothing of a result."""
GROWING = ("metrics.csv", "log.txt")
"""Files that lines are appended to: a whole row by one call, and what a trial has printed."""


class RecordedWrites:
    """What this process opens for writing and renames below a folder, while it is watched."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.opened: list[tuple[Path, bool]] = []
        self.renamed: set[Path] = set()

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Take an audit event of Python; a hook cannot be removed again."""
        if self.folder is None or event not in ("open", "os.rename"):
            return
        if event == "open" and isinstance(arguments[0], (str, bytes, os.PathLike)):
            path, _, flags = arguments
            if flags & (os.O_WRONLY | os.O_RDWR):
                self.opened.append((Path(os.fsdecode(path)), bool(flags & os.O_APPEND)))
        if event == "os.rename":
            self.renamed.add(Path(os.fsdecode(arguments[1])))

    def seen_half(self, folder: Path) -> list[str]:
        """What a reader of a folder could have seen half, or has come about in another way."""
        in_place = [
            path
            for path, appends in self.opened
            if _is_visible(path, folder) and not (appends and path.name in GROWING)
        ]
        left = [
            path
            for path in folder.rglob("*")
            if path.is_file() and path.name != "log.txt" and not self._was_renamed(path)
        ]
        return sorted(f"{path.relative_to(folder)}" for path in {*in_place, *left})

    def _was_renamed(self, path: Path) -> bool:
        return any(place in self.renamed for place in (path, *path.parents))


def _is_visible(path: Path, folder: Path) -> bool:
    """Whether a path lies in a folder under a name that stays."""
    if not path.is_relative_to(folder):
        return False
    parts = path.relative_to(folder).parts
    is_lock = path.name.endswith(LOCK)
    return not is_lock and not any(
        part.startswith(TEMPORARY) or OF_A_FOLDER in part for part in parts
    )


_WRITES = RecordedWrites()


@pytest.fixture(scope="module", autouse=True)
def _audited() -> None:
    sys.addaudithook(_WRITES.hook)


@pytest.fixture
def writes(tmp_path: Path) -> Iterator[RecordedWrites]:
    """Watches the test's own folder."""
    _WRITES.__init__()  # type: ignore[misc]
    _WRITES.folder = tmp_path
    yield _WRITES
    _WRITES.folder = None


@pytest.fixture
def umask_027() -> Iterator[None]:
    """Keeps what is written from users outside of the group."""
    before = os.umask(0o027)
    yield
    os.umask(before)


def test_a_write_in_place_is_seen(writes: RecordedWrites, tmp_path: Path) -> None:
    for name in ("half", "metrics.csv", "whole"):
        (tmp_path / name).write_text("a row\n")
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("a row\n")
    (tmp_path / "whole").rename(tmp_path / "renamed")
    assert writes.seen_half(tmp_path) == ["half", "metrics.csv", "whole"]


def test_a_run_and_what_is_made_of_it(
    writes: RecordedWrites,
    tiny_command: TinyCommand,
    tiny_texts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    umask_027: None,
) -> None:
    run, text = str(tiny_command.run_dir), str(tiny_texts / "test.txt")
    assert tiny_command("fit", "--trainer.max_steps=4").status == 0
    assert tiny_command("fit", "--resume=auto").status == 0
    measured = ("--texts", text, "--lengths", "16", "--dtype", "float32", "--device", "cpu")
    evaluated = str(tmp_path / "evaluated" / "result.json")
    assert main(["evaluate", "--model", run, *measured, "--output", evaluated]) == 0
    assert main(["report", run, "--output", str(tmp_path / "report.html")]) == 0
    curve = ("--keep-ratio", "0.5", "0.6", "--text", text, "--block-length", "16")
    exported = ("--format", "hf", "--output", str(tmp_path / "exported"), "--device", "cpu")
    assert main(["export", "--plan", run, *exported, *curve]) == 0
    capsys.readouterr()

    config = tmp_path / "config.yaml"  # the test's own
    assert writes.seen_half(tmp_path) == [config.name]
    made = [path for path in tmp_path.rglob("*") if path != config]
    modes = {(path.is_dir(), stat.S_IMODE(path.stat().st_mode)) for path in made}
    assert modes == {(True, 0o750), (False, 0o640)}
    names = {path.name for path in tmp_path.rglob("*")}
    assert {"metrics.csv", "summary.json", "last.ckpt", "plan.json", "result.md"} < names
    assert {"report.html", "curve.json", "export.json", "model.safetensors"} < names


def test_a_comparison(writes: RecordedWrites, compare: Compare, tmp_path: Path) -> None:
    methods = {"dense": {"kind": "dense"}, "one": {"kind": "metric"}, "same": {"kind": "metric"}}
    outcome = compare(methods=methods, seeds=[0], evaluation_lengths=[16])
    assert outcome.status == 0, outcome.err
    assert "as in all / one" in outcome.out  # a trial that is copied
    assert writes.seen_half(tmp_path / "out") == []
    names = {path.name for path in (tmp_path / "out").rglob("*")}
    assert {"compare.json", "table.md", "picture1_bars.png", "picture1_bars.svg"} < names
    assert {"trial.json", "options.json", "log.txt", "plan.json"} < names


def test_a_fine_tuning(
    writes: RecordedWrites, finetune: Callable[..., Outcome], tmp_path: Path
) -> None:
    pytest.importorskip("peft", reason="pip install -e '.[finetune]'")
    assert finetune(tmp_path / "tuned").status == 0
    assert writes.seen_half(tmp_path) == []
    names = {path.name for path in (tmp_path / "tuned").iterdir()}
    assert {"finetune.json", "metrics.csv", "model.safetensors", "export.json"} < names


def test_the_picture_of_a_benchmark(writes: RecordedWrites, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pip install -e '.[plots]'")
    cost = {"median_seconds": 1.0}
    result = {"model": "m", "parameters": 1, "keep_ratio": 0.5, "reference": cost, "ours": cost}
    for suffix, start in ((".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")):
        path = tmp_path / "pictures" / f"costs{suffix}"
        draw([result], path)
        assert path.read_bytes().startswith(start)
    assert writes.seen_half(tmp_path) == []
