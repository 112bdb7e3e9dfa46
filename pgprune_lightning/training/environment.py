"""The environment that the policy acts on: a frozen language model that answers a mask with a loss.

Shapes: S mask samples, U units, B sequences, P sequences of a part, T tokens, N tokens of a batch,
H hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pgprune_lightning.masking.activation_memory import sequences_per_forward
from pgprune_lightning.masking.fingerprint import model_fingerprint
from pgprune_lightning.masking.frozen_model import (
    load_model_config,
    model_on_meta,
    resolve_dtype,
)
from pgprune_lightning.masking.model_reuse import open_frozen_model
from pgprune_lightning.masking.model_source import ModelSource
from pgprune_lightning.masking.model_units import mask_space_of
from pgprune_lightning.masking.token_loss import predicting_states, token_kl, token_nll
from pgprune_lightning.plan import BaseModel
from pgprune_lightning.policy import MaskSpace, UnitKind
from pgprune_lightning.training.execution_choice import ExecutionChoice, ExecutionName

Judge = Literal["cross_entropy", "kl_to_dense"]
"""What a mask is judged by: the text's own next tokens, or the dense model's distributions."""


class FrozenEnvironment:
    """A model and its units; the weights are loaded apart, once everything else is checked.

    It is no `torch.nn.Module`: what holds it does not register the model's parameters, so that
    checkpoints stay small and nothing of the model is broadcast between ranks.

    Args:
        source: Where the model lies.
        unit_kinds: What one decision drops.
        channels_per_unit: Neighbouring MLP channels that one decision drops.

    Raises:
        UserError: If the configuration cannot be read, its family cannot be pruned, or it has no
            such units.
    """

    space: MaskSpace
    base_model: BaseModel

    def __init__(
        self, source: ModelSource, unit_kinds: Sequence[UnitKind], channels_per_unit: int
    ) -> None:
        self.source = source
        self.space = mask_space_of(
            model_on_meta(load_model_config(source)), unit_kinds, channels_per_unit
        )
        self._execution: ExecutionChoice | None = None

    @property
    def is_loaded(self) -> bool:
        """Whether the weights are there."""
        return self._execution is not None

    def load(
        self,
        *,
        dtype: str,
        device: torch.device,
        attention: str,
        execution: ExecutionName = "gathered",
        shard: int = 1,
    ) -> None:
        """Load and freeze the weights.

        Args:
            dtype: Name of their type; see `resolve_dtype`.
            device: Where they go.
            attention: Attention implementation of transformers.
            execution: How masks are executed: `gathered`, `multiplied`, or `auto`, the faster of
                both in the first passes of `losses_of_masks`.
            shard: Ranks that share one copy of the weights. Every rank must then call what runs the
                model equally often.

        Raises:
            UserError: If they cannot be loaded.
        """
        model = open_frozen_model(
            self.source,
            dtype=resolve_dtype(dtype, device),
            device=device,
            attention=attention,
            shard=shard,
        )
        self._execution = ExecutionChoice(model, self.space, execution)
        self.base_model = BaseModel(
            source=self.source.given,
            model_type=model.config.model_type,
            fingerprint=model_fingerprint(model),
            parameters=self.space.total_parameters,
        )

    @property
    def model(self) -> PreTrainedModel:
        """The dense model."""
        return self._loaded().multiplied.model

    @property
    def execution(self) -> str | None:
        """The execution of masks, None while `auto` has not picked one."""
        return self._loaded().picked

    def restore_execution(self, picked: str | None) -> None:
        """Go on with what an `auto` picked before; what `load` was told to use stays."""
        self._loaded().restore(picked)

    def masked(self, mask_U: Tensor) -> AbstractContextManager[PreTrainedModel]:
        """The model under a mask, (U,), bool, for the length of a `with` block."""
        return self._loaded().current.masked(mask_U)

    @torch.no_grad()
    def token_nll(self, batch_BT: Tensor, mask_U: Tensor | None) -> Tensor:
        """Token losses of the model under a mask.

        Args:
            batch_BT: Token ids, (B, T), int64; B may be 0.
            mask_U: Which units stay, (U,), bool; None for the dense model.

        Returns:
            Nats per token, (B, T - 1), float32.
        """
        if len(batch_BT) == 0:  # ranks that share a model must all run it
            return self.token_nll(batch_BT.new_zeros(1, batch_BT.shape[1]), mask_U)[:0]
        with nullcontext(self.model) if mask_U is None else self.masked(mask_U) as model:
            return torch.cat([token_nll(model, part_BT) for part_BT in self._parts(batch_BT)])

    @torch.no_grad()
    def losses_of_masks(
        self, batch_BT: Tensor, masks_SU: Tensor, judge: Judge = "cross_entropy"
    ) -> Tensor:
        """Judge each mask by the whole batch.

        Args:
            batch_BT: Token ids, (B, T), int64.
            masks_SU: Which units stay, (S, U), bool.
            judge: What a mask is judged by; `kl_to_dense` takes one dense forward pass besides.

        Returns:
            Mean loss of each mask in nats per token, (S,), float64.
        """
        loss_under = self._loss_under(batch_BT, judge)
        losses = []
        # One transfer, so that the host prepares a mask while the last one's pass still runs.
        for mask_U in masks_SU.cpu():
            with self._loaded().timed(mask_U):
                losses.append(loss_under(mask_U).mean())
        return torch.stack(losses).double()

    @torch.no_grad()
    def losses_of_sequences(
        self, batch_BT: Tensor, masks_BU: Tensor, judge: Judge = "cross_entropy"
    ) -> Tensor:
        """Judge masks by a sequence each, all in one pass; everything is computed for each.

        Args:
            batch_BT: Token ids, (B, T), int64.
            masks_BU: Which units stay for each sequence, (B, U), bool.
            judge: What a mask is judged by; `kl_to_dense` takes one dense forward pass besides.

        Returns:
            Mean loss of each sequence under its mask in nats per token, (B,), float64.
        """
        multiplied = self._loaded().multiplied
        rows = self._rows(batch_BT)
        losses = []
        for part_BT, masks_PU in zip(batch_BT.split(rows), masks_BU.split(rows), strict=True):
            # On the whole model, before the masks lie on it.
            loss_of = self._loss_of(part_BT, judge)
            with multiplied.masked_each(masks_PU) as model:
                losses.append(loss_of(model))
        return torch.cat(losses).mean(dim=1).double()

    def _loss_under(self, batch_BT: Tensor, judge: Judge) -> Callable[[Tensor], Tensor]:
        """What maps a mask to its losses on a batch, in nats per token, (B, T - 1), float32."""
        if judge == "cross_entropy":
            return partial(self.token_nll, batch_BT)
        losses_of = [self._loss_of(part_BT, judge) for part_BT in self._parts(batch_BT)]

        def divergence(mask_U: Tensor) -> Tensor:
            with self.masked(mask_U) as model:
                return torch.cat([loss_of(model) for loss_of in losses_of])

        return divergence

    def _loss_of(self, part_BT: Tensor, judge: Judge) -> Callable[[PreTrainedModel], Tensor]:
        """What maps the masked model to its losses on some sequences, (B, T - 1), float32."""
        if judge == "cross_entropy":
            return partial(token_nll, input_ids_BT=part_BT)
        dense_NH = predicting_states(self.model, part_BT)
        return partial(token_kl, input_ids_BT=part_BT, dense_NH=dense_NH)

    def _parts(self, batch_BT: Tensor) -> tuple[Tensor, ...]:
        """A batch in parts whose activations stay small beside the weights."""
        return batch_BT.split(self._rows(batch_BT))

    def _rows(self, batch_BT: Tensor) -> int:
        return sequences_per_forward(self.model.config, batch_BT.shape[1], self.model.dtype)

    def _loaded(self) -> ExecutionChoice:
        assert self._execution is not None, "the weights are not loaded"
        return self._execution
