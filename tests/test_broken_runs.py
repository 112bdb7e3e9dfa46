"""A run that cannot go on, or whose files are not what they were, says so and loses nothing."""

import json
import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pgprune_lightning.training import PolicyGradientPruning
from pgprune_lightning.training.mask_losses import MaskLosses
from pgprune_lightning.training.metrics_file import read_metrics
from tests.damaged_files import METRICS
from tests.tiny_commands import TinyCommand, refused


@pytest.fixture
def finished(tiny_command: TinyCommand) -> Path:
    """The folder of a finished run."""
    assert tiny_command("fit").status == 0
    return tiny_command.run_dir


def test_a_folder_that_holds_a_run_is_left_alone(tiny_command: TinyCommand, finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    refused(
        tiny_command("fit"), "already holds a run", "--resume auto", "--existing_run move_aside"
    )
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_a_refused_run_moves_no_other_aside(tiny_command: TinyCommand, finished: Path) -> None:
    refused(tiny_command("fit", "--existing_run=move_aside", "--model.units.protected_layers=[9]"))
    assert (finished / "summary.json").is_file()
    assert not finished.with_name("run-1").exists()


def test_a_truncated_checkpoint(
    tiny_command: TinyCommand, finished: Path, no_weights_loaded: None, tmp_path: Path
) -> None:
    whole = (finished / "checkpoints" / "last.ckpt").read_bytes()
    for size in (0, 100, len(whole) // 2, len(whole) - 30):
        (tmp_path / "cut.ckpt").write_bytes(whole[:size])
        refused(tiny_command("fit", f"--resume={tmp_path}/cut.ckpt"), "checkpoint", "damaged")


@pytest.mark.parametrize("key", ["state_dict", "base_model"])
def test_a_checkpoint_that_lacks_a_part(
    tiny_command: TinyCommand, finished: Path, no_weights_loaded: None, tmp_path: Path, key: str
) -> None:
    checkpoint = torch.load(finished / "checkpoints" / "last.ckpt", weights_only=True)
    del checkpoint[key]
    torch.save(checkpoint, tmp_path / "part.ckpt")
    refused(tiny_command("fit", f"--resume={tmp_path}/part.ckpt"), "holds no pruning policy")


@pytest.mark.parametrize("command", ["fit", "validate", "test"])
def test_a_checkpoint_over_other_units(
    tiny_command: TinyCommand, finished: Path, no_weights_loaded: None, command: str
) -> None:
    last = finished / "checkpoints" / "last.ckpt"
    given = "resume" if command == "fit" else "ckpt_path"
    outcome = tiny_command(command, f"--{given}={last}", "--model.units.kinds=[kv_group]")
    refused(outcome, "policy over 78 units", "give 6", "config.yaml")


def test_a_plan_for_other_units(tiny_command: TinyCommand, finished: Path) -> None:
    outcome = tiny_command(
        "test", f"--model.initialization.plan={finished}", "--model.units.kinds=[mlp_channel]"
    )
    refused(outcome, "initialization.plan", "kv_group, mlp_channel", "72 of kind mlp_channel")


def test_a_plan_for_other_weights(
    tiny_command: TinyCommand, finished: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_model_folder, other)
    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"] *= 2
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    outcome = tiny_command(
        "test", f"--model.initialization.plan={finished}", f"--model.base_model={other}"
    )
    refused(outcome, "plan: it was learned on", str(tiny_model_folder), str(other))


def test_a_damaged_plan(tiny_command: TinyCommand, finished: Path) -> None:
    (tensors,) = (finished / "plans" / "best").glob("*.safetensors")
    tensors.write_bytes(tensors.read_bytes()[:-1] + b"?")
    outcome = tiny_command("test", f"--model.initialization.plan={finished}")
    refused(outcome, "plan: ", "checksum")


@pytest.fixture
def losses_break(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Gives the second mask sample of step 4 a loss of one's choice."""

    def break_losses(value: float) -> None:
        samples = count()
        training_step, losses_under = PolicyGradientPruning.training_step, MaskLosses._under

        def step(self: PolicyGradientPruning, batch: Any, batch_idx: int) -> Any:
            if self.global_step == 4:
                monkeypatch.setattr(MaskLosses, "_under", broken)
            return training_step(self, batch, batch_idx)

        def broken(self: MaskLosses, *arguments: Any) -> torch.Tensor:
            return losses_under(self, *arguments) * (value if next(samples) == 1 else 1)

        monkeypatch.setattr(PolicyGradientPruning, "training_step", step)

    return break_losses


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_policy(
    tiny_command: TinyCommand,
    losses_break: Callable[[float], None],
    monkeypatch: pytest.MonkeyPatch,
    value: float,
) -> None:
    whole = tiny_command.run_dir.with_name("whole")
    assert tiny_command("fit", f"--run_dir={whole}").status == 0
    losses_break(value)

    refused(tiny_command("fit"), "mask sample 1 in step 4", str(value), "--resume")

    monkeypatch.undo()
    last = tiny_command.run_dir / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 4
    assert tiny_command("fit", "--resume=auto").status == 0
    policies = [
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for folder in (tiny_command.run_dir, whole)
    ]
    assert torch.equal(*(policy["policy.keep_probabilities"] for policy in policies))
    metrics = [(folder / "metrics.csv").read_text() for folder in (tiny_command.run_dir, whole)]
    assert metrics[0] == metrics[1]


@pytest.mark.parametrize("name", ["a field of a megabyte", "bytes that are no UTF-8"])
def test_damaged_metrics_do_not_stop_a_resume(
    tiny_command: TinyCommand, finished: Path, name: str
) -> None:
    """The run ended after step 6; two steps more are taken."""
    METRICS[name](finished / "metrics.csv")
    damaged = (finished / "metrics.csv").read_bytes()
    with pytest.warns(UserWarning, match=r"moved to metrics\.csv\.damaged-1") as said:
        outcome = tiny_command("fit", "--resume=auto", "--trainer.max_steps=8")
    assert outcome.status == 0, outcome.err
    assert len([w for w in said if "damaged-1" in str(w.message)]) == 1
    assert (finished / "metrics.csv.damaged-1").read_bytes() == damaged
    steps = [row["step"] for row in read_metrics(finished / "metrics.csv").rows]
    assert steps == ["6", "7", "8"]
    assert json.loads((finished / "summary.json").read_text())["steps"] == 8
