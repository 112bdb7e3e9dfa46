"""A tokenizer whose ids can be told by eye, word "w7" is token 7, and texts of such words."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from pgprune_lightning.data.data_module import TokenBlocksDataModule
    from pgprune_lightning.data.text_source import TextSource

NUM_WORDS = 1000
UNKNOWN, BOS, END = NUM_WORDS, NUM_WORDS + 1, NUM_WORDS + 2


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    # Not at the top: pytest reads this file before the environment says that we are offline.
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    def make(*, special_tokens: bool = True, bos_at_head: bool = True) -> PreTrainedTokenizerFast:
        vocabulary = {f"w{index}": index for index in range(NUM_WORDS)}
        vocabulary |= {"<unk>": UNKNOWN, "<s>": BOS, "</s>": END}
        backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        if bos_at_head:
            backend.post_processor = processors.TemplateProcessing(
                single="<s> $A", special_tokens=[("<s>", BOS)]
            )
        named = {"bos_token": "<s>", "eos_token": "</s>"} if special_tokens else {}
        return PreTrainedTokenizerFast(
            tokenizer_object=backend, unk_token="<unk>", model_max_length=16, **named
        )

    return make


@pytest.fixture(scope="session")
def tokenizer(
    make_tokenizer: Callable[..., PreTrainedTokenizerFast],
) -> PreTrainedTokenizerFast:
    """As Llama's: it sets BOS before a text when special tokens are asked for."""
    return make_tokenizer()


@pytest.fixture
def source(tmp_path: Path) -> TextSource:
    """A text of a hundred documents of three words."""
    from pgprune_lightning.data.text_source import TextSource

    path = tmp_path / "corpus.txt"
    path.write_text("|".join(f"w{index} w{index + 1} w{index + 2}" for index in range(100)))
    return TextSource(str(path), document_separator="|")


@pytest.fixture
def cache_dir(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, TextSource]:
    """Texts of one-word documents, from w0 on, by role."""
    from pgprune_lightning.data.text_source import TextSource

    def source(name: str, num_words: int) -> TextSource:
        rows = [{"text": f"w{index}"} for index in range(num_words)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return TextSource(str(tmp_path / f"{name}.jsonl"))

    lengths = {"train": 100, "validation": 30, "first": 20, "second": 10}
    return {name: source(name, length) for name, length in lengths.items()}


@pytest.fixture
def make_module(
    sources: dict[str, TextSource], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> Callable[..., TokenBlocksDataModule]:
    """Makes a data module over `sources`, its cache in `tmp_path / "cache"`; settings override."""
    from pgprune_lightning.data.data_module import TokenBlocksDataModule

    def make(**settings: Any) -> TokenBlocksDataModule:
        arguments: dict[str, Any] = {
            "train": sources["train"],
            "validation": sources["validation"],
            "test": [sources["first"], sources["second"]],
            "tokenizer": tokenizer,
            "block_length": 8,
            "evaluation_block_length": 4,
            "batch_size": 3,
            "evaluation_batch_size": 4,
            "seed": 5,
            "cache_dir": str(tmp_path / "cache"),
        }
        return TokenBlocksDataModule(**{**arguments, **settings})

    return make


@pytest.fixture
def module(make_module: Callable[..., TokenBlocksDataModule]) -> TokenBlocksDataModule:
    """A data module whose blocks are made and open."""
    data = make_module()
    data.prepare_data()
    data.setup("fit")
    return data
