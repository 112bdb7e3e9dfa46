"""What every update has in common: a direction, how far to go, and back onto the budget.

Shapes: U units.
"""

# No `from __future__ import annotations`: the command line reads what derives from it.
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from pgprune_lightning.errors import UserError
from pgprune_lightning.policy.policies import MaskPolicy
from pgprune_lightning.policy.snapshot import snapshot

StepRule = Literal["fixed", "rms_change"]

_TRIALS = 12
_NEAR_ENOUGH = 0.01  # of the change that is asked for
_MOST_GROWTH = 10.0  # from trial to trial
_MOST_STRETCH = 1e3  # in all: a policy that is sure of its mask cannot be changed by any step


class PolicyUpdate(Optimizer, ABC):
    """Steps the parameters of a policy and settles it on the budget.

    Args:
        policy: What is stepped, with the gradient assigned before each step.
        lr: Step size, positive; what it means, `step_rule` says.
        settle: Brings the policy onto the budget of the next step: calls its `after_step`, which
            raises a `UserError` where values are not finite. It is not part of the state: give it
            again when a run is resumed.
        step_rule: `fixed`: parameters move by `lr` times the direction. `rms_change`: by as much
            as changes the keep-probabilities of the undecided units (s neither 0 nor 1) by `lr`,
            root mean square, whatever the number of units and the size of the losses.

    Raises:
        UserError: The step size is not positive.
    """

    def __init__(
        self,
        policy: MaskPolicy,
        lr: float,
        settle: Callable[[], None],
        step_rule: StepRule = "fixed",
    ) -> None:
        if not lr > 0:
            raise UserError(f"The step size is {lr}. Give a positive number, such as 0.002.")
        super().__init__(policy.parameters(), {"lr": lr})
        self.policy = policy
        self.settle = settle
        self.step_rule = step_rule

    @abstractmethod
    def _directions(self, parameters: list[Tensor]) -> list[Tensor | None]:
        """What to step against, as each parameter; None: it stays. May remember."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; parameters without a gradient stay as they are.

        Args:
            closure: Computes the loss and the gradients, if they are not there yet.

        Returns:
            What the closure returned.

        Raises:
            UserError: A gradient is not finite, or the step leads to what is not; nothing has
                been changed.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        group = self.param_groups[0]
        parameters: list[Tensor] = group["params"]
        if all(parameter.grad is None for parameter in parameters):
            return loss
        self._check_gradients(parameters)
        undo = self._snapshot()
        before = [parameter.clone() for parameter in parameters]
        directions = [
            None if direction is None else direction * factors
            for direction, factors in zip(
                self._directions(parameters), self.policy.step_factors(), strict=True
            )
        ]
        try:
            if self.step_rule == "fixed":
                self._move(before, directions, group["lr"])
            else:
                self._change_by(before, directions, group["lr"])
        except Exception:
            undo()
            raise
        return loss

    def _snapshot(self) -> Callable[[], None]:
        """Copy the policy, and what directions depend on besides the gradient."""
        undo_policy = snapshot(self.policy)
        memory = {
            parameter: {
                name: value.clone() if isinstance(value, Tensor) else value
                for name, value in state.items()
            }
            for parameter, state in self.state.items()
        }

        def undo() -> None:
            undo_policy()
            self.state.clear()
            self.state.update(memory)

        return undo

    def _check_gradients(self, parameters: list[Tensor]) -> None:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if not all(bool(gradient.isfinite().all()) for gradient in gradients):
            raise UserError(
                "The gradient of the keep probabilities is not finite, and they were left as they "
                "were. Look for a loss that is not finite; a wider dtype of the model may help."
            )

    def _move(self, before: list[Tensor], directions: list[Tensor | None], size: float) -> None:
        moves = zip(self.param_groups[0]["params"], before, directions, strict=True)
        for parameter, start, direction in moves:
            parameter.copy_(start if direction is None else start - size * direction)
        self.settle()

    def _change_by(
        self, before: list[Tensor], directions: list[Tensor | None], target: float
    ) -> None:
        """Find the step by trials: the change is nearly proportional to it, and never falls."""
        s_U = self.policy.keep_probabilities.detach().clone()
        undecided_U = (s_U > 0) & (s_U < 1)
        moving = torch.cat([d.reshape(-1) for d in directions if d is not None])
        length, count = float(moving.square().mean().sqrt()), int(undecided_U.sum())
        if length == 0 or count == 0:
            return
        size, longest = target / length, _MOST_STRETCH * target / length
        for _ in range(_TRIALS):
            self._move(before, directions, size)
            moved_U = (self.policy.keep_probabilities.detach() - s_U)[undecided_U]
            change = float(moved_U.square().mean().sqrt())
            if abs(change - target) <= _NEAR_ENOUGH * target:
                return
            growth = target / change if change else _MOST_GROWTH
            size = min(size * min(max(growth, 1 / _MOST_GROWTH), _MOST_GROWTH), longest)


UpdateFactory = Callable[[MaskPolicy, float, Callable[[], None], StepRule], PolicyUpdate]
"""Makes an update of a policy, its step size, what settles it, and what the step size means."""
