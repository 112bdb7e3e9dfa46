"""Gradient estimators: they draw the masks of a step and turn losses into a gradient.

Shapes: S mask samples of this rank, R those of all ranks, P pairs of masks, U units, X texts.
"""

# No `from __future__ import annotations`: the command line reads these types.
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from pgprune_lightning.errors import UserError
from pgprune_lightning.policy.unit_layout import UnitLayout

ScoreScale = Literal["variance", "standard_deviation"]
Normalization = Literal["samples", "samples_minus_one"]


def mask_generator(
    seed: int, step: int, rank: int, device: torch.device | str = "cpu"
) -> torch.Generator:
    """Make the random generator for the masks of one step on one rank.

    It is a pure function of its arguments, so a resumed run draws the masks that the
    uninterrupted run would have drawn.

    Args:
        seed: Seed of the run.
        step: Number of optimizer steps already taken.
        rank: Rank of this process.
        device: Where the masks are drawn.
    """
    digest = hashlib.sha256(f"masks seed={seed} step={step} rank={rank}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def sample_masks(
    keep_probabilities_U: Tensor, num_samples: int, generator: torch.Generator
) -> Tensor:
    """Draw masks from independent Bernoulli variables, one a unit.

    Args:
        keep_probabilities_U: Probabilities s, (U,) float64, from 0 to 1.
        num_samples: Number of masks S.
        generator: Source of the randomness, on the device of the probabilities.

    Returns:
        Masks, (S, U) bool, True keeps. A unit with s = 0 is never kept, one with s = 1 always.

    Source: eq. 2.
    """
    s_U = keep_probabilities_U.detach()
    return _uniform(num_samples, s_U, generator) < s_U


def _uniform(num_rows: int, s_U: Tensor, generator: torch.Generator) -> Tensor:
    """Numbers in [0, 1), one row a draw, in the dtype of the probabilities."""
    shape = (num_rows, len(s_U))
    return torch.rand(shape, generator=generator, dtype=s_U.dtype, device=s_U.device)


def score(masks_SU: Tensor, keep_probabilities_U: Tensor) -> Tensor:
    """Gradient of log p(m | s) with respect to s.

    Args:
        masks_SU: Masks, (S, U) bool.
        keep_probabilities_U: Probabilities s, (U,) float64, from 0 to 1.

    Returns:
        (m - s) / (s (1 - s)), (S, U) float64; 0 where s is 0 or 1, because such a unit has only
        one possible value.

    Source: eq. 5 and remark 4.
    """
    assert masks_SU.dtype == torch.bool, masks_SU.dtype
    s_U = keep_probabilities_U.detach()
    # The two values of the fraction, simplified by hand: no digit is lost near the bounds.
    score_SU = torch.where(masks_SU, 1 / s_U, -1 / (1 - s_U))
    return torch.where((s_U > 0) & (s_U < 1), score_SU, 0.0)


def _only_this_rank(values: Tensor) -> Tensor:
    return values


@dataclass(frozen=True)
class MaskSamples:
    """Masks of one step on one rank, and their losses.

    Args:
        masks_SU: The masks, (S, U) bool, as `GradientEstimator.draw` returned them.
        losses_S: Loss under each mask, (S,) float64, in nats per token.
        keep_probabilities_U: The probabilities that the masks were drawn from, (U,) float64.
        num_texts: Number of texts X. The first S / X masks read the first text, and so on; 1 where
            every mask reads the whole batch.
        dense_losses_S: Loss of the dense model on the text of each mask, (S,) float64, in nats per
            token; None where the estimator does not need it.
        of_all_ranks: Joins the rows, (S, ...), of every rank to (R, ...). It is collective: every
            rank must call it equally often.
    """

    masks_SU: Tensor
    losses_S: Tensor
    keep_probabilities_U: Tensor
    num_texts: int = 1
    dense_losses_S: Tensor | None = None
    of_all_ranks: Callable[[Tensor], Tensor] = _only_this_rank

    def __post_init__(self) -> None:
        assert self.masks_SU.dtype == torch.bool, self.masks_SU.dtype
        assert self.masks_SU.shape == (len(self.losses_S), len(self.keep_probabilities_U))
        assert len(self.losses_S) % self.num_texts == 0, (self.losses_S.shape, self.num_texts)

    @cached_property
    def losses_R(self) -> Tensor:  # noqa: N802 - the suffix is the shape
        """The losses of all ranks, (R,) float64, in nats per token."""
        return self.of_all_ranks(self.losses_S).detach().double()

    @property
    def masks_per_text(self) -> int:
        """Number of masks of this rank that read the same text."""
        return len(self.losses_S) // self.num_texts

    def with_losses(self, losses_S: Tensor) -> "MaskSamples":
        """The same masks with other losses, (S,) float64, on every rank."""
        return replace(self, losses_S=losses_S)

    def among_ranks(self, of_all_ranks: Callable[[Tensor], Tensor]) -> "MaskSamples":
        """The same samples, which now know the other ranks."""
        return replace(self, of_all_ranks=of_all_ranks)


