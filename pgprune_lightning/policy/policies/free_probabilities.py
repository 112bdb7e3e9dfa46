"""One free keep-probability a unit, the paper's policy.

Shapes: U units.
"""

# No `from __future__ import annotations`: the command line reads these types.
import torch
from torch import Tensor, nn

from pgprune_lightning.policy.budget import FeasibleSet
from pgprune_lightning.policy.mask_space import MaskSpace, UnitKind
from pgprune_lightning.policy.policies.mask_policy import MaskPolicy


class FreeProbabilities(MaskPolicy):
    """The keep-probabilities are the parameters; each step is projected onto the budget.

    Source: eqs. 2, 3 and 6.
    """

    def prepare(self, space: MaskSpace, lr_factors: dict[UnitKind, float]) -> None:
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
    def after_step(self, feasible_set: FeasibleSet, step: int) -> None:
        """Project onto the budget. See `MaskPolicy.after_step`."""
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
