"""Every parameter's step divided by the usual size of its gradient."""

# No `from __future__ import annotations`: the command line reads these types.
from collections.abc import Callable

import torch
from torch import Tensor

from pgprune_lightning.errors import UserError
from pgprune_lightning.policy.policies import MaskPolicy
from pgprune_lightning.policy.updates.policy_update import PolicyUpdate, StepRule

_LEAST_SIZE = 1e-8


class Adam(PolicyUpdate):
    """Step against a mean of past gradients over the root of a mean of their squares, then settle.

    With `step_rule: fixed`, `lr` is about how far each parameter moves in a step: a probability
    with the policy FreeProbabilities, a logit with the others.

    Args:
        policy: What is stepped, with the gradient assigned before each step.
        lr: Step size; see `PolicyUpdate`.
        settle: Brings the policy onto the budget; see `PolicyUpdate`.
        step_rule: What `lr` means; see `PolicyUpdate`.
        mean_decay: Weight of the past in the mean of gradients, in [0, 1).
        square_decay: Weight of the past in the mean of their squares, in [0, 1).

    Raises:
        UserError: The step size or a decay is out of range.

    Source: Kingma and Ba (2015), algorithm 1.
    Differs: the projection, or the shift, onto the budget follows every step.
    """

    def __init__(
        self,
        policy: MaskPolicy,
        lr: float,
        settle: Callable[[], None],
        step_rule: StepRule = "fixed",
        mean_decay: float = 0.9,
        square_decay: float = 0.999,
    ) -> None:
        for name, value in (("mean_decay", mean_decay), ("square_decay", square_decay)):
            if not 0 <= value < 1:
                raise UserError(f"model.update: {name} must lie in [0, 1), given {value}.")
        super().__init__(policy, lr, settle, step_rule)
        self.mean_decay = mean_decay
        self.square_decay = square_decay

    def _directions(self, parameters: list[Tensor]) -> list[Tensor | None]:
        return [self._direction(parameter) for parameter in parameters]

    def _direction(self, parameter: Tensor) -> Tensor | None:
        gradient = parameter.grad
        if gradient is None:
            return None
        state = self.state[parameter]
        if not state:
            state["steps"] = 0
            state["mean"] = torch.zeros_like(parameter)
            state["square"] = torch.zeros_like(parameter)
        state["steps"] += 1
        state["mean"].lerp_(gradient, 1 - self.mean_decay)
        state["square"].lerp_(gradient.square(), 1 - self.square_decay)
        mean = state["mean"] / (1 - self.mean_decay ** state["steps"])
        square = state["square"] / (1 - self.square_decay ** state["steps"])
        direction: Tensor = mean / (square.sqrt() + _LEAST_SIZE)
        return direction
