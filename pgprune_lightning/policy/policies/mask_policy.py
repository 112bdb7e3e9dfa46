"""What every policy has in common, and the paper's: one free keep-probability a unit.

Shapes: U units, F features.
"""

# No `from __future__ import annotations`: the command line reads these types.
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from pgprune_lightning.errors import UserError
from pgprune_lightning.policy.budget import FeasibleSet
from pgprune_lightning.policy.estimators import GradientEstimator, MovingAverageBaseline
from pgprune_lightning.policy.unit_layout import UnitKind, UnitLayout


class MaskPolicy(nn.Module, ABC):
    """Independent Bernoulli variables whose probabilities follow from parameters.

    Its parameters are what an optimizer steps. `keep_probabilities`, (U,) float64, is always in
    the state, as a parameter or as a buffer, and always inside budget and bounds between steps.
    """

    keep_probabilities: Tensor
    own_estimator: ClassVar[type[GradientEstimator] | None] = None
    """The one estimator that suits the policy; None: any that is not another policy's own."""
    lr_factors_U: Tensor
    """Factor on the step of each unit; no part of the state."""
    feature_names: tuple[str, ...] = ()
    """Metrics whose normalised values `take_features` needs; `initial` is the initial metric."""

    def prepare(self, space: UnitLayout, lr_factors: dict[UnitKind, float]) -> None:
        """Make parameters and buffers of the right shapes.

        Args:
            space: The units.
            lr_factors: Factor on the step by unit kind; 1 for kinds left out.
        """
        factors_U = torch.ones(space.num_units, dtype=torch.float64)
        for kind, factor in lr_factors.items():
            factors_U[space.units_of(kind)] = factor
        self.register_buffer("lr_factors_U", factors_U, persistent=False)

    @classmethod
    def default_estimator(cls) -> type[GradientEstimator]:
        """The class of the estimator where none is given."""
        return cls.own_estimator or MovingAverageBaseline

    def estimator_or_default(self, given: GradientEstimator | None) -> GradientEstimator:
        """The estimator of a run.

        Args:
            given: What the user asks for; None: the default.

        Raises:
            UserError: It does not suit the policy.
        """
        estimator = self.default_estimator()() if given is None else given
        policy = type(self).__name__
        if self.own_estimator is not None and not isinstance(estimator, self.own_estimator):
            raise UserError(
                f"model.estimator: {policy} has its own, {self.own_estimator.__name__}, given "
                f"{type(estimator).__name__}. Leave model.estimator out, or set it to null."
            )
        for part in estimator.modules() if self.own_estimator is None else ():
            if isinstance(part, GradientEstimator) and part.needs_its_policy:
                raise UserError(
                    f"model.estimator: {type(part).__name__} does not suit {policy}. Choose "
                    f"another, or set it to null for {self.default_estimator().__name__}."
                )
        return estimator

    def connect(self, estimator: GradientEstimator) -> None:
        """Tell the estimator what it needs of the policy, after `prepare`.

        Args:
            estimator: What `estimator_or_default` has returned. The gradient of a policy's own
                goes to `assign_gradient` as it is.
        """
        del estimator

    def check_length(self, max_steps: int) -> None:
        """Learn how many steps a run has, -1 for no end, and refuse a length that makes no sense.

        Raises:
            UserError: The policy has an option that needs another length.
        """
        del max_steps

    def take_features(self, features_FU: Tensor, slope: float) -> None:
        """Take the values of the metrics that `feature_names` lists, before `start_from`.

        Args:
            features_FU: Normalised values, (F, U) float64.
            slope: What the first is multiplied by to give the initial logits.
        """
        raise NotImplementedError

    @abstractmethod
    def start_from(self, probabilities_U: Tensor, feasible_set: FeasibleSet) -> None:
        """Set the parameters so that the probabilities are these, as far as the policy can.

        Args:
            probabilities_U: Feasible probabilities, (U,) float64.
            feasible_set: Budgets and bounds of the first step.

        Raises:
            UserError: The policy cannot hold such budgets.
        """

    @abstractmethod
    def assign_gradient(self, gradient_U: Tensor, feasible_set: FeasibleSet, step: int) -> None:
        """Write the `.grad` of the parameters, by the chain rule.

        Args:
            gradient_U: d E[loss] / d s, (U,) float64, in nats per token.
            feasible_set: Budgets and bounds of the present probabilities.
            step: Number of steps taken so far.
        """

    def gradient_norm(self, gradient_U: Tensor) -> Tensor:
        """The norm of a gradient as it is given to `assign_gradient`, times `lr_factors`."""
        norm: Tensor = (gradient_U * self.lr_factors_U).norm()
        return norm

    @abstractmethod
    def project(self, feasible_set: FeasibleSet, step: int) -> None:
        """Bring the probabilities onto the budget again, after the parameters have moved.

        A second call with the same arguments changes nothing.

        Args:
            feasible_set: Budgets and bounds of the next step.
            step: Number of steps taken, this one included.
        """

    @abstractmethod
    def step_factors(self) -> list[Tensor]:
        """Factors on the steps of the parameters, in their order, each as its parameter."""

    @abstractmethod
    def natural_gradients(self, damping: float) -> list[Tensor | None]:
        """Natural gradients of the parameters, in their order, from the gradient just assigned.

        Args:
            damping: Added to the Fisher information of each unit's parameter, positive.
        """

    @property
    def ranking(self) -> Tensor:
        """What orders the units of a budget for the deterministic mask, (U,) float64."""
        return self.keep_probabilities.detach()


class FreeProbabilities(MaskPolicy):
    """The keep-probabilities are the parameters; each step is projected onto the budget.

    Source: eqs. 2, 3 and 6.
    """

    def prepare(self, space: UnitLayout, lr_factors: dict[UnitKind, float]) -> None:
        """Make the parameter. See `MaskPolicy.prepare`."""
        super().prepare(space, lr_factors)
        self.keep_probabilities = nn.Parameter(torch.zeros(space.num_units, dtype=torch.float64))

    @torch.no_grad()
    def start_from(self, probabilities_U: Tensor, feasible_set: FeasibleSet) -> None:
        """Take the probabilities as they are. See `MaskPolicy.start_from`."""
        self.keep_probabilities.copy_(probabilities_U)

    def assign_gradient(self, gradient_U: Tensor, feasible_set: FeasibleSet, step: int) -> None:
        """Take the gradient as it is. See `MaskPolicy.assign_gradient`."""
        self.keep_probabilities.grad = gradient_U

    @torch.no_grad()
    def project(self, feasible_set: FeasibleSet, step: int) -> None:
        """Project onto the budget. See `MaskPolicy.project`."""
        self.keep_probabilities.copy_(feasible_set.project(self.keep_probabilities))

    def step_factors(self) -> list[Tensor]:
        """The units' own. See `MaskPolicy.step_factors`."""
        return [self.lr_factors_U]

    def natural_gradients(self, damping: float) -> list[Tensor | None]:
        """Gradient times s (1 - s): the Fisher information of a unit is 1 / (s (1 - s)).

        See `MaskPolicy.natural_gradients`.
        """
        s_U, gradient_U = self.keep_probabilities.detach(), self.keep_probabilities.grad
        assert gradient_U is not None
        variance_U = s_U * (1 - s_U)
        return [gradient_U * variance_U / (1 + damping * variance_U)]
