"""Learns masks by back-propagation, for comparison; nothing else uses it.

Shapes: S draws of a step, U units, N free units of one constraint, B sequences, T tokens.
"""

# No `from __future__ import annotations`: the command line reads these types.
import math
import time
from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
from jsonargparse import lazy_instance
from torch import Tensor, nn
from torch.optim import Adam

from pgprune_lightning.errors import UserError
from pgprune_lightning.masking.gates import gate_gradient, gated
from pgprune_lightning.policy import FeasibleSet, mask_generator, shift_logits
from pgprune_lightning.training import PolicyGradientPruning
from pgprune_lightning.training.mask_evaluator import check_losses


class GateDraw(ABC):
    """Draws gates from keep-probabilities, so that a gradient finds its way back to them."""

    @abstractmethod
    def draw(
        self, keep_probabilities_U: Tensor, feasible_set: FeasibleSet, generator: torch.Generator
    ) -> Tensor:
        """Draw one gate for each unit.

        Args:
            keep_probabilities_U: The probabilities s, (U,) float64, feasible, requiring a gradient.
            feasible_set: The budget.
            generator: Source of the randomness, on the device of the probabilities.

        Returns:
            Gates, (U,) float64, from 0 to 1, differentiable in s. Where s is exactly 0 or 1 the
            gate is s.
        """

    def check_mask_samples(self, num_mask_samples: int) -> None:
        """Refuse a number of draws a step that makes no sense.

        Args:
            num_mask_samples: Draws on a rank in a step (N_s).

        Raises:
            UserError: If it does not.
        """
        del num_mask_samples


class StraightThrough(GateDraw):
    """Runs a hard mask forward and takes its gradient for that of the keep-probabilities.

    Args:
        mask: Which mask is run: the one of the `budget`, as it would be returned now (the top of
            the probabilities), or a Bernoulli `sample` of them.

    Source: Bengio, Leonard and Courville 2013, Sect. 4 (`sample`).
    Differs: `budget` is deterministic; nothing of the loss is lost on masks that no one will use.
    """

    def __init__(self, mask: Literal["budget", "sample"] = "budget") -> None:
        self.mask = mask

    def draw(
        self, keep_probabilities_U: Tensor, feasible_set: FeasibleSet, generator: torch.Generator
    ) -> Tensor:
        """Draw hard gates; see `GateDraw.draw`. The gradient of each by its probability is 1."""
        s_U = keep_probabilities_U.detach()
        if self.mask == "budget":
            hard_U = feasible_set.deterministic_mask(s_U)
        else:
            uniform_U = torch.rand(
                s_U.shape, generator=generator, dtype=s_U.dtype, device=s_U.device
            )
            hard_U = uniform_U < s_U
        return hard_U + (keep_probabilities_U - s_U)

    def check_mask_samples(self, num_mask_samples: int) -> None:
        """Refuse to run one deterministic mask several times.

        Args:
            num_mask_samples: Draws on a rank in a step (N_s).

        Raises:
            UserError: The mask is the budget's, and there is more than one draw.
        """
        if self.mask == "budget" and num_mask_samples > 1:
            raise UserError(
                f"num_mask_samples: the budget's mask is the same in all {num_mask_samples} draws "
                "of a step; give 1, or gates with mask: sample."
            )


class GumbelSoftmax(GateDraw):
    """Draws each gate from the binary concrete distribution, Gumbel-softmax over keep and drop.

    Args:
        temperature: Of the relaxation, above 0: near 0 gates are nearly 0 or 1 and their gradients
            vary wildly; large ones lie near one half, which no mask does.

    Raises:
        UserError: The temperature is not positive and finite.

    Source: Maddison et al. 2017, eq. 16 and appendix B (2/3 is theirs); Jang et al. 2017.
    """

    def __init__(self, temperature: float = 2 / 3) -> None:
        if not 0 < temperature < math.inf:
            raise UserError(f"gates.temperature: must be above 0 and finite, given {temperature}.")
        self.temperature = temperature

    def draw(
        self, keep_probabilities_U: Tensor, feasible_set: FeasibleSet, generator: torch.Generator
    ) -> Tensor:
        """Draw relaxed gates; see `GateDraw.draw`."""
        del feasible_set
        s_U = keep_probabilities_U
        uniform_U = torch.rand(s_U.shape, generator=generator, dtype=s_U.dtype, device=s_U.device)
        noise_U = uniform_U.clamp_min(torch.finfo(s_U.dtype).tiny).logit()
        is_open_U = (s_U > 0) & (s_U < 1)
        # An infinite logit would make the gradient of certain units 0 times infinity.
        logits_U = torch.where(is_open_U, s_U, 0.5).logit()
        gates_U = ((logits_U + noise_U) / self.temperature).sigmoid()
        return torch.where(is_open_U, gates_U, s_U.detach())


