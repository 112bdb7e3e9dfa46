"""A run that is stopped after every step, and resumed each time, is the run that was not."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from pgprune_lightning.training import PolicyGradientPruning
from tests.run_traces import files_of, recorded_steps, steps_of
from tests.tiny_commands import TinyCommand, refused

STEPS = 6
WRAPPED = """
model:
  update:
    lr_schedule: cosine
    optimizer: pgprune_lightning.policy.Adam
  objective:
    mask_granularity: sequence
    num_mask_samples: 1
  policy:
    class_path: pgprune_lightning.policy.StructuredLogits
    init_args: {features: [magnitude], free_kinds: [kv_group], free_after: 3}
  estimator:
    class_path: pgprune_lightning.policy.LinearSurrogate
    init_args:
      estimator:
        class_path: pgprune_lightning.policy.DenseLossControlVariate
        init_args: {estimator: {class_path: pgprune_lightning.policy.LeaveOneOut}}
trainer:
  callbacks: [{class_path: callbacks.EarlyStop, init_args: {patience: 5}}]
"""
DEFAULT = "model: {objective: {num_mask_samples: 2}}\n"


@pytest.fixture
def stop_after_every_step(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sends SIGTERM in the step after the one that a run has started with; says which."""
    stopped: list[int] = []
    whole_step = PolicyGradientPruning.training_step

    def step(self: PolicyGradientPruning, batch: Any, batch_idx: int) -> Any:
        stopped.append(self.global_step)
        os.kill(os.getpid(), signal.SIGTERM)
        return whole_step(self, batch, batch_idx)

    monkeypatch.setattr(PolicyGradientPruning, "training_step", step)
    return stopped


@pytest.mark.parametrize(
    ("options", "workers"),
    [
        pytest.param(DEFAULT, 0, id="default"),
        pytest.param(DEFAULT, 2, id="default, 2 workers", marks=pytest.mark.slow),
        pytest.param(WRAPPED, 0, id="wrapped", marks=pytest.mark.slow),
        pytest.param(WRAPPED, 2, id="wrapped, 2 workers", marks=pytest.mark.slow),
    ],
)
def test_stopped_after_every_step(
    tiny_command: TinyCommand,
    tmp_path: Path,
    stop_after_every_step: list[int],
    monkeypatch: pytest.MonkeyPatch,
    options: str,
    workers: int,
) -> None:
    overlay = ("--config", tiny_command.overlay(options), f"--data.num_workers={workers}")
    resume = ("--resume=auto", "--checkpoint.every_n_train_steps=4", "--wandb.mode=offline")
    statuses = []
    with recorded_steps(tmp_path / "stopped.jsonl"):
        for _ in range(STEPS):
            outcome = tiny_command("fit", *overlay, *resume)
            statuses.append(outcome.status)
    assert statuses == [75] * STEPS, outcome.err
    assert stop_after_every_step == list(range(STEPS))
    monkeypatch.undo()
    with recorded_steps(tmp_path / "stopped.jsonl"):
        outcome = tiny_command("fit", *overlay, *resume)
    assert outcome.status == 0, outcome.err

    whole = tiny_command.run_dir.with_name("whole")
    with recorded_steps(tmp_path / "whole.jsonl"):
        own = ("--checkpoint.every_n_train_steps=4", f"--run_dir={whole}")
        assert tiny_command("fit", *overlay, *own).status == 0

    assert steps_of(tmp_path / "stopped.jsonl") == steps_of(tmp_path / "whole.jsonl")
    stopped_files, whole_files = files_of(tiny_command.run_dir), files_of(whole)
    assert stopped_files == whole_files
    assert not whole_files["temporary"]
    assert len({path.name for path in tiny_command.run_dir.glob("metrics*")}) == 1
    assert len((tiny_command.run_dir / "wandb_run_id.txt").read_text()) == 8


def test_a_validation_that_was_broken_off_is_made_again(
    tiny_command: TinyCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the validation after step 3, whose checkpoint was saved before."""
    validation_step = PolicyGradientPruning.validation_step

    def broken(self: PolicyGradientPruning, *arguments: Any) -> Any:
        if self.global_step == 3:
            raise SystemExit(9)
        return validation_step(self, *arguments)

    monkeypatch.setattr(PolicyGradientPruning, "validation_step", broken)
    assert tiny_command("fit").status == 9
    last = torch.load(tiny_command.run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 3
    assert last["validation_due"]
    monkeypatch.undo()
    assert tiny_command("fit", "--resume=auto").status == 0
    whole = tiny_command.run_dir.with_name("whole")
    assert tiny_command("fit", f"--run_dir={whole}").status == 0
    assert files_of(tiny_command.run_dir) == files_of(whole)


def test_a_checkpoint_is_small_and_holds_everything(tiny_command: TinyCommand) -> None:
    assert tiny_command("fit").status == 0
    path = tiny_command.run_dir / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    assert path.stat().st_size < 100_000
    plans = json.dumps(list(checkpoint["callbacks"]))
    assert "MaskCheckpoint" in plans
    states = checkpoint["callbacks"]
    assert set(states["MaskCheckpoint"]["plans"]) == {"initial", "best"}
    assert sorted(states["PerplexityValidation"]["history"]) == [0, 3, 6]
    assert {"estimator.baseline", "policy.keep_probabilities"} < set(checkpoint["state_dict"])


def test_a_finished_run_is_left_as_it_is(tiny_command: TinyCommand) -> None:
    assert tiny_command("fit").status == 0
    before = files_of(tiny_command.run_dir)
    again = tiny_command("fit", "--resume=auto")
    assert again.status == 0, again.err
    assert files_of(tiny_command.run_dir) == before


def test_fit_says_how_to_go_on(tiny_command: TinyCommand) -> None:
    refused(tiny_command("fit", "--ckpt_path=a.ckpt"), "--resume a.ckpt", "--resume auto")
