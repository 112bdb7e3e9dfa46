"""The training step as it is usually written: what ours is timed against.

Masks are multiplied in by hooks, one forward pass after another computes everything that a mask
drops, every layer tells the host how many of its units stay, the loss comes from float32 logits of
all tokens, and the projection bisects on the host.

Shapes: S mask samples, U units, N units of one budget, B sequences, T tokens, W inputs of a
projection, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from pgprune_lightning.benchmark.pruning_step import SEED
from pgprune_lightning.benchmark.workload import Workload
from pgprune_lightning.masking.decoder_family import decoder_layers
from pgprune_lightning.policy import Constraint, FeasibleSet, UnitLayout, mask_generator

WINDOW = 5
"""Of the moving average, in steps."""


class ReferenceStep:
    """Algorithm 1 of the paper.

    Args:
        model: The frozen model.
        space: Its units.
        feasible_set: Where the keep probabilities lie; its budgets are met exactly.
        start_U: The first keep probabilities, (U,) float64, on the device of the model.
        workload: The sizes.
        batch_BT: Token ids, (B, T), int64.

    Source: eqs. 5, 7, 8, A1 and A2; Algorithm 1.
    Differs: The baseline starts at the first loss, as ours does.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        space: UnitLayout,
        feasible_set: FeasibleSet,
        start_U: Tensor,
        workload: Workload,
        batch_BT: Tensor,
    ) -> None:
        self._model, self._space, self._layers = model, space, decoder_layers(model)
        self._feasible_set, self._workload, self._batch_BT = feasible_set, workload, batch_BT
        self.probabilities_U = start_U.clone()
        self._baseline: float | None = None

    @torch.no_grad()
    def __call__(self, step: int) -> Tensor:
        """Take a step; return the losses, (S,) float64, in nats per token."""
        s_U = self.probabilities_U
        generator = mask_generator(SEED, step, 0, s_U.device)
        shape = (self._workload.num_mask_samples, len(s_U))
        uniform_SU = torch.rand(shape, generator=generator, dtype=s_U.dtype, device=s_U.device)
        masks_SU = uniform_SU < s_U
        losses_S = torch.stack([self.loss(mask_U) for mask_U in masks_SU]).double()
        self.update(losses_S, masks_SU)
        return losses_S

    def loss(self, mask_U: Tensor) -> Tensor:
        """Mean loss of the batch under a mask, () float32, in nats per token."""
        with self._hooked(mask_U):
            logits_BTV = self._model(self._batch_BT, use_cache=False).logits.float()
        return F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), self._batch_BT[:, 1:].flatten())

    def update(self, losses_S: Tensor, masks_SU: Tensor) -> None:
        """Estimate the gradient, step and project."""
        s_U = self.probabilities_U
        mean_loss = losses_S.mean().item()
        baseline = mean_loss if self._baseline is None else self._baseline
        self._baseline = baseline + (mean_loss - baseline) / WINDOW
        score_SU = (masks_SU.double() - s_U) / (s_U * (1 - s_U))
        score_SU = torch.where((s_U > 0) & (s_U < 1), score_SU, 0.0)
        gradient_U = ((losses_S - baseline)[:, None] * score_SU).mean(0)
        z_U = s_U - self._workload.lr * gradient_U
        for constraint in self._feasible_set.constraints:
            units_N = constraint.units.to(z_U.device)
            z_U[units_N] = _bisected(z_U[units_N], constraint)
        self.probabilities_U = z_U

    @contextmanager
    def _hooked(self, mask_U: Tensor) -> Iterator[None]:
        with ExitStack() as stack:
            for group in self._space.groups:
                kept = self._space.view(mask_U, group.layer, group.kind)
                for part in self._layers[group.layer].sub_layers_of(group.kind):
                    factor_W = kept.repeat_interleave(part.output.in_features // group.count)
                    hook = part.output.register_forward_pre_hook(_multiplication(factor_W))
                    stack.callback(hook.remove)
            yield


def _multiplication(kept_W: Tensor) -> Callable[[nn.Module, Any], tuple[Tensor]]:
    def multiply(_module: nn.Module, arguments: tuple[Tensor]) -> tuple[Tensor]:
        inputs = arguments[0]
        # As published code does, layer by layer: the host waits until the device is here.
        if kept_W.sum().item() == len(kept_W):
            return (inputs,)
        return (inputs * kept_W.to(inputs.dtype),)

    return multiply


def _bisected(z_N: Tensor, constraint: Constraint) -> Tensor:
    """The nearest point that meets a budget exactly, by bisection on the host."""
    costs_N = constraint.costs.to(z_N.device)

    def point(v: float) -> Tensor:
        return (z_N - v * costs_N).clamp(constraint.lower, constraint.upper)

    low = ((z_N - constraint.upper) / costs_N).min().item()
    high = ((z_N - constraint.lower) / costs_N).max().item()
    while low < (middle := (low + high) / 2) < high:
        if (costs_N @ point(middle)).item() > constraint.limit:
            low = middle
        else:
            high = middle
    return point(low)