class GradientEstimator(nn.Module, ABC):
    """Turns losses of sampled masks into a gradient of the expected loss.

    State between steps lives in buffers, so checkpoints hold it. It is the same on all ranks.

    Args:
        score_scale: Divisor of m - s: the `variance` s (1 - s), as in the paper (eq. 5), or the
            `standard_deviation`, its root, as in the authors' published code.
        normalization: Divisor of the sum over the mask samples: their number N_s (`samples`), or
            N_s - 1 (`samples_minus_one`), as in the authors' published code.

    Source: remark 4 and eq. 7.
    Differs: With the root, the expectation is sqrt(s (1 - s)) times the gradient: still a descent
        direction, and bounded near 0 and 1, where the score diverges. With N_s - 1 it is larger by
        the factor N_s / (N_s - 1), which undoes the shrinking by a baseline that is the mean of the
        step's own losses.
    """

    needs_its_policy: ClassVar[bool] = False
    """Whether the estimator works only with the policy whose `own_estimator` it is."""
    baseline: Tensor
    """Baseline of the next step's losses, a float64 scalar in nats per token."""
    used_baseline: Tensor
    """Mean baseline of the last estimate, a float64 scalar in nats per token; for logs only."""

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
        """Whether `MaskSamples.dense_losses_S` is required."""
        return False

    def prepare(self, space: UnitLayout, initial_probabilities_U: Tensor) -> None:
        """Make the state that depends on the units, once, before the first step or a checkpoint.

        Args:
            space: The units.
            initial_probabilities_U: Keep-probabilities at the start of the run, (U,) float64; any
                values where a checkpoint then restores the state.
        """

    def check_mask_samples(self, num_mask_samples: int, num_texts: int = 1) -> None:
        """Refuse fewer masks a step than the estimator needs.

        Args:
            num_mask_samples: Masks for each text of a rank's step (N_s).
            num_texts: Texts of a step on each rank; 1 where a mask reads the whole batch.

        Raises:
            UserError: There are too few masks, or an odd number where pairs are drawn.
        """
        if self.normalization == "samples_minus_one" and num_mask_samples * num_texts < 2:
            raise UserError(
                "num_mask_samples: must be at least 2 with the estimator's normalization "
                f"samples_minus_one, given {num_mask_samples}."
            )

    def draw(
        self, keep_probabilities_U: Tensor, num_masks: int, generator: torch.Generator
    ) -> Tensor:
        """Draw the masks of a step, by default independently.

        Args:
            keep_probabilities_U: The probabilities, (U,) float64.
            num_masks: Number of masks S; masks of the same text are adjacent.
            generator: Source of the randomness, on the device of the probabilities.

        Returns:
            Masks, (S, U) bool, True keeps.

        Source: eq. 2.
        """
        return sample_masks(keep_probabilities_U, num_masks, generator)

    @abstractmethod
    def estimate(self, samples: MaskSamples) -> Tensor:
        """Estimate the gradient, and update the state from the losses.

        Args:
            samples: The step's masks and losses.

        Returns:
            This rank's estimate, (U,) float64; the estimate of the step is the mean over ranks.
        """

    def _note_losses(self, samples: MaskSamples) -> None:
        """Report the step's mean loss as the baseline."""
        self.baseline.copy_(samples.losses_R.mean())
        self.used_baseline.copy_(samples.losses_S.detach().double().mean())

    def _reinforce(self, advantages_S: Tensor, samples: MaskSamples) -> Tensor:
        """Average advantage, (S,) in nats per token, times score: the bracket of eq. 7, (U,)."""
        num_samples = len(advantages_S)
        assert advantages_S.shape == samples.masks_SU.shape[:1], advantages_S.shape
        GradientEstimator.check_mask_samples(self, num_samples)
        s_U = samples.keep_probabilities_U
        score_SU = score(samples.masks_SU, s_U)
        if self.score_scale == "standard_deviation":
            score_SU = score_SU * (s_U * (1 - s_U)).sqrt()
        divisor = num_samples - (self.normalization == "samples_minus_one")
        return advantages_S.double() @ score_SU / divisor


