"""The bar of a run shows the last numbers, and reads none that it does not show."""

from __future__ import annotations

from typing import Any

import pytest
from lightning.pytorch import Callback
from torch import Tensor

from callbacks import TrainingProgress
from pgprune_lightning.policy import FeasibleSet
from tests.tiny_runs import TinyRun


class StopAfter(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        trainer.should_stop = trainer.global_step == self.step


class Losses(Callback):
    def __init__(self) -> None:
        self.last = ""

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
        self.last = f"loss={float(outputs['losses'].mean()):.3f}"


@pytest.mark.parametrize("steps", [4, 3])
def test_numbers_are_read_when_they_are_shown(
    tiny_run: TinyRun,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    steps: int,
) -> None:
    reads, losses = [], Losses()
    expected_keep_ratio = FeasibleSet.expected_keep_ratio

    def counted(self: FeasibleSet, s_U: Tensor) -> float:
        reads.append(s_U)
        return expected_keep_ratio(self, s_U)

    monkeypatch.setattr(FeasibleSet, "expected_keep_ratio", counted)
    callbacks = [TrainingProgress(), losses, StopAfter(steps)]
    tiny_run.fit(callbacks, enable_progress_bar=True, max_steps=4, min_epochs=0)
    lines = capsys.readouterr().err.replace("\n", "\r").split("\r")
    shown = [line for line in lines if f"{steps}/4" in line][-1]
    assert losses.last in shown
    assert len(reads) == 1, "in a log file a line every half minute"


def test_a_bar_of_another_rank_shows_and_reads_nothing(
    tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(FeasibleSet, "expected_keep_ratio", None)
    bar = TrainingProgress()
    bar.disable()
    tiny_run.fit([bar], enable_progress_bar=True)
    assert "Training" not in capsys.readouterr().err
