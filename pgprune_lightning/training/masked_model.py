"""The frozen language model that the policy acts on: it answers a mask with a loss.

Shapes: S mask samples, U units, B sequences, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from pgprune_lightning.masking.fingerprint import fingerprint_like, weights_fingerprint
from pgprune_lightning.masking.frozen_model import (
    load_model_config,
    model_on_meta,
    resolve_dtype,
)
from pgprune_lightning.masking.model_reuse import open_frozen_model
from pgprune_lightning.masking.model_source import ModelSource
from pgprune_lightning.masking.model_units import unit_layout_of
from pgprune_lightning.plan import BaseModel
from pgprune_lightning.policy import UnitKind, UnitLayout
from pgprune_lightning.training.execution_choice import ExecutionChoice, ExecutionName
from pgprune_lightning.training.mask_losses import MaskLosses, Objective


class MaskedModel:
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

    space: UnitLayout
    config: PreTrainedConfig
    """The model's configuration."""
    num_tokens: int
    """Rows of the embedding."""
    base_model: BaseModel

    def __init__(
        self, source: ModelSource, unit_kinds: Sequence[UnitKind], channels_per_unit: int
    ) -> None:
        self.source = source
        self.config = load_model_config(source)
        self.space = unit_layout_of(model_on_meta(self.config), unit_kinds, channels_per_unit)
        self.num_tokens = self.config.vocab_size
        self._losses: MaskLosses | None = None

    @property
    def is_loaded(self) -> bool:
        """Whether the weights are there."""
        return self._losses is not None

    def load(
        self,
        *,
        dtype: str,
        device: torch.device,
        attention: str,
        execution: ExecutionName = "compact",
        shard: int = 1,
    ) -> None:
        """Load and freeze the weights.

        Args:
            dtype: Name of their type; see `resolve_dtype`.
            device: Where they go.
            attention: Attention implementation of transformers.
            execution: How masks are executed: `compact`, `dense_masked`, `batched`, or `auto`, the
                fastest in the first steps.
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
        # The configuration may have counted a head as tied that the files hold apart.
        self.space = replace(self.space, total_parameters=model.num_parameters())
        self._losses = MaskLosses(ExecutionChoice(model, self.space, execution))
        self.base_model = BaseModel(
            source=self.source.given,
            model_type=model.config.model_type,
            fingerprint=weights_fingerprint(self.source, model),
            parameters=self.space.total_parameters,
        )

    def fingerprint_like(self, recorded: str) -> str:
        """The model's fingerprint in the form of one that was recorded; every rank must call it."""
        return fingerprint_like(recorded, self.source, self.model)

    @property
    def model(self) -> PreTrainedModel:
        """The dense model."""
        return self._loaded().model

    @property
    def execution(self) -> str | None:
        """The execution of masks, None while `auto` has not picked one."""
        return self._loaded().execution.picked

    def restore_execution(self, picked: str | None) -> None:
        """Go on with what an `auto` picked before; what `load` was told to use stays."""
        self._loaded().execution.restore(picked)

    def masked(self, mask_U: Tensor) -> AbstractContextManager[PreTrainedModel]:
        """The model under a mask, (U,), bool, for the length of a `with` block."""
        return self._loaded().execution.current.masked(mask_U)

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
        return self._loaded().token_nll(batch_BT, mask_U)

    def losses_of_masks(
        self, batch_BT: Tensor, masks_SU: Tensor, objective: Objective = "cross_entropy"
    ) -> Tensor:
        """Losses of each mask on the whole batch.

        Args:
            batch_BT: Token ids, (B, T), int64.
            masks_SU: Which units stay, (S, U), bool.
            objective: The loss; `kl_to_dense` takes one more, dense forward pass.

        Returns:
            Mean loss of each mask in nats per token, (S,), float64.
        """
        return self._loaded().losses_of_masks(batch_BT, masks_SU, objective)

    def losses_of_sequences(
        self, batch_BT: Tensor, masks_BU: Tensor, objective: Objective = "cross_entropy"
    ) -> Tensor:
        """Losses of masks on a sequence each, all in one pass that computes every unit.

        Args:
            batch_BT: Token ids, (B, T), int64.
            masks_BU: Which units stay for each sequence, (B, U), bool.
            objective: The loss; `kl_to_dense` takes one more, dense forward pass.

        Returns:
            Mean loss of each sequence under its mask in nats per token, (B,), float64.
        """
        return self._loaded().losses_of_sequences(batch_BT, masks_BU, objective)

    def _loaded(self) -> MaskLosses:
        assert self._losses is not None, "the weights are not loaded"
        return self._losses
