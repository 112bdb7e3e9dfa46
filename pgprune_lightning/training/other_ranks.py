"""The other processes of a run: deciding for all of them at once, and noticing that one is gone."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import TypeVar, cast

import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch import Trainer

from pgprune_lightning.errors import UserError

EXIT_RANK_LOST = 1
"""Not 75: a rank that fails alike each time would be started again for ever."""
_NCCL_LOSSES = ("ncclRemoteError", "ncclSystemError", "timeout", "timed out")

Decision = TypeVar("Decision")


def decided_by_rank_zero(trainer: Trainer, decide: Callable[[], Decision]) -> Decision:
    """Decide before a run begins, on rank zero alone where a scheduler has started all ranks.

    Where Lightning starts the other ranks it does so later, once rank zero has decided.

    Args:
        trainer: A Trainer that has not begun.
        decide: What is done; its result goes to all ranks, and so does its UserError.

    Raises:
        UserError: On every rank, if rank zero has one.
    """
    strategy = trainer.strategy
    environment = getattr(strategy, "cluster_environment", None)
    if trainer.world_size == 1 or isinstance(environment, LightningEnvironment):
        return decide()
    strategy.setup_environment()  # the ranks meet here; fit finds that they have
    answer: Decision | UserError | None = None
    if trainer.is_global_zero:
        try:
            answer = decide()
        except UserError as error:
            answer = error
    answer = strategy.broadcast(answer)
    if isinstance(answer, UserError):
        raise answer
    return cast(Decision, answer)


def is_rank_lost(error: RuntimeError) -> bool:
    """Whether an error says that another rank no longer answers.

    Args:
        error: What a collective operation has raised. Gloo's errors have no type of their own.
    """
    if isinstance(error, torch.distributed.DistBackendError):
        return any(loss in str(error) for loss in _NCCL_LOSSES)
    return isinstance(error, torch.distributed.DistError) or "/gloo/" in str(error)


def rank_lost_message(reason: str) -> str:
    """What is said, in one line, where another rank is gone.

    Args:
        reason: What was noticed of it.
    """
    text = re.sub(r"^\[\S*\] ", "", reason)  # a line of gloo's source
    first = re.split(r"\. |\n", text)[0]
    return (
        f"this rank has lost the others ({first[:200]}). Another rank has failed or was killed: "
        "see its last lines, or the system's log where it has none (out of memory?). Then start "
        "all ranks again with --resume auto; the steps after the last checkpoint are repeated."
    )


class _OurWords(logging.Filter):
    """Takes the place of what Lightning says before it kills the ranks that it has started."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Change the record."""
        said = re.search(r"Child process .* code -?\d+", record.getMessage())
        record.msg, record.args = f"error: {rank_lost_message(said[0] if said else '?')}", ()
        return True


_OUR_WORDS = _OurWords()


def report_lost_children() -> None:
    """Have Lightning say why it kills its own ranks, which it does where one of them has ended."""
    logger = logging.getLogger("lightning.fabric.strategies.launchers.subprocess_script")
    logger.setLevel(logging.INFO)
    logger.addFilter(_OUR_WORDS)
