"""What every gradient estimator reads, and what all have in common.

Shapes: S samples of this rank, R samples of all ranks, U units, X texts of this rank, N samples of
a text.
"""

# No `from __future__ import annotations`: the command line reads these types.
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from pgprune_lightning.errors import UserError
from pgprune_lightning.policy.bernoulli import sample_masks, score
from pgprune_lightning.policy.unit_layout import UnitLayout

ScoreScale = Literal["variance", "standard_deviation"]
Normalization = Literal["samples", "samples_minus_one"]


def _only_this_rank(values: Tensor) -> Tensor:
    return values


@dataclass(frozen=True)
class MaskSamples:
    """Masks of one step on one rank, and their losses.

    Args:
        masks_SU: The masks, (S, U) bool, as `GradientEstimator.draw` returned them.
        losses_S: Loss under each mask, (S,) float64, in nats per token.
        keep_probabilities_U: The probabilities that they were drawn from, (U,) float64.
        num_texts: Texts that evaluated them (X): the first S / X masks the first, and so on; 1
            where every mask reads the whole batch.
        dense_losses_S: Loss of the dense model on the same text, (S,) float64, in nats per token;
            None where the estimator does not need it.
        all_losses_R: The losses of all ranks, (R,) float64; None: `losses_S`, for a single rank.
        of_all_ranks: Joins the rows, (S, ...), that each rank has, to (R, ...), the same on each;
            called equally often on all of them.
    """

    masks_SU: Tensor
    losses_S: Tensor
    keep_probabilities_U: Tensor
    num_texts: int = 1
    dense_losses_S: Tensor | None = None
    all_losses_R: Tensor | None = None
    of_all_ranks: Callable[[Tensor], Tensor] = _only_this_rank

    def __post_init__(self) -> None:
        assert self.masks_SU.dtype == torch.bool, self.masks_SU.dtype
        assert self.masks_SU.shape == (len(self.losses_S), len(self.keep_probabilities_U))
        assert len(self.losses_S) % self.num_texts == 0, (self.losses_S.shape, self.num_texts)

    @property
    def losses_R(self) -> Tensor:  # noqa: N802 - the suffix is the shape
        """The losses of all ranks, (R,) float64, in nats per token."""
        losses = self.losses_S if self.all_losses_R is None else self.all_losses_R
        return losses.detach().double()

    @property
    def masks_per_text(self) -> int:
        """Number of masks of this rank that each text evaluated (N)."""
        return len(self.losses_S) // self.num_texts

    def by_text(self, values_S: Tensor) -> Tensor:
        """A value of each mask, (S,), as one row a text, (X, N)."""
        return values_S.view(-1, self.masks_per_text)

    def with_losses(self, losses_S: Tensor) -> "MaskSamples":
        """The same masks with other losses, (S,) float64, on every rank."""
        everyone = None if self.all_losses_R is None else self.of_all_ranks(losses_S)
        return replace(self, losses_S=losses_S, all_losses_R=everyone)

    def among_ranks(self, of_all_ranks: Callable[[Tensor], Tensor]) -> "MaskSamples":
        """The same samples, with the losses of the other ranks beside them."""
        return replace(self, all_losses_R=of_all_ranks(self.losses_S), of_all_ranks=of_all_ranks)


class GradientEstimator(nn.Module, ABC):
    """Turns losses of sampled masks into a gradient of the expected loss.

    What it remembers between steps are buffers, so that a checkpoint holds them. They are the same
    on all ranks.

    Args:
        score_scale: What m - s is divided by: the `variance` s (1 - s), as the paper (eq. 5), or
            the `standard_deviation`, its root, as the authors' published code.
        normalization: What the sum over the mask samples is divided by: their number N_s
            (`samples`), or N_s - 1 (`samples_minus_one`), as the authors' published code.

    Source: remark 4 and eq. 7.
    Differs: By the root, the expectation is sqrt(s (1 - s)) times the gradient: a descent direction
        still, and bounded near 0 and 1, where the score blows up. By N_s - 1 it is larger by the
        factor N_s / (N_s - 1), which undoes the shrinking by a baseline that is the mean of the
        step's own losses.
    """

    needs_its_policy: ClassVar[bool] = False
    """Whether it suits only the policy whose `own_estimator` it is."""
    baseline: Tensor
    """What the next losses are compared with, a float64 scalar in nats per token."""
    used_baseline: Tensor
    """What the last estimate's losses were compared with, on average, a float64 scalar in nats per
    token; to be logged, not part of the state."""

    def __init__(
        self,
        score_scale: ScoreScale = "variance",
        normalization: Normalization = "samples",
    ) -> None:
        super().__init__()
        self.score_scale = score_scale
        self.normalization = normalization
        zero = torch.zeros((), dtype=torch.float64)
        self.register_buffer("baseline", zero)
        self.register_buffer("used_baseline", zero.clone(), persistent=False)

    @property
    def needs_dense_losses(self) -> bool:
        """Whether the samples must tell the dense model's losses on the same texts."""
        return False

    def prepare(self, space: UnitLayout, initial_probabilities_U: Tensor) -> None:
        """Make the state that depends on the units, once, before the first step or a checkpoint.

        Args:
            space: The units.
            initial_probabilities_U: Keep-probabilities that the run starts from, (U,) float64; any
                where a checkpoint restores the state.
        """

    def check_mask_samples(self, num_mask_samples: int, num_texts: int = 1) -> None:
        """Refuse fewer masks a step than the estimator needs.

        Args:
            num_mask_samples: Masks that each text of a rank's step evaluates (N_s).
            num_texts: Texts of a step on each rank: 1 where a mask reads the whole batch.

        Raises:
            UserError: N_s - 1 would be 0.
        """
        if self.normalization == "samples_minus_one" and num_mask_samples * num_texts < 2:
            raise UserError(
                "num_mask_samples: must be at least 2 with the estimator's normalization "
                f"samples_minus_one, given {num_mask_samples}."
            )

    def draw(
        self, keep_probabilities_U: Tensor, num_masks: int, generator: torch.Generator
    ) -> Tensor:
        """Draw the masks of a step, each for itself.

        Args:
            keep_probabilities_U: The probabilities, (U,) float64.
            num_masks: Number of masks S, those of one text after those of another.
            generator: Source of the randomness, on the device of the probabilities.

        Returns:
            Masks, (S, U) bool, True keeps.

        Source: eq. 2.
        """
        return sample_masks(keep_probabilities_U, num_masks, generator)

    @abstractmethod
    def estimate(self, samples: MaskSamples) -> Tensor:
        """Estimate the gradient, and learn from the losses for the next step.

        Args:
            samples: The step's masks and losses.

        Returns:
            This rank's estimate of the gradient, (U,) float64; the mean over the ranks is theirs.
        """

    def _reinforce(self, advantages_S: Tensor, samples: MaskSamples) -> Tensor:
        """Average advantage times score over the samples.

        Args:
            advantages_S: Loss less baseline under each mask, (S,), in nats per token.
            samples: The masks.

        Returns:
            The gradient, (U,) float64.

        Source: the bracket of eq. 7.
        """
        num_samples = len(advantages_S)
        assert advantages_S.shape == samples.masks_SU.shape[:1], advantages_S.shape
        GradientEstimator.check_mask_samples(self, num_samples)
        s_U = samples.keep_probabilities_U
        score_SU = score(samples.masks_SU, s_U)
        if self.score_scale == "standard_deviation":
            score_SU = score_SU * (s_U * (1 - s_U)).sqrt()
        divisor = num_samples - (self.normalization == "samples_minus_one")
        return advantages_S.double() @ score_SU / divisor
