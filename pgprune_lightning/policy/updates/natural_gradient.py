"""Steps measured by how far they change the distribution, and not its parameters."""

# No `from __future__ import annotations`: the command line reads these types.
from collections.abc import Callable

from torch import Tensor

from pgprune_lightning.errors import UserError
from pgprune_lightning.policy.policies import MaskPolicy
from pgprune_lightning.policy.updates.policy_update import PolicyUpdate, StepRule


class NaturalGradient(PolicyUpdate):
    """Solve (Fisher information + damping) x = gradient, step against x, then settle.

    For free probabilities x is s (1 - s) times the gradient; for logits, free or structured, it
    counts that the shift onto the budget answers every step.

    Args:
        policy: What is stepped, with the gradient assigned before each step.
        lr: Step size; see `PolicyUpdate`.
        settle: Brings the policy onto the budget; see `PolicyUpdate`.
        step_rule: What `lr` means; see `PolicyUpdate`.
        damping: Added to the information of every unit, above 0. A logit's information is at most
            1/4, and vanishes near the bounds, where a gradient is mostly noise.

    Raises:
        UserError: The step size or the damping is out of range.

    Source: Amari (1998).
    """

    def __init__(
        self,
        policy: MaskPolicy,
        lr: float,
        settle: Callable[[], None],
        step_rule: StepRule = "fixed",
        damping: float = 0.01,
    ) -> None:
        if not damping > 0:
            raise UserError(f"model.update: damping must be above 0, given {damping}.")
        super().__init__(policy, lr, settle, step_rule)
        self.damping = damping

    def _directions(self, parameters: list[Tensor]) -> list[Tensor | None]:
        return self.policy.natural_gradients(self.damping)
