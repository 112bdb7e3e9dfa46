"""What a frozen model loses under masks, read by the execution that is chosen.

Shapes: S mask samples, U units, B sequences, P sequences of a part, N sequences under all masks,
T tokens, H hidden.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pgprune_lightning.masking.activation_memory import sequences_per_forward
from pgprune_lightning.masking.token_loss import predicting_states, token_losses
from pgprune_lightning.training.execution_choice import ONE_A_SEQUENCE, ExecutionChoice

Objective = Literal["cross_entropy", "kl_to_dense"]
"""Loss of a mask: against the text's own next tokens, or the dense model's distributions."""


class MaskLosses:
    """Reads losses in parts of a batch whose activations stay small beside the weights.

    Args:
        execution: What runs the model under masks.
    """

    def __init__(self, execution: ExecutionChoice) -> None:
        self.execution = execution

    @property
    def model(self) -> PreTrainedModel:
        """The dense model."""
        return self.execution.dense_masked.model

    @torch.no_grad()
    def token_nll(self, batch_BT: Tensor, mask_U: Tensor | None) -> Tensor:
        """Token losses under a mask; see `MaskedModel.token_nll`."""
        if mask_U is None:
            return self._in_parts(self.model, batch_BT, None)
        return self._under(mask_U, batch_BT, None)

    @torch.no_grad()
    def losses_of_masks(
        self, batch_BT: Tensor, masks_SU: Tensor, objective: Objective = "cross_entropy"
    ) -> Tensor:
        """Losses of each mask on the whole batch; see `MaskedModel.losses_of_masks`."""
        dense_BTH = self._dense_states(batch_BT, objective)
        with self.execution.timed(masks_SU):
            if self.execution.name == "batched":
                losses_NT = self._batched(masks_SU, batch_BT, dense_BTH)
                return losses_NT.view(len(masks_SU), -1).mean(dim=1).double()
            # One transfer, so that the host prepares a mask while the last one's pass still runs.
            losses = [self._under(mask_U, batch_BT, dense_BTH).mean() for mask_U in masks_SU.cpu()]
            return torch.stack(losses).double()

    @torch.no_grad()
    def losses_of_sequences(
        self, batch_BT: Tensor, masks_BU: Tensor, objective: Objective = "cross_entropy"
    ) -> Tensor:
        """Losses of masks on a sequence each; see `MaskedModel.losses_of_sequences`."""
        with self.execution.timed(masks_BU, ONE_A_SEQUENCE):
            rows = self._rows(batch_BT)
            parts = zip(batch_BT.split(rows), masks_BU.split(rows), strict=True)
            losses = [self._of_part(*part, objective) for part in parts]
            return torch.cat(losses).mean(dim=1).double()

    def _of_part(self, part_PT: Tensor, masks_PU: Tensor, objective: Objective) -> Tensor:
        """Token losses of sequences, each under its own mask, (P, T - 1)."""
        dense_PTH = self._dense_states(part_PT, objective)
        if self.execution.name == "batched":
            return self.execution.batched.token_losses(part_PT, masks_PU, dense_PTH)
        with self.execution.dense_masked.masked_each(masks_PU) as model:
            return token_losses(model, part_PT, dense_PTH)

    def _under(self, mask_U: Tensor, batch_BT: Tensor, dense_BTH: Tensor | None) -> Tensor:
        """Token losses of a batch under a mask, (B, T - 1)."""
        if self.execution.name == "batched":
            return self._batched(mask_U[None].to(batch_BT.device), batch_BT, dense_BTH)
        with self.execution.current.masked(mask_U) as model:
            return self._in_parts(model, batch_BT, dense_BTH)

    def _in_parts(
        self, model: PreTrainedModel, batch_BT: Tensor, dense_BTH: Tensor | None
    ) -> Tensor:
        rows = self._rows(batch_BT)
        parts = batch_BT.split(rows)
        dense = [None] * len(parts) if dense_BTH is None else dense_BTH.split(rows)
        return torch.cat([token_losses(model, *pair) for pair in zip(parts, dense, strict=True)])

    def _batched(self, masks_SU: Tensor, batch_BT: Tensor, dense_BTH: Tensor | None) -> Tensor:
        """Token losses of the batch under the first mask, then the second, ..., (N, T - 1)."""
        rows_N = torch.arange(len(masks_SU) * len(batch_BT), device=batch_BT.device)
        losses = []
        for rows_P in rows_N.split(self._rows(batch_BT)):
            texts_P, samples_P = rows_P % len(batch_BT), rows_P // len(batch_BT)
            dense_PTH = None if dense_BTH is None else dense_BTH[texts_P]
            losses.append(
                self.execution.batched.token_losses(
                    batch_BT[texts_P], masks_SU[samples_P], dense_PTH
                )
            )
        return torch.cat(losses)

    def _dense_states(self, batch_BT: Tensor, objective: Objective) -> Tensor | None:
        """What `kl_to_dense` compares with, (B, T - 1, H), of the model without a mask."""
        if objective == "cross_entropy":
            return None
        parts = batch_BT.split(self._rows(batch_BT))
        states_NH = torch.cat([predicting_states(self.model, part_PT) for part_PT in parts])
        return states_NH.view(len(batch_BT), -1, states_NH.shape[-1])

    def _rows(self, batch_BT: Tensor) -> int:
        return sequences_per_forward(self.model.config, batch_BT.shape[1], self.model.dtype)