def logit_gradient(
    gradient_U: Tensor, keep_probabilities_U: Tensor, feasible_set: FeasibleSet
) -> Tensor:
    """Differentiate through s = sigmoid(x + b), where b holds each budget's expected cost.

    With w = s (1 - s), by implicit differentiation of `sum(c s) = limit`,
    `dL/dx_u = w_u (g_u - c_u sum(w g) / sum(w c))`: what a unit is worth less what its cost is
    worth elsewhere. Adam divides by each unit's own size of gradient; without the second term it
    would raise all units that are worth anything alike.

    Args:
        gradient_U: dL/ds, g, (U,) float64.
        keep_probabilities_U: The probabilities s, (U,) float64, inside the budgets' bounds.
        feasible_set: The budgets and their costs c.

    Returns:
        dL/dx, (U,) float64; 0 for protected units, and where s is 0 or 1.
    """
    by_logit_U = torch.zeros_like(gradient_U)
    for constraint in feasible_set.constraints_on(gradient_U.device):
        units = constraint.units
        costs_N = constraint.costs
        slopes_N = keep_probabilities_U[units] * (1 - keep_probabilities_U[units])
        price = (slopes_N @ gradient_U[units]) / (slopes_N @ costs_N).clamp_min(
            torch.finfo(costs_N.dtype).tiny
        )
        by_logit_U[units] = slopes_N * (gradient_U[units] - costs_N * price)
    return by_logit_U


_LEAST_DISTANCE = 1e-12  # of a probability from 0 and 1, so that its logit is finite


