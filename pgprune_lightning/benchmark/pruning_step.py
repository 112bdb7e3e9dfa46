"""The training step of this project, from its own pieces, without a Trainer around it.

Shapes: S mask samples, F metrics, U units, B sequences, T tokens.
"""

from __future__ import annotations

import copy
from functools import partial

import torch
from torch import Tensor

from pgprune_lightning.benchmark.learning import Learning
from pgprune_lightning.benchmark.workload import Workload
from pgprune_lightning.policy import FeasibleSet, MaskSamples, UnitLayout, mask_generator
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
        learning: What is done besides forward passes; the paper's way by default.

    Raises:
        UserError: The policy cannot hold the budget, or its estimator needs more masks.
    """

    def __init__(
        self,
        execution: ExecutionChoice,
        space: UnitLayout,
        feasible_set: FeasibleSet,
        start_U: Tensor,
        workload: Workload,
        batch_BT: Tensor,
        learning: Learning | None = None,
    ) -> None:
        learning = copy.deepcopy(learning) or Learning()
        self._losses = MaskLosses(execution)
        self._feasible_set, self._batch_BT = feasible_set, batch_BT
        self._device = batch_BT.device
        self.policy = learning.policy
        self.policy.prepare(space, learning.lr_factors or {})
        self._estimator = self.policy.estimator_or_default(learning.estimator)
        self.policy.connect(self._estimator)
        self._evaluator = learning.evaluator(workload)
        self._evaluator.check(self._estimator, len(batch_BT))
        self.policy.to(self._device)
        self._take_any_features(space)
        self.policy.start_from(start_U, feasible_set)
        self._estimator.to(self._device).prepare(space, self._probabilities_U)
        project = partial(self.policy.project, feasible_set, 0)
        self._update = learning.update(self.policy, workload.lr, project, learning.lr_rule)

    def __call__(self, step: int) -> Tensor:
        """Take a step; return the losses, (S,) float64, in nats per token."""
        samples = self._evaluator.evaluate(
            self._losses,
            self._batch_BT,
            self.sample(step),
            self._probabilities_U,
            with_dense=self._estimator.needs_dense_losses,
        )
        self._learn(samples)
        return samples.losses_S

    def sample(self, step: int) -> Tensor:
        """The masks of a step, (S, U) bool."""
        generator = mask_generator(SEED, step, 0, self._device)
        num_masks = self._evaluator.num_masks(self._batch_BT)
        return self._estimator.draw(self._probabilities_U, num_masks, generator)

    def update(self, losses_S: Tensor, masks_SU: Tensor) -> None:
        """Estimate the gradient, step and project, as if the dense losses were the same."""
        self._learn(
            MaskSamples(
                masks_SU,
                losses_S,
                self._probabilities_U,
                num_texts=self._evaluator.num_texts(self._batch_BT),
                dense_losses_S=losses_S if self._estimator.needs_dense_losses else None,
            )
        )

    def _learn(self, samples: MaskSamples) -> None:
        gradient = self._estimator.estimate(samples)
        self.policy.assign_gradient(gradient, self._feasible_set, 0)
        self._update.step()

    @property
    def _probabilities_U(self) -> Tensor:  # noqa: N802 - the suffix is the shape
        return self.policy.keep_probabilities.detach()

    def _take_any_features(self, space: UnitLayout) -> None:
        """Random metrics, where the policy is made of some: no two units rank alike."""
        if self.policy.feature_names:
            generator = torch.Generator().manual_seed(SEED)
            shape = (len(self.policy.feature_names), space.num_units)
            features_FU = torch.randn(shape, generator=generator, dtype=torch.float64)
            self.policy.take_features(features_FU.to(self._device), slope=1.0)
