"""A GGUF file as llama.cpp runs it, in the shape that everything here is measured in."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import gguf
import torch
from torch import Tensor

from pgprune_lightning.errors import UserError
from pgprune_lightning.evaluation import ModelFacts
from pgprune_lightning.evaluation.llama_cpp import LlamaCppModel


class LlamaCppRow:
    """A model that llama.cpp has loaded; see `Evaluated`.

    Args:
        file: The GGUF file.
        context_length: Most tokens of a sequence.

    Raises:
        UserError: If llama-cpp-python is not installed, or does not load the file.
    """

    def __init__(self, file: Path, context_length: int) -> None:
        self.facts = gguf_facts(file)
        self.device = torch.device("cpu")
        self._model = LlamaCppModel(file, context_length=context_length)

    def token_nll(self, tokens_BT: Tensor) -> Tensor:
        """Score every token, (B, T), given those before it: nats, (B, T - 1), float32.

        Raises:
            UserError: If the file has no such token.
        """
        largest = int(tokens_BT.max())
        if largest >= self.facts.vocabulary:
            raise UserError(
                f"the text holds a token with id {largest}, and the GGUF file has "
                f"{self.facts.vocabulary}. Its tokenizer is another one, or has left out what the "
                "model has no row for: give --tokenizer, or a text without it."
            )
        return self._model.token_nll(tokens_BT)

    def timed_generation(self, prompts_BT: Tensor, num_tokens: int) -> tuple[float, float]:
        """Seconds to read a prompt, (1, T), and to continue it by so many tokens, greedily."""
        assert len(prompts_BT) == 1, "one sequence at a time"
        prompt = prompts_BT[0].tolist()
        prefill = self._model.prefill_seconds(prompt)
        return prefill, self._model.decode_seconds(prompt, num_tokens)


def gguf_facts(file: Path) -> ModelFacts:
    """What a GGUF file says of its model; `dtype` is the type of most of its weights.

    Args:
        file: The file.
    """
    reader: Any = gguf.GGUFReader(file)
    architecture = reader.get_field("general.architecture").contents()
    positions = reader.get_field(f"{architecture}.context_length")
    sizes: Counter[str] = Counter()
    for tensor in reader.tensors:
        sizes[tensor.tensor_type.name.lower()] += int(tensor.n_bytes)
    return ModelFacts(
        runtime="llama.cpp",
        dtype=sizes.most_common(1)[0][0],
        parameters=sum(int(tensor.n_elements) for tensor in reader.tensors),
        parameter_bytes=sizes.total(),
        max_positions=None if positions is None else int(positions.contents()),
        vocabulary=len(reader.get_field("tokenizer.ggml.tokens").data),
    )