class BackpropagatedPruning(PolicyGradientPruning):
    """Learns the keep-probabilities from gate gradients instead of losses alone.

    The budget, the start, the text, validation and plans are those of `PolicyGradientPruning`; its
    estimator and `lr_factors` would not be used, and are refused. The probabilities are sigmoids of
    logits, which take a step of Adam and are shifted to the budget again.

    Args:
        base_model: See `PolicyGradientPruning`, as for all options that are not named here.
        keep_ratio: Share of the budgeted units (or parameters) that stays, in (0, 1].
        gates: What is run instead of a mask, and how its gradient reaches the probabilities.
        seconds: Wall time, in seconds, after which the run ends, initialisation and validations
            counted in; `lr_schedule` is then run through by that time. None: `trainer.max_steps`
            alone ends it.
        options: The options of `PolicyGradientPruning`. `lr` is Adam's step size, in logits.

    Raises:
        UserError: An option is out of range or makes no sense here.
    """

    uses_estimator = False

    def __init__(
        self,
        base_model: str,
        keep_ratio: float,
        gates: GateDraw = lazy_instance(StraightThrough),
        seconds: float | None = None,
        **options: Any,
    ) -> None:
        """Check what can be checked without a model."""
        super().__init__(base_model, keep_ratio, **options)
        gates.check_mask_samples(self.objective.num_mask_samples)
        if seconds is not None and not 0 < seconds < math.inf:
            raise UserError(f"seconds: must be above 0 and finite, given {seconds}.")
        if self.objective.loss != "cross_entropy":
            raise UserError(
                "objective.loss: back-propagation is for comparison with cross_entropy, given "
                f"{self.objective.loss}."
            )
        if options.get("estimator") is not None or self.update.lr_factors:
            raise UserError(
                "estimator, update.lr_factors: back-propagation uses neither; leave them out, or "
                "set them to null."
            )
        self.gates = gates
        self.seconds = seconds
        self._began = time.monotonic()

    def setup(self, stage: str) -> None:
        """Count the units; see `PolicyGradientPruning.setup`."""
        super().setup(stage)
        if not hasattr(self, "logits_U"):
            self.logits_U = nn.Parameter(torch.zeros(self.space.num_units, dtype=torch.float64))

    def configure_model(self) -> None:
        """Load the model; on a fresh start, take the logits of the initial probabilities."""
        self._began = time.monotonic()
        super().configure_model()
        if self.trainer.ckpt_path is None:
            s_U = self.policy.keep_probabilities.detach()
            with torch.no_grad():
                self.logits_U.copy_(s_U.logit(eps=_LEAST_DISTANCE))

    def configure_optimizers(self) -> Any:
        """Adam on the logits, whatever the size of a unit's gradient."""
        if (
            self.update.lr_schedule == "cosine"
            and self.seconds is None
            and self.trainer.max_steps < 1
        ):
            raise UserError("lr_schedule: cosine ends at trainer.max_steps, which is not set.")
        # Gate gradients of channels are about 1e-4 nats and smaller; Adam's usual epsilon of 1e-8
        # is for gradients of weights.
        return Adam([self.logits_U], lr=self.update.lr, eps=1e-12)

    def training_step(self, batch: Tensor, batch_idx: int) -> dict[str, Tensor]:
        """Draw gates, back-propagate to them, step the logits, meet the budget again.

        Args:
            batch: Token ids, (B, T), int64.
            batch_idx: Not used: everything random depends on the number of steps taken.

        Returns:
            What callbacks may look at: `losses` (S,), nats per token; `baseline`, which is 0, since
            there is none; `gradient_norm` of the logits.
        """
        del batch_idx
        s_U = self.policy.keep_probabilities.detach()
        losses_S, gradient_U = self._losses_and_gradient(batch, s_U)
        check_losses(losses_S, self.global_step)
        gradient_U = self._mean_over_ranks(gradient_U)
        self.logits_U.grad = logit_gradient(gradient_U, s_U, self.feasible_set)
        optimizer: Any = self.optimizers()
        share = self._share_done()
        factor = (1 + math.cos(math.pi * share)) / 2 if self.update.lr_schedule == "cosine" else 1.0
        for group in optimizer.param_groups:
            group["lr"] = self.update.lr * factor
        optimizer.step()
        self._meet_budget()
        if self.seconds is not None and self._elapsed() >= self.seconds:
            self.trainer.should_stop = True
        return {
            "losses": losses_S,
            "baseline": torch.zeros_like(losses_S[0]),
            "gradient_norm": self.logits_U.grad.norm(),
        }

    def _losses_and_gradient(self, batch_BT: Tensor, s_U: Tensor) -> tuple[Tensor, Tensor]:
        """Losses of this rank's draws, (S,), and the mean gradient by s, (U,), float64."""
        generator = mask_generator(self.seed, self.global_step, self.global_rank, self.device)
        losses, gradient_U = [], torch.zeros_like(s_U)
        for _ in range(self.objective.num_mask_samples):
            leaf_U = s_U.clone().requires_grad_()
            drawn_U = self.gates.draw(leaf_U, self.feasible_set, generator)
            loss, by_gate_U = self._loss_and_gate_gradient(batch_BT, drawn_U.detach())
            losses.append(loss)
            (by_probability_U,) = torch.autograd.grad(drawn_U, leaf_U, by_gate_U)
            gradient_U += by_probability_U / self.objective.num_mask_samples
        return torch.stack(losses), gradient_U

    def _loss_and_gate_gradient(self, batch_BT: Tensor, drawn_U: Tensor) -> tuple[Tensor, Tensor]:
        gates_1U = drawn_U.float()[None].requires_grad_()
        with torch.enable_grad(), gated(self.masked_model.model, self.space, gates_1U) as model:
            losses_B, gradient_1U = gate_gradient(model, batch_BT, gates_1U)
        return losses_B.double().mean(), gradient_1U[0].double() / len(losses_B)

    @torch.no_grad()
    def _meet_budget(self) -> None:
        # That of the step that comes, as the projection of `PolicyGradientPruning`; the optimizer
        # has counted this one.
        feasible_set = self.budgets.at(self.global_step).feasible_set
        self.logits_U.copy_(shift_logits(self.logits_U, feasible_set))
        self.policy.keep_probabilities.copy_(feasible_set.project(self.logits_U.sigmoid()))

    def _share_done(self) -> float:
        """Which share of the run is over, from 0 to 1, by steps or by time."""
        steps, max_steps = self.global_step, self.trainer.max_steps
        by_steps = steps / max_steps if max_steps > 0 else 0.0
        by_time = 0.0 if self.seconds is None else self._elapsed() / self.seconds
        return min(1.0, max(by_steps, by_time))

    def _elapsed(self) -> float:
        # One clock for all ranks, or they would stop apart.
        elapsed: float = self.trainer.strategy.broadcast(time.monotonic() - self._began)
        return elapsed

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save what time has been used; see `PolicyGradientPruning.on_save_checkpoint`."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["elapsed_seconds"] = time.monotonic() - self._began

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the clock; see `PolicyGradientPruning.on_load_checkpoint`."""
        super().on_load_checkpoint(checkpoint)
        self._began = time.monotonic() - checkpoint["elapsed_seconds"]
