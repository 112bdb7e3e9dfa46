"""Runs of the command line in seconds: a config file for the tiny model, and a way to run it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml

AtStep = Callable[[int, Callable[[], None]], None]


@dataclass(frozen=True)
class Outcome:
    """What a user sees of a run.

    Args:
        status: The exit status.
        out: What was written to stdout.
        err: What was written to stderr.
    """

    status: int
    out: str
    err: str


def refused(outcome: Outcome, *phrases: str) -> None:
    """Assert that the last line, and it alone, is an error that says all of this."""
    *before, last = outcome.err.splitlines()
    assert outcome.status == 2, outcome.err
    assert last.startswith("error: "), outcome.err
    assert not [line for line in before if "error" in line.lower() or "Traceback" in line]
    missing = [phrase for phrase in phrases if phrase not in last]
    assert not missing, f"{missing} in: {last}"


@dataclass(frozen=True)
class TinyCommand:
    """The command line with a config of six steps on a tiny model.

    Args:
        config: The config file.
        run_dir: The run's folder, which does not exist yet.
        outcome: Reads what was printed.
    """

    config: Path
    run_dir: Path
    outcome: Callable[[int], Outcome]

    def __call__(self, subcommand: str, *more: str) -> Outcome:
        """Run in this process what `python -m pgprune_lightning` would run."""
        from pgprune_lightning.cli import main

        self.outcome(0)  # forget what was printed before
        try:
            status = main([subcommand, "--config", str(self.config), *more])
        except SystemExit as end:  # raised by the parser, as every Python program's does
            status = int(end.code or 0)
        return self.outcome(status)

    def overlay(self, text: str) -> str:
        """Write a second config file and return its path."""
        path = self.config.with_name("overlay.yaml")
        path.write_text(text)
        return str(path)


@pytest.fixture
def tiny_command(
    tiny_model_folder: Path,
    tiny_texts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> TinyCommand:
    """A command line with a config and a run folder of the test's own."""
    config = tmp_path / "config.yaml"
    run_dir = tmp_path / "run"
    config.write_text(yaml.safe_dump(tiny_config(tiny_model_folder, tiny_texts, run_dir)))
    return TinyCommand(config, run_dir, lambda status: Outcome(status, *capsys.readouterr()))


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> AtStep:
    """Does something at the beginning of a step."""
    from pgprune_lightning.training import PolicyGradientPruning

    training_step = PolicyGradientPruning.training_step
    actions: dict[int, Callable[[], None]] = {}

    def step(self: PolicyGradientPruning, batch: Any, batch_idx: int) -> Any:
        actions.get(self.global_step, lambda: None)()
        return training_step(self, batch, batch_idx)

    monkeypatch.setattr(PolicyGradientPruning, "training_step", step)
    return actions.__setitem__


@pytest.fixture
def no_weights_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where weights would be loaded."""
    from pgprune_lightning.training import masked_model

    def fail(*_: Any, **__: Any) -> NoReturn:
        pytest.fail("the model's weights were loaded")

    monkeypatch.setattr(masked_model, "open_frozen_model", fail)


def tiny_config(model: Path, texts: Path, run_dir: Path) -> dict[str, Any]:
    """The config of six steps on a tiny model."""
    return {
        "run_dir": str(run_dir),
        "model": {
            "base_model": str(model),
            "keep_ratio": 0.6,
            "budget": {"probability_bounds": [0.05, 0.95]},
            "update": {"lr": 0.02},
            "initialization": {"num_blocks": 8},
            "execution": {"dtype": "float32"},
        },
        "data": {
            "train": {"path": str(texts / "train.txt")},
            "validation": {"path": str(texts / "valid.txt"), "label": "validation text"},
            "test": [{"path": str(texts / "test.txt"), "label": "test text"}],
            "block_length": 16,
            "evaluation_block_length": 16,
            "batch_size": 2,
        },
        "trainer": {
            "accelerator": "cpu",
            "max_steps": 6,
            "val_check_interval": 3,
            "log_every_n_steps": 1,
        },
        "checkpoint": {"every_n_train_steps": 3},
        "outcome_report": {"prompt": "w1 w2", "sample_tokens": 4},
    }
