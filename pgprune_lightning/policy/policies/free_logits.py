"""One free logit a unit.

Shapes: U units.
"""

# No `from __future__ import annotations`: the command line reads these types.
import torch
from torch import Tensor, nn

from pgprune_lightning.policy.fisher import natural_logit_gradient
from pgprune_lightning.policy.mask_space import MaskSpace, UnitKind
from pgprune_lightning.policy.policies.logit_policy import LogitPolicy


class FreeLogits(LogitPolicy):
    """Bernoulli logits: s = sigmoid(logit + shift), the shift of each budget such that it is met.

    Probabilities never reach a bound, so that no unit is lost for good, and no step has to be
    projected. The expected kept cost is the budget, whatever `fill_budget` says.

    Args:
        final_sharpness: What the logits are multiplied by at the end of the run, growing from 1
            geometrically, so that the policy gets surer of its mask; 1 switches it off.

    Raises:
        UserError: The sharpness is not positive.

    Differs: not in the paper. `probability_bounds` are what the sigmoid runs between.
    """

    def __init__(self, final_sharpness: float = 1.0) -> None:
        super().__init__(final_sharpness)

    def prepare(self, space: MaskSpace, lr_factors: dict[UnitKind, float]) -> None:
        """Make the logits. See `MaskPolicy.prepare`."""
        super().prepare(space, lr_factors)
        self.logits = nn.Parameter(torch.zeros(space.num_units, dtype=torch.float64))

    def unit_logits(self) -> Tensor:
        """The parameter. See `LogitPolicy.unit_logits`."""
        return self.logits.detach()

    def step_factors(self) -> list[Tensor]:
        """The units' own. See `MaskPolicy.step_factors`."""
        return [self.lr_factors_U]

    def natural_gradients(self, damping: float) -> list[Tensor | None]:
        """One over the Fisher information of the logits, shift included, times the gradient.

        See `MaskPolicy.natural_gradients`.
        """
        feasible_set, gradient_U = self._last_budget(), self.logits.grad
        assert gradient_U is not None
        v_U = self._derivatives(feasible_set)
        s_U = self.keep_probabilities
        return [natural_logit_gradient(gradient_U, s_U, v_U, feasible_set, damping=damping)]

    def _start_at(self, logits_U: Tensor) -> None:
        self.logits.copy_(logits_U)

    def _assign_logit_gradient(self, gradient_U: Tensor, step: int) -> None:
        self.logits.grad = gradient_U
