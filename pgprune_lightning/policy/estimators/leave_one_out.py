"""REINFORCE with a leave-one-out baseline.

Shapes: S samples of this rank, R samples of all ranks, U units.
"""

from torch import Tensor

from pgprune_lightning.errors import UserError
from pgprune_lightning.policy.estimators.estimator import GradientEstimator, ScoreScale


class LeaveOneOut(GradientEstimator):
    """Compares each mask with the mean of the other masks of its step.

    All masks of a step read the same batch, so how difficult its text is cancels, which a baseline
    of past steps cannot do. With two masks half the difference of their losses is left: more
    variance than a moving average has where masks differ more than texts do. It pays from some four
    masks on, and once the mask samples are alike.

    Args:
        score_scale: What m - s is divided by: its `variance` s (1 - s), or its
            `standard_deviation`; see `GradientEstimator`.

    Source: Kool et al. 2019, "Buy 4 REINFORCE samples, get a baseline for free"; not in the paper.
    """

    def __init__(self, score_scale: ScoreScale = "variance") -> None:
        super().__init__(score_scale, "samples")

    def check_mask_samples(self, num_mask_samples: int) -> None:
        """Refuse a step with one mask, which leaves nothing to compare with.

        Args:
            num_mask_samples: Masks that a rank draws in a step (N_s).

        Raises:
            UserError: There are fewer than two.
        """
        if num_mask_samples < 2:
            raise UserError(
                "num_mask_samples: LeaveOneOut compares the masks of a step with one another and "
                f"needs at least 2, given {num_mask_samples}."
            )

    def estimate(
        self,
        losses_S: Tensor,
        masks_SU: Tensor,
        keep_probabilities_U: Tensor,
        all_losses_R: Tensor | None = None,
    ) -> Tensor:
        """Estimate the gradient; nothing is remembered. See `GradientEstimator.estimate`.

        The ranks read different batches, so only this rank's losses are compared.
        """
        del all_losses_R
        losses_S = losses_S.detach().double()
        num_samples = len(losses_S)
        self.check_mask_samples(num_samples)
        mean = losses_S.mean()
        self.baseline.copy_(mean)
        self.used_baseline.copy_(mean)
        # loss - mean of the others = (loss - mean of all) * S / (S - 1)
        advantages_S = (losses_S - mean) * (num_samples / (num_samples - 1))
        return self._reinforce(advantages_S, masks_SU, keep_probabilities_U)
