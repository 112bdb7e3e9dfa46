"""A step is taken whole or not at all: what refuses it leaves nothing behind.

Shapes: R mask samples of all ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from pgprune_lightning.errors import UserError
from pgprune_lightning.policy import GradientEstimator


@contextmanager
def whole_step(estimator: GradientEstimator, losses_R: Tensor, step: int) -> Iterator[None]:
    """Undo what the estimator learned where the update refuses the step, and name a broken loss.

    Losses that are not finite make a gradient that is not, which every update refuses. So nothing
    looks at them before, and the host need not wait for the forward passes.

    Args:
        estimator: What estimates the gradient within the block; the update undoes its own part.
        losses_R: Loss of each mask, (R,), in nats per token.
        step: Number of steps taken before.

    Raises:
        UserError: The update refused the step; of a loss that is not finite, if there is one.
    """
    before = {name: buffer.clone() for name, buffer in estimator.named_buffers()}
    try:
        yield
    except UserError:
        for name, buffer in estimator.named_buffers():
            buffer.copy_(before[name])
        check_losses(losses_R, step)
        raise


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
