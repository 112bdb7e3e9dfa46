"""A model of transformers as it is measured: whole texts scored, or generation with a cache."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pgprune_lightning.evaluation.evaluated import ModelFacts
from pgprune_lightning.evaluation.latency import wait_for
from pgprune_lightning.masking.positions import max_positions
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
            max_positions=max_positions(model.config),
            vocabulary=config.vocab_size,
        )

    def token_nll(self, tokens_BT: Tensor) -> Tensor:
        """Score every token, (B, T), given those before it: nats, (B, T - 1), float32."""
        return token_nll(self.model, tokens_BT)

    @torch.no_grad()
    def timed_generation(self, prompts_BT: Tensor, num_tokens: int) -> tuple[float, float]:
        """Seconds to read prompts, (B, T), and to continue each by so many tokens, greedily.

        Of the prompts logits are computed for the last tokens alone, as it is served.
        """
        start = self._now()
        next_B1, cache = self._step(prompts_BT, None)
        middle = self._now()
        for _ in range(num_tokens):
            next_B1, cache = self._step(next_B1, cache)
        return middle - start, self._now() - middle

    def _step(self, tokens_BT: Tensor, cache: Any) -> tuple[Tensor, Any]:
        output = self.model(tokens_BT, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return output.logits[:, -1:].argmax(-1), output.past_key_values

    def _now(self) -> float:
        wait_for(self.device)
        return perf_counter()
