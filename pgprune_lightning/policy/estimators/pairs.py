"""What estimators that compare the two masks of a pair have in common."""

from typing import ClassVar

from pgprune_lightning.errors import UserError
from pgprune_lightning.policy.estimators.estimator import GradientEstimator


class PairedEstimator(GradientEstimator):
    """Draws masks in pairs, one behind the other, both judged by the same text."""

    drawn_by: ClassVar[str]
    """What draws the pairs, as a configuration names it."""

    def check_mask_samples(self, num_mask_samples: int, num_texts: int = 1) -> None:
        """Refuse a text with a mask that has no opposite.

        Args:
            num_mask_samples: Masks that each text of a rank's step judges (N_s).
            num_texts: Texts of a step on each rank.

        Raises:
            UserError: Their number is odd.
        """
        del num_texts
        if num_mask_samples % 2 or num_mask_samples < 2:
            raise UserError(
                f"num_mask_samples: {self.drawn_by} draws masks in pairs and needs an even number "
                f"of them for each text, given {num_mask_samples}."
            )
