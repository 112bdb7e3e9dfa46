"""Updates: a gradient becomes a step that ends on the budget; SGD, Adam, natural gradient.

Shapes: U units.
"""

# No `from __future__ import annotations`: the command line reads these types.
import copy
from abc import ABC
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pgprune_lightning.errors import UserError
from pgprune_lightning.policy.policies import MaskPolicy

StepRule = Literal["fixed", "rms_change"]

_TRIALS = 12
_NEAR_ENOUGH = 0.01  # relative to the requested change
_MOST_GROWTH = 10.0  # from trial to trial
_MOST_STRETCH = 1e3  # in all: no step changes a policy that is certain of its mask
_LEAST_SIZE = 1e-8


class PolicyUpdate(Optimizer, ABC):
    """Steps the parameters of a policy, then projects it onto the budget.

    Args:
        policy: The policy, with its gradient assigned before each step.
        lr: Step size, positive; `step_rule` defines its meaning.
        project: Brings the policy onto the budget of the next step by `MaskPolicy.project`, which
            raises a `UserError` where values are not finite. It is not part of the state: give it
            again when a run is resumed.
        step_rule: `fixed`: parameters move by `lr` times the direction. `rms_change`: they move so
            far that the keep-probabilities of the undecided units (s neither 0 nor 1) change by
            `lr`, root mean square, whatever the number of units and the size of the losses.

    Raises:
        UserError: The step size is not positive.
    """

    def __init__(
        self,
        policy: MaskPolicy,
        lr: float,
        project: Callable[[], None],
        step_rule: StepRule = "fixed",
    ) -> None:
        if not lr > 0:
            raise UserError(f"The step size is {lr}. Give a positive number, such as 0.002.")
        super().__init__(policy.parameters(), {"lr": lr})
        self.policy = policy
        self.project = project
        self.step_rule = step_rule

    def _directions(self, parameters: list[Tensor]) -> list[Tensor | None]:
        """Directions to step against, each shaped as its parameter; None: it stays."""
        return [
            None if parameter.grad is None else self._direction(parameter.grad, parameter)
            for parameter in parameters
        ]

    def _direction(self, gradient: Tensor, parameter: Tensor) -> Tensor:
        """The direction of one parameter; may update `self.state[parameter]`."""
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; parameters without a gradient stay as they are.

        Args:
            closure: Computes the loss and the gradients, if they are not there yet.

        Returns:
            The return value of the closure.

        Raises:
            UserError: A gradient, or a value after the step, is not finite; nothing has changed.
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
        try:
            directions = [
                None if direction is None else direction * factors
                for direction, factors in zip(
                    self._directions(parameters), self.policy.step_factors(), strict=True
                )
            ]
            if self.step_rule == "fixed":
                self._apply(before, directions, group["lr"])
            else:
                self._change_by(before, directions, group["lr"])
        except Exception:
            undo()
            raise
        return loss

    def _snapshot(self) -> Callable[[], None]:
        """Copy the policy and the state; calling the result restores both."""
        undo_policy = snapshot(self.policy)
        state = {parameter: copy.deepcopy(values) for parameter, values in self.state.items()}

        def undo() -> None:
            undo_policy()
            self.state.clear()
            self.state.update(state)

        return undo

    def _check_gradients(self, parameters: list[Tensor]) -> None:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if not all(bool(gradient.isfinite().all()) for gradient in gradients):
            raise UserError(
                "The gradient of the keep probabilities is not finite, and they were left as they "
                "were. Look for a loss that is not finite; a wider dtype of the model may help."
            )

    def _apply(self, before: list[Tensor], directions: list[Tensor | None], size: float) -> None:
        moves = zip(self.param_groups[0]["params"], before, directions, strict=True)
        for parameter, start, direction in moves:
            parameter.copy_(start if direction is None else start - size * direction)
        self.project()

    def _change_by(
        self, before: list[Tensor], directions: list[Tensor | None], target: float
    ) -> None:
        """Find the step size by trials: the change is nearly proportional to it, and monotone."""
        s_U = self.policy.keep_probabilities.detach().clone()
        undecided_U = (s_U > 0) & (s_U < 1)
        moving = torch.cat([d.reshape(-1) for d in directions if d is not None])
        length, count = float(moving.square().mean().sqrt()), int(undecided_U.sum())
        if length == 0 or count == 0:
            return
        size, longest = target / length, _MOST_STRETCH * target / length
        for _ in range(_TRIALS):
            self._apply(before, directions, size)
            moved_U = (self.policy.keep_probabilities.detach() - s_U)[undecided_U]
            change = float(moved_U.square().mean().sqrt())
            if abs(change - target) <= _NEAR_ENOUGH * target:
                return
            growth = target / change if change else _MOST_GROWTH
            size = min(size * min(max(growth, 1 / _MOST_GROWTH), _MOST_GROWTH), longest)


