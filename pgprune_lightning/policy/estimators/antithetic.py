"""Pairs of opposite masks.

Shapes: S samples of this rank, P pairs of them, U units.
"""

# No `from __future__ import annotations`: the command line reads these types.
from typing import ClassVar

import torch
from torch import Tensor

from pgprune_lightning.errors import UserError
from pgprune_lightning.policy.estimators.estimator import (
    GradientEstimator,
    MaskSamples,
    ScoreScale,
)


class PairedEstimator(GradientEstimator):
    """Draws masks in pairs, one behind the other, both evaluated on the same text."""

    drawn_by: ClassVar[str]
    """What draws the pairs, as a configuration names it."""

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

    No baseline is needed: what both masks and their text share cancels. The units on which the
    masks agree have no gradient in that pair.

    Args:
        score_scale: What the gradient is in proportion to, as of every estimator: by `variance` it
            is the gradient itself, by `standard_deviation` sqrt(s (1 - s)) times it; see
            `GradientEstimator`.

    Source: Dong, Mnih and Tucker 2020, "DisARM: An Antithetic Gradient Estimator for Binary Latent
        Variables"; found at the same time by Yin et al. 2020 (U2G). Not in the paper.
    Differs: Theirs is the gradient by the logit; divided by s (1 - s) it is the one by s, which
        turns their factor max(s, 1 - s) into 1 / min(s, 1 - s).
    """

    drawn_by = "Antithetic"

    def __init__(self, score_scale: ScoreScale = "variance") -> None:
        super().__init__(score_scale, "samples")

    def draw(
        self, keep_probabilities_U: Tensor, num_masks: int, generator: torch.Generator
    ) -> Tensor:
        """Draw pairs of opposite masks, one behind the other. See `GradientEstimator.draw`."""
        assert num_masks % 2 == 0, num_masks
        s_U = keep_probabilities_U.detach()
        uniform_PU = torch.rand(
            (num_masks // 2, len(s_U)), generator=generator, dtype=s_U.dtype, device=s_U.device
        )
        return antithetic_masks(uniform_PU, s_U)

    def estimate(self, samples: MaskSamples) -> Tensor:
        """Estimate the gradient; nothing is remembered. See `GradientEstimator.estimate`."""
        self.check_mask_samples(samples.masks_per_text)
        losses_S, s_U = samples.losses_S.detach().double(), samples.keep_probabilities_U.detach()
        self.baseline.copy_(samples.losses_R.mean())
        self.used_baseline.copy_(losses_S.mean())
        differences_P = losses_S[0::2] - losses_S[1::2]
        first_PU, second_PU = samples.masks_SU[0::2].double(), samples.masks_SU[1::2].double()
        sums_U = differences_P @ (first_PU - second_PU)
        factor_U = 1 / torch.minimum(s_U, 1 - s_U)
        if self.score_scale == "standard_deviation":
            factor_U = factor_U * (s_U * (1 - s_U)).sqrt()
        # A unit at a bound is alike in both masks.
        factor_U = torch.where((s_U > 0) & (s_U < 1), factor_U, 0.0)
        return sums_U * factor_U / len(losses_S)


def antithetic_masks(uniform_PU: Tensor, keep_probabilities_U: Tensor) -> Tensor:
    """Make the two masks of each pair.

    Args:
        uniform_PU: Numbers u, (P, U) float64, in [0, 1).
        keep_probabilities_U: Probabilities s, (U,) float64, from 0 to 1.

    Returns:
        Masks, (S, U) bool, S = 2 P: that of u, behind it that of 1 - u.
    """
    # "1 - u < s", in the form that never keeps a unit at s = 0 and always one at s = 1.
    pair = (uniform_PU < keep_probabilities_U, uniform_PU >= 1 - keep_probabilities_U)
    return torch.stack(pair, dim=1).flatten(0, 1)
