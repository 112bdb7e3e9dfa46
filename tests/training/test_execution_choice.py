"""An automatic choice times the executions in turn, picks the fastest; a resumed run keeps it.

Shapes: S mask samples, U units.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pgprune_lightning.masking import CompactExecution, DenseMaskedExecution, unit_layout_of
from pgprune_lightning.training import execution_choice
from pgprune_lightning.training.execution_choice import ExecutionChoice, ExecutionName
from pgprune_lightning.training.mask_losses import MaskLosses
from tests.tiny_models import make_tiny_model
from tests.tiny_runs import TinyRun

CLASSES = {
    "compact": CompactExecution,
    "dense_masked": DenseMaskedExecution,
    "batched": DenseMaskedExecution,
}
"""What puts a single mask on the model."""


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(execution_choice.time, "perf_counter", clock)
    return clock


@pytest.fixture
def make_choice() -> Callable[[ExecutionName], ExecutionChoice]:
    def make(name: ExecutionName) -> ExecutionChoice:
        model = make_tiny_model("llama_gqa")
        return ExecutionChoice(model, unit_layout_of(model, ["mlp_channel"]), name)

    return make


def masks_of(choice: ExecutionChoice) -> Tensor:
    return (torch.arange(choice.dense_masked.space.num_units) % 4 > 0).expand(2, -1)


def run_steps(choice: ExecutionChoice, clock: Clock, seconds: dict[str, list[float]]) -> list[str]:
    """Steps that take so long; the executions that were given them."""
    names = []
    remaining = {name: iter(values) for name, values in seconds.items()}
    for _ in range(sum(len(values) for values in seconds.values())):
        with choice.timed(masks_of(choice)):
            clock.seconds += next(remaining[choice.name])
            names.append(choice.name)
    return names


@pytest.mark.parametrize(
    ("compact", "dense_masked", "batched", "picked"),
    [
        ([9.0, 9.0, 1.0], [0.1, 2.0, 2.0], [0.1, 3.0, 3.0], "compact"),
        ([0.1, 2.0, 2.0], [9.0, 1.0, 9.0], [0.1, 3.0, 3.0], "dense_masked"),
        ([0.1, 2.0, 2.0], [0.1, 3.0, 3.0], [9.0, 9.0, 1.0], "batched"),
    ],
)
def test_the_fastest_is_picked(
    make_choice: Callable[[ExecutionName], ExecutionChoice],
    clock: Clock,
    capsys: pytest.CaptureFixture[str],
    compact: list[float],
    dense_masked: list[float],
    batched: list[float],
    picked: str,
) -> None:
    """The first step of each, which warms up, says the opposite, and so do the means."""
    choice = make_choice("auto")
    seconds = {"compact": compact, "dense_masked": dense_masked, "batched": batched}
    names = run_steps(choice, clock, seconds)
    assert names == ["compact", "dense_masked", "batched"] * 3
    assert choice.picked == choice.name == picked
    assert type(choice.current) is CLASSES[picked]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"execution: {picked}, 1.0000 s ")
    assert line.index("2.0000") < line.index("3.0000")
    assert "75%" in line
    with choice.timed(masks_of(choice)):
        clock.seconds += 100
    assert choice.picked == picked


@pytest.mark.parametrize("slow", ["compact", "batched"])
def test_with_a_mask_a_sequence_two_are_tried(
    make_choice: Callable[[ExecutionName], ExecutionChoice],
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    slow: str,
) -> None:
    """Such masks cannot be gathered: under `compact` they are multiplied all the same."""
    choice = make_choice("auto")
    names = []

    class Slowed(MaskLosses):
        def _of_part(self, *arguments: Any) -> Tensor:
            names.append(choice.name)
            clock.seconds += choice.name == slow
            return super()._of_part(*arguments)

    batch_BT = torch.arange(16).view(2, 8)
    losses = [Slowed(choice).losses_of_sequences(batch_BT, masks_of(choice)) for _ in range(7)]
    for losses_B in losses:
        torch.testing.assert_close(losses_B, losses[0])
    (other,) = {"compact", "batched"} - {slow}
    assert names == ["compact", "batched"] * 3 + [other]
    assert choice.picked == other
    assert capsys.readouterr().err.startswith(f"execution: {other}, 0.0000 s ")


@pytest.mark.parametrize("name", CLASSES)
def test_a_named_execution_is_not_measured(
    make_choice: Callable[[ExecutionName], ExecutionChoice], clock: Clock, name: ExecutionName
) -> None:
    choice = make_choice(name)
    choice.restore("dense_masked" if name == "compact" else "compact")
    with choice.timed(masks_of(choice)):
        assert choice.name == name
        assert type(choice.current) is CLASSES[name]
    assert choice.picked == name


def test_until_then_masks_are_gathered(
    make_choice: Callable[[ExecutionName], ExecutionChoice], clock: Clock
) -> None:
    """And a step that fails is neither counted nor leaves its execution behind."""
    choice = make_choice("auto")
    run_steps(choice, clock, {"compact": [1.0]})
    with pytest.raises(RuntimeError, match="in the step"), choice.timed(masks_of(choice)):
        raise RuntimeError("in the step")
    assert choice.picked is None
    assert isinstance(choice.current, CompactExecution)
    with choice.timed(masks_of(choice)):
        assert isinstance(choice.current, DenseMaskedExecution)


def test_a_resumed_run_goes_on_with_what_was_picked(tiny_run: TinyRun, clock: Clock) -> None:
    """On the stopped clock none takes time, so that the pick would be the first, compact."""
    checkpoints = {}
    for execution in ("auto", "dense_masked", "batched"):
        trainer = tiny_run.trainer(max_steps=9)
        module = tiny_run.module(mode=execution)
        trainer.fit(module, datamodule=tiny_run.datamodule())
        path = tiny_run.folder / f"{execution}.ckpt"
        trainer.save_checkpoint(path)
        checkpoints[execution] = torch.load(path, weights_only=True)
    assert {name: saved["execution"] for name, saved in checkpoints.items()} == {
        "auto": "compact",
        "dense_masked": "dense_masked",
        "batched": "batched",
    }
    for given, used in [("auto", "batched"), ("compact", "compact")]:
        resumed = tiny_run.module(mode=given)
        tiny_run.trainer(max_steps=10).fit(
            resumed, datamodule=tiny_run.datamodule(), ckpt_path=tiny_run.folder / "batched.ckpt"
        )
        assert resumed.masked_model.execution == used