class PlainReinforce(GradientEstimator):
    """The mean of loss times score: unbiased, with a large variance.

    Its options are those of every estimator; see `GradientEstimator`.

    Source: eqs. 5 and 6, averaged over the samples; the ablation of table A8.
    """

    def estimate(self, samples: MaskSamples) -> Tensor:
        """Estimate the gradient without a baseline. See `GradientEstimator.estimate`."""
        return self._reinforce(samples.losses_S, samples)


class MovingAverageBaseline(GradientEstimator):
    """The mean of (loss - baseline) times score; the baseline is a moving average of past losses.

    Args:
        window: Length T of the moving average, in steps; 1 is the mean of the last step alone.
        start: Baseline before the first step: the first step's mean loss, or 0.
        order: Whether a step uses the baseline before or after its own losses enter it.
        score_scale: Divisor of m - s: its `variance` s (1 - s), or its `standard_deviation`; see
            `GradientEstimator`.
        normalization: Divisor of the sum over N_s samples: N_s (`samples`) or N_s - 1
            (`samples_minus_one`); see `GradientEstimator`.

    Raises:
        UserError: The window is shorter than one step.

    Source: eqs. 7 and 8.
    Differs: Algorithm 1 starts the baseline at 0 and updates it before its use (`zero`,
        `update_then_use`). From 0 the first advantages are whole losses, and the first steps are
        huge. Updating first makes the baseline depend on the step's own masks, which shrinks the
        expected gradient by the factor 1 - 1 / (T R). With `first_loss` only the first step has
        the factor 1 - 1 / R, since its baseline is the mean of its own losses.
    """

    num_updates: Tensor

    def __init__(
        self,
        window: int = 5,
        start: Literal["first_loss", "zero"] = "first_loss",
        order: Literal["use_then_update", "update_then_use"] = "use_then_update",
        score_scale: ScoreScale = "variance",
        normalization: Normalization = "samples",
    ) -> None:
        super().__init__(score_scale, normalization)
        if window < 1:
            raise UserError(f"The baseline's window is {window} steps. Give 1 or more; 5 is usual.")
        self.window = window
        self.start = start
        self.order = order
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))

    def estimate(self, samples: MaskSamples) -> Tensor:
        """Estimate the gradient and update the baseline. See `GradientEstimator.estimate`."""
        mean_loss = samples.losses_R.mean()
        starts = self.start == "first_loss" and self.num_updates == 0
        baseline = mean_loss if starts else self.baseline.clone()
        updated = baseline + (mean_loss - baseline) / self.window
        self.baseline.copy_(updated)
        self.num_updates += 1

        used = baseline if self.order == "use_then_update" else updated
        self.used_baseline.copy_(used)
        return self._reinforce(samples.losses_S.detach().double() - used, samples)


class LeaveOneOut(GradientEstimator):
    """Compares each mask with the mean of the other masks of its step.

    Masks of the same text are compared with one another, so the difficulty of the text cancels,
    which a baseline of past steps cannot do. Where each text has one mask, the masks of all texts
    of all ranks are compared. With two masks only half the difference of their losses remains,
    which has more variance than a moving average where masks differ more than texts do. The
    estimator pays from about four masks on, and once the mask samples are alike.

    Args:
        score_scale: Divisor of m - s: its `variance` s (1 - s), or its `standard_deviation`; see
            `GradientEstimator`.

    Source: Kool et al. 2019, "Buy 4 REINFORCE samples, get a baseline for free"; not in the paper.
    """

    def __init__(self, score_scale: ScoreScale = "variance") -> None:
        super().__init__(score_scale, "samples")

    def check_mask_samples(self, num_mask_samples: int, num_texts: int = 1) -> None:
        """Refuse a step with one mask. See `GradientEstimator.check_mask_samples`."""
        if num_mask_samples * num_texts < 2:
            raise UserError(
                "num_mask_samples: LeaveOneOut compares the masks of a step with one another and "
                f"needs at least 2, given {num_mask_samples}."
            )

    def estimate(self, samples: MaskSamples) -> Tensor:
        """Estimate the gradient; there is no state. See `GradientEstimator.estimate`."""
        losses_S, num_compared = samples.losses_S.detach().double(), samples.masks_per_text
        if num_compared > 1:
            means_X = losses_S.view(-1, num_compared).mean(dim=1)
            means_S = means_X.repeat_interleave(num_compared)
        else:
            num_compared = len(samples.losses_R)
            self.check_mask_samples(num_compared)
            means_S = samples.losses_R.mean()
        self._note_losses(samples)
        # loss - mean of the others = (loss - mean of all) * N / (N - 1)
        advantages_S = (losses_S - means_S) * (num_compared / (num_compared - 1))
        return self._reinforce(advantages_S, samples)


