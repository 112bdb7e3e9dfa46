"""A signal stops a run after its step, with a checkpoint and the right status."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from callbacks import Preemption, RunCheckpoint
from pgprune_lightning.training import PolicyGradientPruning
from tests.tiny_commands import TinyCommand
from tests.tiny_runs import TinyRun
from tests.two_ranks import on_two_ranks, run_two_ranks

STATUSES = {signal.SIGTERM: 75, signal.SIGUSR1: 75, signal.SIGINT: 130}


@pytest.fixture
def signals_in(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sends this process signals when a method of the module is called at a step."""

    def send(method: str, step: int, *numbers: int) -> None:
        original = getattr(PolicyGradientPruning, method)

        def patched(self: PolicyGradientPruning, *arguments: Any) -> Any:
            if self.global_step == step:
                for number in numbers:
                    os.kill(os.getpid(), number)
            return original(self, *arguments)

        monkeypatch.setattr(PolicyGradientPruning, method, patched)

    return send


def last_step(run_dir: Path) -> int:
    step: int = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    return step


@pytest.mark.parametrize(("number", "status"), STATUSES.items())
def test_the_step_is_finished_and_saved(
    tiny_command: TinyCommand, signals_in: Callable[..., None], number: int, status: int
) -> None:
    before = {other: signal.getsignal(other) for other in STATUSES}
    signals_in("training_step", 1, number)
    outcome = tiny_command("fit")
    assert outcome.status == status
    assert "Stopped after step 2. Go on with --resume auto." in outcome.err
    assert "Traceback" not in outcome.err
    assert last_step(tiny_command.run_dir) == 2
    assert {other: signal.getsignal(other) for other in STATUSES} == before


def test_the_first_signal_counts_and_the_others_do_nothing(
    tiny_command: TinyCommand, signals_in: Callable[..., None]
) -> None:
    signals_in("training_step", 1, signal.SIGINT, signal.SIGTERM, signal.SIGINT)
    assert tiny_command("fit").status == 130
    assert last_step(tiny_command.run_dir) == 2


@pytest.mark.parametrize(
    ("method", "step", "saved"),
    [
        ("configure_model", 0, None),
        ("on_validation_epoch_start", 0, None),
        ("on_validation_epoch_start", 6, 3),
        ("training_step", 5, 3),
    ],
)
def test_outside_of_steps_the_run_ends_at_once(
    tiny_command: TinyCommand,
    signals_in: Callable[..., None],
    method: str,
    step: int,
    saved: int | None,
) -> None:
    """Before the first step, and after the last, which a report follows that has to be made."""
    signals_in(method, step, signal.SIGTERM)
    assert tiny_command("fit").status == 75
    assert not (tiny_command.run_dir / "summary.json").exists()
    if saved is None:
        assert not (tiny_command.run_dir / "checkpoints").exists()
    else:
        assert last_step(tiny_command.run_dir) == saved


def test_a_signal_in_a_validation_waits_for_the_step_after_it(
    tiny_command: TinyCommand, signals_in: Callable[..., None]
) -> None:
    signals_in("on_validation_epoch_start", 3, signal.SIGUSR1)
    assert tiny_command("fit").status == 75
    assert last_step(tiny_command.run_dir) == 4


def test_a_rank_left_behind_by_a_stopped_one_ends_as_asked() -> None:
    preemption, gone = Preemption(), RuntimeError("the other rank is gone")
    preemption.on_exception(SimpleNamespace(world_size=2), None, gone)  # nobody has asked it to
    preemption._status = 75
    preemption.on_exception(SimpleNamespace(world_size=1), None, gone)  # an error of its own
    with pytest.raises(SystemExit) as end:
        preemption.on_exception(SimpleNamespace(world_size=2), None, gone)
    assert end.value.code == 75


def _stopped_fits_of_a_rank(rank: int, run: TinyRun) -> None:
    from lightning.pytorch import Callback

    barrier, barriers = torch.distributed.barrier, [0]

    def counted(*arguments: Any, **options: Any) -> Any:
        barriers[0] += 1
        return barrier(*arguments, **options)

    class SignalRankOne(Callback):
        def __init__(self, step: int) -> None:
            self.step = step
            self.barriers: list[int] = []

        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            self.barriers.append(barriers[0])
            if rank == 1 and trainer.global_step == self.step:
                os.kill(os.getpid(), signal.SIGTERM)

    ends: dict[int, tuple[int, int, bool]] = {}
    for step in (1, 5):
        folder = run.folder / str(step)
        signals = SignalRankOne(step)
        callbacks = [signals, Preemption(), RunCheckpoint(str(folder), 100)]
        steps = {"max_steps": 6, "val_check_interval": 3, "enable_checkpointing": True}
        trainer, module = run.trainer(callbacks, **steps, **on_two_ranks()), run.module()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.distributed, "barrier", counted)
            with pytest.raises(SystemExit) as end:
                trainer.fit(module, datamodule=run.datamodule())
        before_validation = signals.barriers[:3]
        assert len(set(before_validation)) == 1, "a step lets the host wait for all ranks"
        taken = trainer.global_step
        saved = (folder / "checkpoints" / f"step={taken:08d}.ckpt").exists()
        ends[step] = (end.value.code, taken, saved)
    assert barriers[0] > 0
    torch.save(ends, run.folder / f"{rank}.pt")


@pytest.mark.slow
def test_two_ranks_stop_together_when_one_is_asked_to(
    tiny_model_folder: Path, tiny_texts: Path, tmp_path: Path
) -> None:
    run = TinyRun(tiny_model_folder, tiny_texts, tmp_path)
    run_two_ranks(_stopped_fits_of_a_rank, run)
    ends, of_the_other = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert ends == of_the_other
    assert ends == {1: (75, 2, True), 5: (75, 6, False)}
