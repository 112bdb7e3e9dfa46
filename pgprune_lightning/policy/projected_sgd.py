"""Gradient descent whose every step ends on the feasible set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from pgprune_lightning.errors import UserError


class ProjectedSGD(Optimizer):
    """Step against the gradient, then project.

    Args:
        params: The keep probabilities, as parameters or groups of them.
        lr: Step size, positive, in probability per unit of gradient.
        projection: Maps a parameter's stepped values to the nearest feasible ones, and raises a
            `UserError` where they are not finite, as `FeasibleSet.project` does: the host looks at
            the values once, which on an accelerator means to wait for them. It is not part of the
            state: give it again when a run is resumed.

    Raises:
        UserError: The step size is not positive.

    Source: eqs. 6 and 7.
    """

    def __init__(self, params: ParamsT, lr: float, projection: Callable[[Tensor], Tensor]) -> None:
        if not lr > 0:
            raise UserError(f"The step size is {lr}. Give a positive number, such as 0.002.")
        super().__init__(params, {"lr": lr})
        self.projection = projection

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; parameters without a gradient stay as they are.

        Args:
            closure: Computes the loss and the gradients, if they are not there yet.

        Returns:
            What the closure returned.

        Raises:
            UserError: A gradient is not finite; no parameter has been changed.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # Every result before the first write, so that an error leaves all parameters untouched.
        stepped = [
            (parameter, self._step(parameter, parameter.grad, group["lr"]))
            for group in self.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        for parameter, values in stepped:
            parameter.copy_(values)
        return loss

    def _step(self, parameter: Tensor, gradient: Tensor, lr: float) -> Tensor:
        try:
            return self.projection(parameter - lr * gradient)
        except UserError as error:
            if bool(gradient.isfinite().all()):
                raise
            raise UserError(
                "The gradient of the keep probabilities is not finite, and they were left as they "
                "were. Look for a loss that is not finite; a wider dtype of the model may help."
            ) from error
