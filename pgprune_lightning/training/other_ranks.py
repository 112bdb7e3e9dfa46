"""The other processes of a run: deciding for all of them at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch import Trainer

from pgprune_lightning.errors import UserError

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
