"""The newest checkpoint that loads is taken, and a run that has none left stops."""

from pathlib import Path

import pytest
import torch

from pgprune_lightning.errors import UserError
from pgprune_lightning.training.checkpoints import find_checkpoint


def write_checkpoint(path: Path, step: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {"policy.keep_probabilities": torch.zeros(3)}
    content = {
        "state_dict": state,
        "base_model": {"fingerprint": "", "source": ""},
        "global_step": step,
    }
    torch.save(content | {"loops": {}, "optimizer_states": [], "callbacks": {}}, path)
    return path


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoints"
    for step in (2, 4):
        write_checkpoint(folder / f"step={step:08d}.ckpt", step)
    write_checkpoint(folder / "last.ckpt", 6)
    return folder


def test_never_looks_at_nothing(checkpoints: Path) -> None:
    assert find_checkpoint("never", checkpoints.parent) is None


def test_the_newest_is_taken(checkpoints: Path) -> None:
    assert find_checkpoint("auto", checkpoints.parent) == checkpoints / "last.ckpt"
    (checkpoints / "last.ckpt").unlink()
    assert find_checkpoint("auto", checkpoints.parent) == checkpoints / "step=00000004.ckpt"


def test_what_a_run_left_before_it_went_back_is_not_taken(checkpoints: Path) -> None:
    write_checkpoint(checkpoints / "step=00000008.ckpt", 8)
    assert find_checkpoint("auto", checkpoints.parent) == checkpoints / "last.ckpt"


def test_a_damaged_one_is_named_and_passed_over(checkpoints: Path) -> None:
    last = checkpoints / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-40])
    with pytest.warns(UserWarning, match=r"passed over.*last\.ckpt is damaged"):
        found = find_checkpoint("auto", checkpoints.parent)
    assert found == checkpoints / "step=00000004.ckpt"


def test_a_run_stops_where_none_loads(checkpoints: Path) -> None:
    for path in checkpoints.iterdir():
        path.write_bytes(b"")
    with (
        pytest.warns(UserWarning, match="passed over"),
        pytest.raises(UserError, match="none of its checkpoints loads"),
    ):
        find_checkpoint("auto", checkpoints.parent)


@pytest.mark.parametrize("name", ["summary.json", "metrics.csv"])
def test_a_run_stops_where_they_are_gone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("step,loss\n0,1.5\n1,1.25\n")
    with pytest.raises(UserError, match="its checkpoints are gone"):
        find_checkpoint("auto", tmp_path)


@pytest.mark.parametrize("content", [b"step,loss\n1," + b"1" * 2**18 + b"\n", b"\xff\xfe\0"])
def test_a_run_whose_metrics_are_damaged_stops_where_they_are_gone(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "metrics.csv").write_bytes(content)
    with pytest.raises(UserError, match="its checkpoints are gone"):
        find_checkpoint("auto", tmp_path)


@pytest.mark.parametrize("rows", ["", "step,loss\n", "step,loss\n0,1.5\n"])
def test_what_was_killed_before_its_first_step_starts(tmp_path: Path, rows: str) -> None:
    (tmp_path / "metrics.csv").write_text(rows)
    (tmp_path / "plans" / "initial").mkdir(parents=True)
    assert find_checkpoint("auto", tmp_path) is None
    assert find_checkpoint("auto", tmp_path / "new") is None


def test_the_one_named_is_taken_or_refused(checkpoints: Path) -> None:
    named = checkpoints / "step=00000002.ckpt"
    assert find_checkpoint(str(named), checkpoints.parent) == named
    with pytest.raises(UserError, match="there is no file"):
        find_checkpoint(str(checkpoints / "none.ckpt"), checkpoints.parent)
