"""Gradient descent whose every step ends on the feasible set."""

# No `from __future__ import annotations`: the command line reads these types.
from collections.abc import Callable

import torch
from torch import Tensor

from pgprune_lightning.errors import UserError
from pgprune_lightning.policy.policies import MaskPolicy
from pgprune_lightning.policy.updates.policy_update import PolicyUpdate, StepRule


class ProjectedSGD(PolicyUpdate):
    """Step against the gradient, then project.

    Args:
        policy: What is stepped, with the gradient assigned before each step.
        lr: Step size; see `PolicyUpdate`.
        settle: Brings the policy onto the budget; see `PolicyUpdate`.
        step_rule: What `lr` means; see `PolicyUpdate`.
        momentum: Share of the last direction that is added to the gradient, in [0, 1); 0 in the
            paper.

    Raises:
        UserError: The step size or the momentum is out of range.

    Source: eqs. 6 and 7; momentum as Polyak (1964), the heavy ball.
    """

    def __init__(
        self,
        policy: MaskPolicy,
        lr: float,
        settle: Callable[[], None],
        step_rule: StepRule = "fixed",
        momentum: float = 0.0,
    ) -> None:
        if not 0 <= momentum < 1:
            raise UserError(f"model.update: momentum must lie in [0, 1), given {momentum}.")
        super().__init__(policy, lr, settle, step_rule)
        self.momentum = momentum

    def _directions(self, parameters: list[Tensor]) -> list[Tensor | None]:
        return [self._direction(parameter) for parameter in parameters]

    def _direction(self, parameter: Tensor) -> Tensor | None:
        if parameter.grad is None or self.momentum == 0:
            return parameter.grad
        last = self.state[parameter].get("direction", torch.zeros_like(parameter))
        direction: Tensor = self.momentum * last + parameter.grad
        self.state[parameter]["direction"] = direction
        return direction
