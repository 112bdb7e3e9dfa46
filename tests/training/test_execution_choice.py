"""An automatic choice times both executions in turn, picks the faster, and a resumed run keeps it.

Shapes: U units.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pgprune_lightning.masking import GatheredExecution, MultipliedExecution, mask_space_of
from pgprune_lightning.training import execution_choice
from pgprune_lightning.training.execution_choice import ExecutionChoice, ExecutionName
from tests.tiny_models import make_tiny_model
from tests.tiny_runs import TinyRun

CLASSES = {"gathered": GatheredExecution, "multiplied": MultipliedExecution}


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
        return ExecutionChoice(model, mask_space_of(model, ["mlp_channel"]), name)

    return make


def mask_of(choice: ExecutionChoice) -> Tensor:
    return torch.arange(choice.multiplied.space.num_units) % 4 > 0


def run_passes(choice: ExecutionChoice, clock: Clock, seconds: dict[str, list[float]]) -> list[str]:
    """Passes that take so long; the executions that were given them."""
    names = []
    remaining = {name: iter(values) for name, values in seconds.items()}
    for _ in range(sum(len(values) for values in seconds.values())):
        with choice.timed(mask_of(choice)):
            name = "gathered" if isinstance(choice.current, GatheredExecution) else "multiplied"
            clock.seconds += next(remaining[name])
        names.append(name)
    return names


@pytest.mark.parametrize(
    ("gathered", "multiplied", "picked"),
    [
        ([9.0, 1.0, 1.0, 8.0], [0.1, 2.0, 2.0, 2.0], "gathered"),
        ([0.1, 3.0, 3.0, 1.0], [9.0, 2.0, 2.0, 8.0], "multiplied"),
    ],
)
def test_the_faster_by_the_median_is_picked(
    make_choice: Callable[[ExecutionName], ExecutionChoice],
    clock: Clock,
    capsys: pytest.CaptureFixture[str],
    gathered: list[float],
    multiplied: list[float],
    picked: str,
) -> None:
    """The first pass of each, which warms up, says the opposite, and so do the means."""
    choice = make_choice("auto")
    seconds = {"gathered": gathered, "multiplied": multiplied}
    names = run_passes(choice, clock, seconds)
    assert names == ["gathered", "multiplied"] * 4
    assert choice.picked == picked
    assert type(choice.current) is CLASSES[picked]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"execution: {picked}, ")
    assert "1.0000" in line or "3.0000" in line
    assert "2.0000" in line
    assert "75%" in line
    with choice.timed(mask_of(choice)):
        clock.seconds += 100
    assert choice.picked == picked


@pytest.mark.parametrize("name", CLASSES)
def test_a_named_execution_is_not_measured(
    make_choice: Callable[[ExecutionName], ExecutionChoice], clock: Clock, name: ExecutionName
) -> None:
    choice = make_choice(name)
    choice.restore("multiplied" if name == "gathered" else "gathered")
    with choice.timed(mask_of(choice)):
        assert type(choice.current) is CLASSES[name]
    assert choice.picked == name


def test_until_then_masks_are_gathered(
    make_choice: Callable[[ExecutionName], ExecutionChoice], clock: Clock
) -> None:
    """And a pass that fails is neither counted nor leaves its execution behind."""
    choice = make_choice("auto")
    run_passes(choice, clock, {"gathered": [1.0]})
    with pytest.raises(RuntimeError, match="in the pass"), choice.timed(mask_of(choice)):
        raise RuntimeError("in the pass")
    assert choice.picked is None
    assert isinstance(choice.current, GatheredExecution)
    with choice.timed(mask_of(choice)):
        assert isinstance(choice.current, MultipliedExecution)


def test_a_resumed_run_goes_on_with_what_was_picked(tiny_run: TinyRun, clock: Clock) -> None:
    """On the stopped clock both take no time, so that the pick would be the first, gathered."""
    checkpoints = {}
    for execution in ("auto", "multiplied"):
        trainer = tiny_run.trainer(max_steps=4)
        module = tiny_run.module(execution=execution)
        trainer.fit(module, datamodule=tiny_run.datamodule())
        path = tiny_run.folder / f"{execution}.ckpt"
        trainer.save_checkpoint(path)
        checkpoints[execution] = torch.load(path, weights_only=True)
    assert {name: saved["execution"] for name, saved in checkpoints.items()} == {
        "auto": "gathered",
        "multiplied": "multiplied",
    }
    for given, used in [("auto", "multiplied"), ("gathered", "gathered")]:
        resumed = tiny_run.module(execution=given)
        tiny_run.trainer(max_steps=5).fit(
            resumed, datamodule=tiny_run.datamodule(), ckpt_path=tiny_run.folder / "multiplied.ckpt"
        )
        assert resumed.environment.execution == used
