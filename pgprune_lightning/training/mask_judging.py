"""Masks of a training step and their losses: drawn, judged by texts, ready for an estimator.

Shapes: S mask samples, U units, B sequences, T tokens.
"""

# No `from __future__ import annotations`: the command line reads these types.
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pgprune_lightning.policy import GradientEstimator, MaskSamples
from pgprune_lightning.training.environment import FrozenEnvironment
from pgprune_lightning.training.mask_losses import Judge, MaskLosses

LossReader = FrozenEnvironment | MaskLosses
"""What runs the model under masks and reads its losses."""

MasksPer = Literal["batch", "sequence"]
"""What judges a mask: the whole batch, or one sequence of it."""


@dataclass(frozen=True)
class MaskJudging:
    """How the masks of a step are judged.

    Args:
        num_mask_samples: Masks for each text on each rank (N_s).
        masks_per: What a text is: the whole `batch`, or each `sequence` of it.
        judge: What the loss is.
    """

    num_mask_samples: int
    masks_per: MasksPer
    judge: Judge

    def check(self, estimator: GradientEstimator, batch_size: int | None = None) -> None:
        """Refuse fewer masks a step than the estimator needs.

        Args:
            estimator: What the masks are for.
            batch_size: Sequences of a step on all ranks; None where that is not known yet.

        Raises:
            UserError: There are too few.
        """
        num_texts = 1
        if self.masks_per == "sequence":
            num_texts = 2 if batch_size is None else batch_size  # the benefit of the doubt
        estimator.check_mask_samples(self.num_mask_samples, num_texts)

    def samples(
        self,
        environment: LossReader,
        batch_BT: Tensor,
        keep_probabilities_U: Tensor,
        estimator: GradientEstimator,
        generator: torch.Generator,
    ) -> MaskSamples:
        """Draw masks as the estimator asks, and judge them.

        Args:
            environment: The model.
            batch_BT: Token ids, (B, T), int64.
            keep_probabilities_U: The probabilities, (U,) float64.
            estimator: Draws the masks, and says whether the dense model's losses are needed.
            generator: Source of the randomness, on the device of the probabilities.

        Returns:
            The samples of this rank.
        """
        num_texts = 1 if self.masks_per == "batch" else len(batch_BT)
        num_masks = num_texts * self.num_mask_samples
        masks_SU = estimator.draw(keep_probabilities_U, num_masks, generator)
        return MaskSamples(
            masks_SU=masks_SU,
            losses_S=self._losses(environment, batch_BT, masks_SU),
            keep_probabilities_U=keep_probabilities_U,
            num_texts=num_texts,
            dense_losses_S=(
                self._dense_losses(environment, batch_BT) if estimator.needs_dense_losses else None
            ),
        )

    def _losses(self, environment: LossReader, batch_BT: Tensor, masks_SU: Tensor) -> Tensor:
        if self.masks_per == "batch":
            return environment.losses_of_masks(batch_BT, masks_SU, self.judge)
        batch_ST = batch_BT.repeat_interleave(self.num_mask_samples, dim=0)
        return environment.losses_of_sequences(batch_ST, masks_SU, self.judge)

    def _dense_losses(self, environment: LossReader, batch_BT: Tensor) -> Tensor:
        """Cross entropy of the dense model on the text of each mask, whatever the judge, (S,)."""
        losses_BT = environment.token_nll(batch_BT, None).double()
        if self.masks_per == "batch":
            return losses_BT.mean().expand(self.num_mask_samples)
        return losses_BT.mean(dim=1).repeat_interleave(self.num_mask_samples)
