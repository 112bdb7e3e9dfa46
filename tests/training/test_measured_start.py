"""A start that is stopped while it is measured goes on, and leaves no empty folder."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pgprune_lightning.initialization import gate_gradients as gates
from pgprune_lightning.initialization import measurement
from pgprune_lightning.plan import PruningPlan
from pgprune_lightning.training.run_folder import START_FILE
from tests.tiny_commands import Outcome, TinyCommand, refused

FISHER = ("--model.initialization.metric=fisher", "--model.initialization.refine_steps=2")
PARTS = 4 + 2
"""Batches of the metric, and steps of the refinement."""


def _stopped_in(part: int, number: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Send a signal in a part of the measurement, and count the parts."""
    calls: list[int] = []
    original = gates.gradients_at

    def counted(*arguments: Any) -> Tensor:
        calls.append(1)
        if len(calls) == part:
            os.kill(os.getpid(), number)
        return original(*arguments)

    monkeypatch.setattr(gates, "gradients_at", counted)
    monkeypatch.setattr("pgprune_lightning.initialization.refinement.gradients_at", counted)
    return calls


def _plans(run_dir: Path) -> list[tuple[bytes, bytes]]:
    plans = [PruningPlan.load(run_dir / "plans" / name) for name in ("initial", "best", "last")]
    return [
        (plan.keep_probabilities_U.numpy().tobytes(), plan.mask_U.numpy().tobytes())
        for plan in plans
    ]


def _fit(command: TinyCommand, run_dir: Path, *more: str) -> Outcome:
    return command("fit", f"--run_dir={run_dir}", *FISHER, *more)


@pytest.mark.parametrize(
    ("part", "number", "status"),
    [
        (6, signal.SIGINT, 130),
        pytest.param(3, signal.SIGTERM, 75, marks=pytest.mark.exhaustive),
    ],
)
def test_it_goes_on_to_the_same_bits(
    tiny_command: TinyCommand,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    part: int,
    number: int,
    status: int,
) -> None:
    monkeypatch.setattr(measurement, "SECONDS_BETWEEN_SAVES", 0.0)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert _fit(tiny_command, whole).status == 0
    with monkeypatch.context() as patch:
        _stopped_in(part, number, patch)
        outcome = _fit(tiny_command, stopped)
    assert outcome.status == status
    assert "What was measured of the start is kept. Go on with --resume auto." in outcome.err
    assert [path.name for path in stopped.iterdir()] == [START_FILE]

    refused(_fit(tiny_command, stopped), "already holds a run", "--resume auto")
    with monkeypatch.context() as patch:
        calls = _stopped_in(0, number, patch)
        outcome = _fit(tiny_command, stopped, "--resume=auto")
    assert outcome.status == 0, outcome.err
    assert f"Going on from {stopped / START_FILE}" in outcome.err
    assert len(calls) == PARTS - (part - 1)
    assert _plans(stopped) == _plans(whole)
    assert (stopped / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
    assert not (stopped / START_FILE).exists()
    assert not (whole / START_FILE).exists()


def test_with_nothing_to_keep_no_folder_is_left(
    tiny_command: TinyCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    _stopped_in(1, signal.SIGINT, monkeypatch)
    outcome = _fit(tiny_command, tiny_command.run_dir)
    assert outcome.status == 130
    assert "There was nothing to keep yet. Start the same command again." in outcome.err
    assert "Traceback" not in outcome.err
    assert not tiny_command.run_dir.exists()


def test_an_empty_folder_of_the_users_stays(
    tiny_command: TinyCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_command.run_dir.mkdir()
    _stopped_in(1, signal.SIGINT, monkeypatch)
    assert _fit(tiny_command, tiny_command.run_dir).status == 130
    assert list(tiny_command.run_dir.iterdir()) == []


@pytest.mark.parametrize(
    "spoil", ["damaged", pytest.param("other options", marks=pytest.mark.exhaustive)]
)
def test_what_does_not_belong_is_measured_anew(
    tiny_command: TinyCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: str
) -> None:
    monkeypatch.setattr(measurement, "SECONDS_BETWEEN_SAVES", 0.0)
    run_dir, whole = tmp_path / "run", tmp_path / "whole"
    other = ("--model.keep_ratio=0.5",) if spoil == "other options" else ()
    with monkeypatch.context() as patch:
        _stopped_in(3, signal.SIGTERM, patch)
        assert _fit(tiny_command, run_dir).status == 75
    if spoil == "damaged":
        content = bytearray((run_dir / START_FILE).read_bytes())
        content[len(content) // 2] ^= 1
        (run_dir / START_FILE).write_bytes(content)
    said = "is damaged" if spoil == "damaged" else "of another start"
    with pytest.warns(UserWarning, match=rf"start\.ckpt is .*{said.removeprefix('is ')}"):
        assert _fit(tiny_command, run_dir, "--resume=auto", *other).status == 0
    assert _fit(tiny_command, whole, *other).status == 0
    assert _plans(run_dir) == _plans(whole)


def test_the_time_of_the_part_before_counts(
    tiny_command: TinyCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measurement, "SECONDS_BETWEEN_SAVES", 0.0)
    run_dir = tmp_path / "run"
    with monkeypatch.context() as patch:
        _stopped_in(3, signal.SIGTERM, patch)
        assert _fit(tiny_command, run_dir).status == 75
    kept = torch.load(run_dir / START_FILE, weights_only=True)
    assert 0 < kept["seconds"] < 60
    torch.save(kept | {"seconds": 1000.0}, run_dir / START_FILE)
    assert _fit(tiny_command, run_dir, "--resume=auto").status == 0
    assert 1000 < json.loads((run_dir / "summary.json").read_text())["seconds"] < 1060
