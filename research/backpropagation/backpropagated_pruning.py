"""The same pruning with a gradient that is back-propagated through the model, for comparison only.

Shapes: S draws of a step, U units, B sequences, T tokens.
"""

# No `from __future__ import annotations`: the command line reads these types.
import math
import time
from typing import Any

import torch
from jsonargparse import lazy_instance
from torch import Tensor, nn
from torch.optim import Adam

from pgprune_lightning.errors import UserError
from pgprune_lightning.masking.gates import gate_gradient, gated
from pgprune_lightning.policy import mask_generator, shift_logits
from pgprune_lightning.training import PolicyGradientPruning
from pgprune_lightning.training.mask_evaluator import check_losses
from research.backpropagation.gate_draw import GateDraw
from research.backpropagation.logit_gradient import logit_gradient
from research.backpropagation.straight_through import StraightThrough

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
