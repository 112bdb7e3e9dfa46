"""A step is taken whole or not at all: what refuses it leaves nothing behind.

Shapes: R mask samples of all ranks, U units.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pgprune_lightning.errors import UserError
from pgprune_lightning.policy import GradientEstimator, PolicyUpdate, host_reads

Move = Callable[[Tensor, Callable[[], Any]], None]
"""Steps the policy by a gradient, (U,): assigns it, and calls what it is given, to step."""


@dataclass(frozen=True)
class _Unread:
    """A step whose outcome the host has not seen.

    Args:
        outcome: Whether it stands.
        undo: Puts the policy and the update back.
        undo_estimate: Puts the estimator back.
        again: Takes the step once more, from where it began.
        check: Refuses its losses, if one is not finite.
    """

    outcome: host_reads.HostCopy
    undo: Callable[[], None]
    undo_estimate: Callable[[], None]
    again: Callable[[], None]
    check: Callable[[], None]


class WholeSteps:
    """Takes steps of a policy, and puts back everything that a refused one has changed.

    Losses that are not finite make a gradient that is not, which every update refuses. So nothing
    looks at them before, and the host need not wait for the forward passes. Where it would wait
    even for the update, a step is taken for granted, and `last_stands` says later whether it was
    right: best when the forward passes of the next step have been launched, so that an accelerator
    always has work.
    """

    def __init__(self) -> None:
        self._unread: _Unread | None = None

    def take(
        self,
        losses_R: Tensor,
        number: int,
        estimator: GradientEstimator,
        estimate: Callable[[], Tensor],
        move: Move,
        update: PolicyUpdate,
        step: Callable[[], Any] | None = None,
    ) -> Tensor:
        """Take a step, after `last_stands` has been asked of the last one.

        Args:
            losses_R: Loss of each mask, (R,), in nats per token.
            number: Number of steps taken before.
            estimator: What learns from the losses.
            estimate: Lets it, and gives the gradient, (U,), the mean of all ranks.
            move: Assigns the gradient and calls the step it is given.
            update: Steps the policy.
            step: What to call for the update's `step` the first time, if more hangs on it.

        Returns:
            The gradient, as it was estimated.

        Raises:
            UserError: The update refused the step; of a loss that is not finite, if there is one.
        """
        assert self._unread is None, "nobody asked whether the last step stands"
        undo_estimate = _undo_of(estimator)
        try:
            gradient = estimate()
            step = step or update.step
            if host_reads.reading_is_free(losses_R.device):
                move(gradient, step)
                return gradient
            undo, lr = update.snapshot(), update.param_groups[0]["lr"]
            with host_reads.reading_later() as verdicts:
                move(gradient, step)
        except UserError:
            undo_estimate()
            check_losses(losses_R, number)
            raise
        if verdicts:
            self._unread = _Unread(
                host_reads.HostCopy(torch.stack(verdicts).all()),
                undo,
                undo_estimate,
                again=partial(move, gradient, partial(_step_by, update, lr)),
                check=partial(check_losses, losses_R, number),
            )
        return gradient

    def last_stands(self) -> bool:
        """Whether the last step was as right as it was taken to be; if not, take it once more.

        Returns:
            False where the policy has changed: what was drawn from it does not count.

        Raises:
            UserError: The step is refused, as in `take`; all is as it was before it.
        """
        last, self._unread = self._unread, None
        if last is None or last.outcome.read():
            return True
        last.undo()
        try:
            last.again()
        except UserError:
            last.undo_estimate()
            last.check()
            raise
        return False


def _step_by(update: PolicyUpdate, lr: float) -> None:
    """Step by the size of that time: a schedule has gone on since."""
    group = update.param_groups[0]
    now, group["lr"] = group["lr"], lr
    try:
        update.step()
    finally:
        group["lr"] = now


def _undo_of(module: nn.Module) -> Callable[[], None]:
    """Copy the buffers of a module; what is returned puts them back."""
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}

    def undo() -> None:
        for name, buffer in module.named_buffers():
            buffer.copy_(before[name])

    return undo


def check_losses(losses_R: Tensor, step: int) -> None:
    """Refuse losses that are not finite.

    Args:
        losses_R: Loss of each mask, (R,), in nats per token.
        step: Number of steps taken before.

    Raises:
        UserError: One is not.
    """
    if bool(losses_R.isfinite().all()):
        return
    sample = int((~losses_R.isfinite()).nonzero()[0])
    raise UserError(
        f"The loss of mask sample {sample} in step {step} is {float(losses_R[sample])}; the policy "
        "stays as it was before this step. Try model.dtype float32, a higher model.keep_ratio, or "
        "look for broken weights; --resume auto goes on from the last checkpoint."
    )
