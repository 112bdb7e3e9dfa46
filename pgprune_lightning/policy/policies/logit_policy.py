"""Policies whose parameters make logits, which one shift a budget brings onto it.

Shapes: U units.
"""

# No `from __future__ import annotations`: the command line reads what derives from it.
from abc import abstractmethod

import torch
from torch import Tensor

from pgprune_lightning.errors import UserError
from pgprune_lightning.policy.budget import FeasibleSet
from pgprune_lightning.policy.budgeted_logits import (
    check_no_layer_bounds,
    derivatives,
    logits_of,
    probabilities_on_budget,
    pull_back,
)
from pgprune_lightning.policy.mask_space import MaskSpace, UnitKind
from pgprune_lightning.policy.policies.mask_policy import MaskPolicy


class LogitPolicy(MaskPolicy):
    """Probabilities are sigmoids of sharpness times logits, shifted onto the budget exactly.

    Args:
        final_sharpness: What the logits are multiplied by at the end of the run; the factor grows
            from 1 geometrically, and the policy gets surer of its mask. 1 switches it off.

    Raises:
        UserError: The sharpness is not positive.
    """

    keep_probabilities: Tensor
    sharpness: Tensor
    """What the logits are multiplied by now, a float64 scalar."""

    def __init__(self, final_sharpness: float = 1.0) -> None:
        super().__init__()
        if not 0 < final_sharpness < float("inf"):
            raise UserError(
                "model.policy: final_sharpness must be above 0 and finite, given "
                f"{final_sharpness}; 1 switches it off."
            )
        self.final_sharpness = final_sharpness
        self._max_steps = -1
        self._budget_of_gradient: FeasibleSet | None = None

    def prepare(self, space: MaskSpace, lr_factors: dict[UnitKind, float]) -> None:
        """Make the buffers. See `MaskPolicy.prepare`."""
        super().prepare(space, lr_factors)
        self.register_buffer(
            "keep_probabilities", torch.zeros(space.num_units, dtype=torch.float64)
        )
        self.register_buffer("sharpness", torch.ones((), dtype=torch.float64))

    def check_length(self, max_steps: int) -> None:
        """Learn when the sharpness is to be reached. See `MaskPolicy.check_length`."""
        if self.final_sharpness != 1 and max_steps < 1:
            raise UserError(
                "model.policy: final_sharpness is reached at trainer.max_steps, which is not set."
            )
        self._max_steps = max_steps

    @torch.no_grad()
    def start_from(self, probabilities_U: Tensor, feasible_set: FeasibleSet) -> None:
        """Find parameters for these probabilities. See `MaskPolicy.start_from`."""
        check_no_layer_bounds(feasible_set)
        logits_U = logits_of(probabilities_U.to(self.keep_probabilities), feasible_set)
        self._start_at(logits_U)
        self.after_step(feasible_set, step=0)

    def assign_gradient(self, gradient_U: Tensor, feasible_set: FeasibleSet, step: int) -> None:
        """Pull the gradient back through shift and sigmoid. See `MaskPolicy.assign_gradient`."""
        self._budget_of_gradient = feasible_set
        pulled_U = pull_back(gradient_U, self._derivatives(feasible_set), feasible_set)
        self._assign_logit_gradient(pulled_U, step)

    @torch.no_grad()
    def after_step(self, feasible_set: FeasibleSet, step: int) -> None:
        """Shift onto the budget. See `MaskPolicy.after_step`."""
        sharpness = self.sharpness
        if self.final_sharpness != 1 and self._max_steps > 0:
            grown = self.final_sharpness ** min(step / self._max_steps, 1.0)
            sharpness = torch.full_like(sharpness, grown)
        s_U = probabilities_on_budget(sharpness * self.unit_logits(), feasible_set)
        self.sharpness.copy_(sharpness)
        self.keep_probabilities.copy_(s_U)

    @property
    def ranking(self) -> Tensor:
        """The logits: finer than the probabilities where those are rounded to a bound."""
        return self.unit_logits()

    @abstractmethod
    def unit_logits(self) -> Tensor:
        """The logits before sharpening and shift, (U,) float64, without a graph."""

    @abstractmethod
    def _start_at(self, logits_U: Tensor) -> None:
        """Set the parameters so that the logits are these, as far as the policy can."""

    @abstractmethod
    def _assign_logit_gradient(self, gradient_U: Tensor, step: int) -> None:
        """Write the `.grad` of the parameters, given that of the logits, (U,)."""

    def _derivatives(self, feasible_set: FeasibleSet) -> Tensor:
        """Derivative of each probability by its own logit at a fixed shift, (U,)."""
        return self.sharpness * derivatives(self.keep_probabilities, feasible_set)

    def _last_budget(self) -> FeasibleSet:
        assert self._budget_of_gradient is not None, "no gradient has been assigned"
        return self._budget_of_gradient
