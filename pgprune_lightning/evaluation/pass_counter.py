"""Counting the forward and backward passes that go through a model, by what they are for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from pgprune_lightning.masking.decoder_family import backbone_of

Purpose = Literal["initialization", "training", "validation"]

TOKENS_OF_A_PASS = 8 * 128
"""What one pass is: a forward pass over 8 sequences of 128 tokens. Others count by their tokens."""


class PassCounter:
    """Counts every pass through a model's decoder, whoever makes it.

    A mask that each sequence has for itself, and a batch that is run once for every mask, count
    alike: by the tokens that go through.

    Attributes:
        purpose: What the next passes are for.
    """

    def __init__(self) -> None:
        self.purpose: Purpose = "initialization"
        self._forward: dict[str, int] = dict.fromkeys(get_args(Purpose), 0)
        self._backward: dict[str, int] = dict.fromkeys(get_args(Purpose), 0)
        self._handle: RemovableHandle | None = None

    def attach(self, model: PreTrainedModel) -> None:
        """Begin to count.

        Args:
            model: Whose passes are counted, until `detach`.
        """
        assert self._handle is None, "a model is attached"
        self._handle = backbone_of(model).register_forward_hook(self._count)

    def detach(self) -> None:
        """Count no more; the model is as it was."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    @property
    def passes(self) -> dict[str, float]:
        """Passes of 8 x 128 tokens: forward ones by purpose, and all `backward` ones."""
        forward = {name: tokens / TOKENS_OF_A_PASS for name, tokens in self._forward.items()}
        return forward | {"backward": sum(self._backward.values()) / TOKENS_OF_A_PASS}

    def state_dict(self) -> dict[str, dict[str, int]]:
        """Tokens so far, for a checkpoint."""
        return {"forward": dict(self._forward), "backward": dict(self._backward)}

    def load_state_dict(self, state: Mapping[str, Mapping[str, int]]) -> None:
        """Add what was counted before a checkpoint."""
        for counts, saved in (
            (self._forward, state["forward"]),
            (self._backward, state["backward"]),
        ):
            for purpose, tokens in saved.items():
                counts[purpose] += tokens

    def _count(self, _module: nn.Module, arguments: tuple[Tensor, ...], output: Any) -> None:
        tokens, purpose = arguments[0].numel(), self.purpose
        self._forward[purpose] += tokens
        hidden_BTH: Tensor = output.last_hidden_state
        if torch.is_grad_enabled() and hidden_BTH.requires_grad:

            def count_backward(_gradient: Tensor) -> None:
                self._backward[purpose] += tokens

            hidden_BTH.register_hook(count_backward)
