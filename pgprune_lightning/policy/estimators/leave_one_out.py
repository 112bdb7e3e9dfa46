"""REINFORCE with a leave-one-out baseline.

Shapes: S samples of this rank, R samples of all ranks, X texts of this rank.
"""

from torch import Tensor

from pgprune_lightning.errors import UserError
from pgprune_lightning.policy.estimators.estimator import GradientEstimator, ScoreScale
from pgprune_lightning.policy.estimators.samples import MaskSamples


class LeaveOneOut(GradientEstimator):
    """Compares each mask with the mean of the other masks of its step.

    Masks of the same text are compared with one another, so how difficult it is cancels, which a
    baseline of past steps cannot do; where each text has one mask, those of all texts of all ranks
    are. With two masks half the difference of their losses is left: more variance than a moving
    average has where masks differ more than texts do. It pays from some four masks on, and once
    the mask samples are alike.

    Args:
        score_scale: What m - s is divided by: its `variance` s (1 - s), or its
            `standard_deviation`; see `GradientEstimator`.

    Source: Kool et al. 2019, "Buy 4 REINFORCE samples, get a baseline for free"; not in the paper.
    """

    def __init__(self, score_scale: ScoreScale = "variance") -> None:
        super().__init__(score_scale, "samples")

    def check_mask_samples(self, num_mask_samples: int, num_texts: int = 1) -> None:
        """Refuse a step with one mask, which leaves nothing to compare with.

        Args:
            num_mask_samples: Masks that each text of a rank's step judges (N_s).
            num_texts: Texts of a step on each rank.

        Raises:
            UserError: There are fewer than two masks.
        """
        if num_mask_samples * num_texts < 2:
            raise UserError(
                "num_mask_samples: LeaveOneOut compares the masks of a step with one another and "
                f"needs at least 2, given {num_mask_samples}."
            )

    def estimate(self, samples: MaskSamples) -> Tensor:
        """Estimate the gradient; nothing is remembered. See `GradientEstimator.estimate`."""
        losses_S, per_text = samples.losses_S.detach().double(), samples.masks_per_text
        if per_text > 1:
            num_compared = per_text
            means_X1 = samples.by_text(losses_S).mean(dim=1, keepdim=True)
            means_S = means_X1.expand(-1, per_text).flatten()
        else:
            losses_R = samples.losses_R
            num_compared = len(losses_R)
            self.check_mask_samples(num_compared)
            means_S = losses_R.mean()
        self.baseline.copy_(samples.losses_R.mean())
        self.used_baseline.copy_(losses_S.mean())
        # loss - mean of the others = (loss - mean of all) * N / (N - 1)
        advantages_S = (losses_S - means_S) * (num_compared / (num_compared - 1))
        return self._reinforce(advantages_S, samples)