class ProjectedSGD(PolicyUpdate):
    """Step against the gradient, then project.

    Args:
        policy: The policy, with its gradient assigned before each step.
        lr: Step size; see `PolicyUpdate`.
        project: Brings the policy onto the budget; see `PolicyUpdate`.
        step_rule: Meaning of `lr`; see `PolicyUpdate`.
        momentum: Factor on the last direction, which is added to the gradient, in [0, 1); 0 in the
            paper.

    Raises:
        UserError: The step size or the momentum is out of range.

    Source: eqs. 6 and 7; momentum as Polyak (1964), the heavy ball.
    """

    def __init__(
        self,
        policy: MaskPolicy,
        lr: float,
        project: Callable[[], None],
        step_rule: StepRule = "fixed",
        momentum: float = 0.0,
    ) -> None:
        if not 0 <= momentum < 1:
            raise UserError(
                f"model.update.optimizer: momentum must lie in [0, 1), given {momentum}."
            )
        super().__init__(policy, lr, project, step_rule)
        self.momentum = momentum

    def _direction(self, gradient: Tensor, parameter: Tensor) -> Tensor:
        if self.momentum == 0:
            return gradient
        state = self.state[parameter]
        last = state.get("direction", torch.zeros_like(parameter))
        direction: Tensor = self.momentum * last + gradient
        state["direction"] = direction
        return direction


class Adam(PolicyUpdate):
    """Step against a mean of past gradients over the root of a mean of their squares, then project.

    With `step_rule: fixed`, each parameter moves by about `lr` in a step: a probability with the
    policy FreeProbabilities, a logit with the others.

    Args:
        policy: The policy, with its gradient assigned before each step.
        lr: Step size; see `PolicyUpdate`.
        project: Brings the policy onto the budget; see `PolicyUpdate`.
        step_rule: Meaning of `lr`; see `PolicyUpdate`.
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
        project: Callable[[], None],
        step_rule: StepRule = "fixed",
        mean_decay: float = 0.9,
        square_decay: float = 0.999,
    ) -> None:
        for name, value in (("mean_decay", mean_decay), ("square_decay", square_decay)):
            if not 0 <= value < 1:
                raise UserError(
                    f"model.update.optimizer: {name} must lie in [0, 1), given {value}."
                )
        super().__init__(policy, lr, project, step_rule)
        self.mean_decay = mean_decay
        self.square_decay = square_decay

    def _direction(self, gradient: Tensor, parameter: Tensor) -> Tensor:
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


class NaturalGradient(PolicyUpdate):
    """Solve (Fisher information + damping) x = gradient, step against x, then project.

    For free probabilities x is about s (1 - s) times the gradient. For logits, free or structured,
    the information includes the shift onto the budget, which follows every step.

    Args:
        policy: The policy, with its gradient assigned before each step.
        lr: Step size; see `PolicyUpdate`.
        project: Brings the policy onto the budget; see `PolicyUpdate`.
        step_rule: Meaning of `lr`; see `PolicyUpdate`.
        damping: Added to the information of every unit, above 0. The information of a logit is at
            most 1/4 and vanishes near the bounds, where a gradient is mostly noise.

    Raises:
        UserError: The step size or the damping is out of range.

    Source: Amari (1998).
    """

    def __init__(
        self,
        policy: MaskPolicy,
        lr: float,
        project: Callable[[], None],
        step_rule: StepRule = "fixed",
        damping: float = 0.01,
    ) -> None:
        if not damping > 0:
            raise UserError(f"model.update.optimizer: damping must be above 0, given {damping}.")
        super().__init__(policy, lr, project, step_rule)
        self.damping = damping

    def _directions(self, parameters: list[Tensor]) -> list[Tensor | None]:
        return self.policy.natural_gradients(self.damping)


def snapshot(module: nn.Module) -> Callable[[], None]:
    """Copy the state of a module, all tensors; calling the result restores it in place."""
    before = {name: value.clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def undo() -> None:
        for name, value in module.state_dict().items():
            value.copy_(before[name])

    return undo


UpdateFactory = Callable[[MaskPolicy, float, Callable[[], None], StepRule], PolicyUpdate]
"""Makes an update from a policy, its step size, its projection and the meaning of the step size."""
