"""What can be measured: a model together with the program that runs it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a model without running it.

    Args:
        runtime: The program that runs it, such as `transformers`.
        dtype: Type of its weights, by name.
        parameters: How many there are, tied ones once.
        parameter_bytes: What they occupy in memory.
        max_positions: Tokens that it was made to read at once; None: not stated.
        vocabulary: Number of its tokens.
    """

    runtime: str
    dtype: str
    parameters: int
    parameter_bytes: int
    max_positions: int | None
    vocabulary: int


class Evaluated(Protocol):
    """A model that scores and continues texts.

    Attributes:
        facts: What is known of it.
        device: Where it expects token ids.
    """

    facts: ModelFacts
    device: torch.device

    def token_nll(self, tokens_BT: Tensor) -> Tensor:
        """Score every token given those before it.

        Args:
            tokens_BT: Token ids, (B, T), int64; no padding.

        Returns:
            Nats per token, (B, T - 1), float32; entry t belongs to token t + 1.
        """

    def timed_generation(self, prompts_BT: Tensor, num_tokens: int) -> tuple[float, float]:
        """Read prompts into a cache, then continue each by the likeliest token each time.

        Args:
            prompts_BT: Token ids, (B, T), int64.
            num_tokens: Tokens of each continuation, each of which goes through the model.

        Returns:
            Seconds for the prompts (prefill), and for the continuations (decode).
        """
