"""llama.cpp where it is installed, and tokenizers that it knows."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from pgprune_lightning.evaluation.llama_cpp import has_llama_cpp

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEXT = (
    "The quick brown foxes don't jump over 12345 lazy dogs; it's 3.14, isn't it?\n\n"
    "  def f(x):\n\treturn x**2  # naïve café\r\n ÉTÉ Été 東京 東京 42 DON'T   \n"
)


@pytest.fixture(scope="session")
def _llama_cpp() -> None:
    """Skip the test where llama-cpp-python is missing."""
    if not has_llama_cpp():
        pytest.skip("llama-cpp-python is not installed: make test-llama builds it")


@pytest.fixture(scope="session")
def awkward_text() -> str:
    """What rules of splitting differ on."""
    return TEXT


@pytest.fixture(scope="session")
def byte_level_tokenizer() -> Callable[..., PreTrainedTokenizerBase]:
    """Trains a byte-level BPE: `byte_level_tokenizer(97)`, or after other steps of splitting."""

    def train(size: int, *steps: Any, use_regex: bool = True) -> PreTrainedTokenizerBase:
        from tokenizers import Tokenizer, models, pre_tokenizers, trainers
        from transformers import PreTrainedTokenizerFast

        backend = Tokenizer(models.BPE())
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
        backend.pre_tokenizer = pre_tokenizers.Sequence([*steps, level]) if steps else level
        alphabet = pre_tokenizers.ByteLevel.alphabet() if size > 256 else []
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=["<s>", "</s>"],
            initial_alphabet=alphabet,
            show_progress=False,
        )
        backend.train_from_iterator([TEXT] * 4, trainer)
        return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")

    return train
