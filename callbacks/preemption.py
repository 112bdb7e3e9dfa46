"""Stops a run at the next step when it is asked to: saved, and with a status that says why."""

import os
import signal
import sys
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from callbacks.run_checkpoint import RunCheckpoint
from pgprune_lightning.stop_signals import STATUS_OF, ExplainedExit


class Preemption(Checkpoint):
    """Answers SIGTERM and SIGUSR1 with exit status 75, and Ctrl-C with 130.

    The signal sets a flag; after the step that is being taken all ranks agree, save a checkpoint
    and end, even if only one of them got the signal. Further signals are ignored. Before the first
    step and after the last one the run ends at once: what it has saved is enough to go on.

    It is a `Checkpoint` because Lightning calls those after all other callbacks: what is saved
    holds what they did in the step.
    """

    def __init__(self) -> None:
        self._status = 0
        self._takes_steps = False

    def on_sanity_check_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Take the handlers from Lightning, whose own wait for other ranks."""
        del trainer, pl_module
        self._listen()

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """From here on a step is finished before the run stops."""
        del trainer, pl_module
        self._takes_steps = True
        self._listen()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Tensor, batch_idx: int
    ) -> None:
        """Stop, if a rank was asked to."""
        del pl_module, outputs, batch, batch_idx
        is_last = trainer.global_step == trainer.max_steps
        self._takes_steps = not is_last
        status = self._status if trainer.world_size == 1 else self._status_of_all_ranks(trainer)
        if not status:
            return
        if not is_last:  # the end, with its report, is not something to go on from
            for saving in trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(saving, RunCheckpoint):
                    saving.save(trainer)
        _let_children_end(trainer)
        if trainer.is_global_zero:
            sys.stderr.write(
                f"\nStopped after step {trainer.global_step}. Go on with --resume auto.\n"
            )
        raise ExplainedExit(status)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """A run that ends early has no step to come either."""
        del trainer, pl_module
        self._takes_steps = False

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        """End as asked where another rank, asked too, has ended in the midst of what all do."""
        del pl_module
        if self._status and isinstance(exception, Exception) and trainer.world_size > 1:
            raise SystemExit(self._status) from exception

    def _listen(self) -> None:
        for number in STATUS_OF:
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self._status:
            return
        self._status = STATUS_OF[signal.Signals(number)]
        if not self._takes_steps:
            raise SystemExit(self._status)
        # Not print(): the signal may have come in the midst of one.
        name = signal.Signals(number).name
        os.write(2, f"\n{name}: the run stops after this step.\n".encode())

    def _status_of_all_ranks(self, trainer: Trainer) -> int:
        # Not the strategy's reduce, before which all ranks wait at a barrier.
        status = torch.full((), self._status, device=trainer.strategy.root_device)
        torch.distributed.all_reduce(status, torch.distributed.ReduceOp.MAX)
        return int(status)


def _let_children_end(trainer: Trainer) -> None:
    """Keep Lightning from killing this process because one that it started has ended before."""
    children: list[Any] = getattr(trainer.strategy.launcher, "procs", [])
    children.clear()
