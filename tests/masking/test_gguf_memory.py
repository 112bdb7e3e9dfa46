"""What was read out of a GGUF file is remembered for the file as it was, and never shared."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoTokenizer

from pgprune_lightning.masking.frozen_model import load_model_config
from pgprune_lightning.masking.model_source import resolve_model_source
from pgprune_lightning.masking.tokenizer import load_tokenizer

WriteGguf = Callable[..., Path]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the loaders that were asked, one entry a time."""
    made: list[str] = []

    def counted(name: str, read: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*arguments: Any, **options: Any) -> Any:
            made.append(name)
            return read(*arguments, **options)

        return counting

    for loader in (AutoConfig, AutoTokenizer):
        counting = counted(loader.__name__, loader.from_pretrained)
        monkeypatch.setattr(loader, "from_pretrained", counting)
    return made


def test_a_configuration_is_read_once_for_each_state_of_its_file(
    write_gguf: WriteGguf, reads: list[str]
) -> None:
    source = resolve_model_source(str(write_gguf(context_length=64)))
    first, second = load_model_config(source), load_model_config(source)
    assert reads.count("AutoConfig") == 1
    assert first.max_position_embeddings == second.max_position_embeddings == 64
    assert resolve_model_source(str(write_gguf(context_length=32))) == source
    assert load_model_config(source).max_position_embeddings == 32
    assert reads.count("AutoConfig") == 2


def test_a_configuration_that_is_changed_changes_no_other(write_gguf: WriteGguf) -> None:
    source = resolve_model_source(str(write_gguf(context_length=64)))
    load_model_config(source).max_position_embeddings = 1
    assert load_model_config(source).max_position_embeddings == 64


def test_a_tokenizer_is_read_once_for_each_state_of_its_file(
    write_gguf: WriteGguf, reads: list[str]
) -> None:
    path = str(write_gguf(words=["one", "two"]))
    first, second = load_tokenizer(path), load_tokenizer(path)
    assert reads.count("AutoTokenizer") == 1
    assert first.get_vocab() == second.get_vocab()
    assert "two" in first.get_vocab()
    write_gguf(words=["one", "six"])
    third = load_tokenizer(path)
    assert reads.count("AutoTokenizer") == 2
    assert "six" in third.get_vocab()
    assert "two" not in third.get_vocab()


def test_a_tokenizer_that_is_changed_changes_no_other(write_gguf: WriteGguf) -> None:
    path = str(write_gguf(words=["one", "two"]))
    changed = load_tokenizer(path)
    changed.add_tokens(["three"])
    assert "three" in changed.get_vocab()
    assert "three" not in load_tokenizer(path).get_vocab()
