"""Evaluates the masks of a training step on texts, for an estimator.

Shapes: S mask samples, R mask samples of all ranks, U units, B sequences, T tokens.
"""

# No `from __future__ import annotations`: the command line reads these types.
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from pgprune_lightning.errors import UserError
from pgprune_lightning.policy import GradientEstimator, MaskSamples
from pgprune_lightning.training.mask_losses import MaskLosses, Objective
from pgprune_lightning.training.masked_model import MaskedModel

LossReader = MaskedModel | MaskLosses
"""What runs the model under masks and reads its losses."""

MaskGranularity = Literal["batch", "sequence"]
"""The text that evaluates a mask: the whole batch, or one sequence of it."""


@dataclass(frozen=True)
class MaskEvaluator:
    """Evaluates the masks of a step; the options `model.objective`.

    Args:
        num_mask_samples: Masks drawn in each step on each rank (N_s), for the batch or for each
            sequence of it, as `mask_granularity` says.
        mask_granularity: The text that evaluates a mask: the whole `batch`, with one forward pass a
            mask, as the paper; or one `sequence`, so that a batch of B sequences evaluates B masks
            for each of `num_mask_samples`, all in one forward pass of as many sequences, which
            computes what the masks drop too. The loss varies more across masks than across texts,
            so many masks tell more.
        loss: The loss of a mask in training, in nats per token: the `cross_entropy` of the text, as
            the paper, or `kl_to_dense`, the divergence KL(dense || masked) of the next-token
            distributions, with one dense forward pass more a step. Validation measures perplexity
            either way.
    """

    num_mask_samples: int = 2
    mask_granularity: MaskGranularity = "batch"
    loss: Objective = "cross_entropy"

    def check(self, estimator: GradientEstimator, batch_size: int | None = None) -> None:
        """Refuse fewer masks a step than the estimator needs.

        Args:
            estimator: What the masks are for.
            batch_size: Sequences of a step on all ranks; None where that is not known yet.

        Raises:
            UserError: There are too few.
        """
        if self.num_mask_samples < 1:
            raise UserError(
                f"objective.num_mask_samples: must be at least 1, given {self.num_mask_samples}."
            )
        num_texts = 1
        if self.mask_granularity == "sequence":
            num_texts = 2 if batch_size is None else batch_size  # the benefit of the doubt
        estimator.check_mask_samples(self.num_mask_samples, num_texts)

    def num_texts(self, batch_BT: Tensor) -> int:
        """How many texts a batch, (B, T), is: each is read by masks of its own."""
        return 1 if self.mask_granularity == "batch" else len(batch_BT)

    def num_masks(self, batch_BT: Tensor) -> int:
        """Number of masks that a batch, (B, T), evaluates (S)."""
        return self.num_texts(batch_BT) * self.num_mask_samples

    def evaluate(
        self,
        masked_model: LossReader,
        batch_BT: Tensor,
        masks_SU: Tensor,
        keep_probabilities_U: Tensor,
        *,
        with_dense: bool,
    ) -> MaskSamples:
        """Read the losses of masks.

        Args:
            masked_model: The model.
            batch_BT: Token ids, (B, T), int64.
            masks_SU: The masks, (S, U) bool, `num_masks` of them.
            keep_probabilities_U: The probabilities that they were drawn from, (U,) float64.
            with_dense: Also read the dense model's losses.

        Returns:
            The samples of this rank.
        """
        return MaskSamples(
            masks_SU=masks_SU,
            losses_S=self._losses(masked_model, batch_BT, masks_SU),
            keep_probabilities_U=keep_probabilities_U,
            num_texts=self.num_texts(batch_BT),
            dense_losses_S=self._dense_losses(masked_model, batch_BT) if with_dense else None,
        )

    def _losses(self, masked_model: LossReader, batch_BT: Tensor, masks_SU: Tensor) -> Tensor:
        if self.mask_granularity == "batch":
            return masked_model.losses_of_masks(batch_BT, masks_SU, self.loss)
        batch_ST = batch_BT.repeat_interleave(self.num_mask_samples, dim=0)
        return masked_model.losses_of_sequences(batch_ST, masks_SU, self.loss)

    def _dense_losses(self, masked_model: LossReader, batch_BT: Tensor) -> Tensor:
        """Cross entropy of the dense model on the text of each mask, for every objective, (S,)."""
        losses_BT = masked_model.token_nll(batch_BT, None).double()
        if self.mask_granularity == "batch":
            return losses_BT.mean().expand(self.num_mask_samples)
        return losses_BT.mean(dim=1).repeat_interleave(self.num_mask_samples)


def check_losses(losses_R: Tensor, step: int) -> None:
    """Refuse losses that are not finite.

    Args:
        losses_R: Loss of each mask, (R,), in nats per token.
        step: Number of steps taken before.

    Raises:
        UserError: One is not.
    """
    if bool(losses_R.isfinite().all()):
        return
    sample = int((~losses_R.isfinite()).nonzero()[0])
    raise UserError(
        f"The loss of mask sample {sample} in step {step} is {float(losses_R[sample])}; the policy "
        "stays as it was before this step. Try model.execution.dtype float32, a higher "
        "model.keep_ratio, or look for broken weights; --resume auto goes on from the last "
        "checkpoint."
    )
