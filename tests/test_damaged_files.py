"""A damaged or foreign checkpoint or plan is one clear error, and nothing is overwritten."""

from pathlib import Path

import pytest

from tests.damaged_files import CHECKPOINTS, PLANS, spoiled
from tests.tiny_commands import TinyCommand, refused


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first test leaves a finished run."""
    return tmp_path_factory.mktemp("finished") / "run"


@pytest.mark.parametrize("name", [*CHECKPOINTS, *PLANS])
def test_refused(
    tiny_command: TinyCommand,
    tmp_path: Path,
    finished: Path,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not finished.exists():
        assert tiny_command("fit", f"--run_dir={finished}").status == 0
    monkeypatch.chdir(tmp_path)
    options, phrases = spoiled(name, finished, tmp_path / "spoiled")
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    refused(tiny_command("fit", *options), *phrases)
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before
    assert not (tmp_path / "trap-was-sprung").exists()
    assert not (tiny_command.run_dir / "checkpoints").exists()
    assert not (tiny_command.run_dir / "plans").exists()