class PairedEstimator(GradientEstimator):
    """Draws masks in pairs. The masks of a pair are adjacent and read the same text."""

    drawn_by: ClassVar[str]
    """The name, in a configuration, of the class that draws the pairs."""

    def check_mask_samples(self, num_mask_samples: int, num_texts: int = 1) -> None:
        """Refuse an odd number of masks. See `GradientEstimator.check_mask_samples`."""
        del num_texts
        if num_mask_samples % 2 or num_mask_samples < 2:
            raise UserError(
                f"num_mask_samples: {self.drawn_by} draws masks in pairs and needs an even number "
                f"of them for each text, given {num_mask_samples}."
            )


class Antithetic(PairedEstimator):
    """Compares the two masks of a pair, drawn from u and 1 - u, over the units that they differ in.

    It needs no baseline: the part of the loss that both masks share cancels. Units on which the
    masks agree have no gradient in that pair.

    Args:
        score_scale: Scale of the gradient, as for every estimator: `variance` is the gradient
            itself, `standard_deviation` is sqrt(s (1 - s)) times it; see `GradientEstimator`.

    Source: Dong, Mnih and Tucker 2020, "DisARM: An Antithetic Gradient Estimator for Binary Latent
        Variables"; found at the same time by Yin et al. 2020 (U2G). Not in the paper.
    Differs: Theirs is the gradient with respect to the logit. Divided by s (1 - s) it is the
        gradient with respect to s, and their factor max(s, 1 - s) becomes 1 / min(s, 1 - s).
    """

    drawn_by = "Antithetic"

    def __init__(self, score_scale: ScoreScale = "variance") -> None:
        super().__init__(score_scale, "samples")

    def draw(
        self, keep_probabilities_U: Tensor, num_masks: int, generator: torch.Generator
    ) -> Tensor:
        """Draw pairs of opposite masks. See `GradientEstimator.draw`."""
        assert num_masks % 2 == 0, num_masks
        s_U = keep_probabilities_U.detach()
        return antithetic_masks(_uniform(num_masks // 2, s_U, generator), s_U)

    def estimate(self, samples: MaskSamples) -> Tensor:
        """Estimate the gradient; there is no state. See `GradientEstimator.estimate`."""
        self.check_mask_samples(samples.masks_per_text)
        losses_S, s_U = samples.losses_S.detach().double(), samples.keep_probabilities_U.detach()
        self._note_losses(samples)
        differences_P = losses_S[0::2] - losses_S[1::2]
        first_PU, second_PU = samples.masks_SU[0::2].double(), samples.masks_SU[1::2].double()
        sums_U = differences_P @ (first_PU - second_PU)
        factor_U = 1 / torch.minimum(s_U, 1 - s_U)
        if self.score_scale == "standard_deviation":
            factor_U = factor_U * (s_U * (1 - s_U)).sqrt()
        # A unit at a bound has the same value in both masks.
        factor_U = torch.where((s_U > 0) & (s_U < 1), factor_U, 0.0)
        return sums_U * factor_U / len(losses_S)


def antithetic_masks(uniform_PU: Tensor, keep_probabilities_U: Tensor) -> Tensor:
    """Make the two masks of each pair.

    Args:
        uniform_PU: Numbers u, (P, U) float64, in [0, 1).
        keep_probabilities_U: Probabilities s, (U,) float64, from 0 to 1.

    Returns:
        Masks, (2 P, U) bool: each mask of u is followed by the mask of 1 - u.
    """
    # "1 - u < s", in the form that never keeps a unit with s = 0 and always keeps one with s = 1.
    pair = (uniform_PU < keep_probabilities_U, uniform_PU >= 1 - keep_probabilities_U)
    return torch.stack(pair, dim=1).flatten(0, 1)
