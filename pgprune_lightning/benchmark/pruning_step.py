"""The training step of this project, from its own pieces, without a Trainer around it.

Shapes: S mask samples, U units, B sequences, T tokens.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from pgprune_lightning.benchmark.workload import Workload
from pgprune_lightning.policy import (
    FeasibleSet,
    FreeProbabilities,
    MaskSamples,
    MaskSpace,
    MovingAverageBaseline,
    ProjectedSGD,
    mask_generator,
)
from pgprune_lightning.training.execution_choice import ExecutionChoice
from pgprune_lightning.training.mask_losses import MaskLosses

SEED = 0
"""Of the masks."""


class PruningStep:
    """Samples masks, reads their losses, estimates the gradient, steps and projects.

    Args:
        execution: What runs the model under a mask.
        space: The units of that model.
        feasible_set: Where the keep probabilities lie.
        start_U: The first keep probabilities, (U,) float64, on the device of the model.
        workload: The sizes.
        batch_BT: Token ids, (B, T), int64.
    """

    def __init__(
        self,
        execution: ExecutionChoice,
        space: MaskSpace,
        feasible_set: FeasibleSet,
        start_U: Tensor,
        workload: Workload,
        batch_BT: Tensor,
    ) -> None:
        self._losses = MaskLosses(execution)
        self._workload = workload
        self._batch_BT = batch_BT
        self._device = batch_BT.device
        self.policy = FreeProbabilities()
        self.policy.prepare(space, {})
        self.policy.to(self._device).start_from(start_U, feasible_set)
        self._estimator = MovingAverageBaseline().to(self._device)
        settle = partial(self.policy.after_step, feasible_set, 0)
        self._optimizer = ProjectedSGD(self.policy, workload.lr, settle)

    def __call__(self, step: int) -> Tensor:
        """Take a step; return the losses, (S,) float64, in nats per token."""
        masks_SU = self.sample(step)
        losses_S = self._losses.of_masks(self._batch_BT, masks_SU)
        self.update(losses_S, masks_SU)
        return losses_S

    def sample(self, step: int) -> Tensor:
        """The masks of a step, (S, U) bool."""
        generator = mask_generator(SEED, step, 0, self._device)
        return self.policy.sample(self._workload.num_mask_samples, generator)

    def update(self, losses_S: Tensor, masks_SU: Tensor) -> None:
        """Estimate the gradient, step and project."""
        probabilities_U = self.policy.keep_probabilities
        samples = MaskSamples(masks_SU, losses_S, probabilities_U.detach())
        probabilities_U.grad = self._estimator.estimate(samples)
        self._optimizer.step()
