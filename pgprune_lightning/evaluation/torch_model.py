"""A model of transformers as it is measured: whole texts scored, or generation with a cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pgprune_lightning.evaluation.evaluated import ModelFacts
from pgprune_lightning.masking.token_loss import token_nll


class TorchModel:
    """A causal language model of transformers: dense, cut or exported.

    Args:
        model: The model, frozen, on its device.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.device: torch.device = model.device
        parameters = list(model.parameters())
        config = model.config.get_text_config()
        self.facts = ModelFacts(
            runtime="transformers",
            dtype=str(model.dtype).removeprefix("torch."),
            parameters=sum(parameter.numel() for parameter in parameters),
            parameter_bytes=sum(parameter.nbytes for parameter in parameters),
            max_positions=getattr(config, "max_position_embeddings", None),
            vocabulary=config.vocab_size,
        )
        self._cache: Any = None
        self._next_B1: Tensor | None = None

    def token_nll(self, tokens_BT: Tensor) -> Tensor:
        """Score every token, (B, T), given those before it: nats, (B, T - 1), float32."""
        return token_nll(self.model, tokens_BT)

    def prefill(self, tokens_BT: Tensor) -> None:
        """Read prompts, (B, T), into a fresh cache; logits are computed of their last tokens."""
        self._cache = None  # first, so that there is never more than one
        self._step(tokens_BT)

    def decode(self, num_tokens: int) -> None:
        """Continue the prompts by so many tokens, the likeliest each time."""
        assert self._next_B1 is not None, "there is nothing to continue: prefill first"
        for _ in range(num_tokens):
            self._step(self._next_B1)

    @torch.no_grad()
    def _step(self, tokens_BT: Tensor) -> None:
        output = self.model(
            tokens_BT, past_key_values=self._cache, use_cache=True, logits_to_keep=1
        )
        self._cache = output.past_key_values
        self._next_B1 = output.logits[:, -1:].argmax(-1)
