"""A tokenizer is there and can end a document, or the user is told what to give."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from pgprune_lightning.errors import UserError
from pgprune_lightning.masking.tokenizer import check_tokens, load_tokenizer, tokens_beyond


def save_tokenizer(folder: Path, **special_tokens: str) -> None:
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "word": 2}, unk_token="<unk>"))
    PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", **special_tokens
    ).save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')


def test_loads_from_a_folder(tmp_path: Path) -> None:
    save_tokenizer(tmp_path, eos_token="</s>")
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.eos_token_id == 1
    assert tokenizer("word").input_ids == [2]


def test_end_token_is_needed(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    with pytest.raises(UserError, match="has no end token"):
        load_tokenizer(str(tmp_path))


def test_folder_without_a_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UserError, match=r"needs tokenizer\.json"):
        load_tokenizer(str(tmp_path))


def test_tokens_without_a_row_are_refused_where_a_text_has_them(tmp_path: Path) -> None:
    """A model of three rows that was never extended by the two tokens which were added."""
    save_tokenizer(tmp_path, eos_token="</s>", pad_token="<pad>", additional_special_tokens=["<x>"])
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokens_beyond(tokenizer, 3) == ["<pad>", "<x>"]
    check_tokens(tokenizer("word word").input_ids, tokenizer, 3, "text")
    check_tokens([], tokenizer, 3, "text")
    expected = r"text: it holds the token '<x>' with id 4, .* up to 2 .* them: <pad>, <x>\. Give"
    with pytest.raises(UserError, match=expected):
        check_tokens([[0, 1], tokenizer("word <x>").input_ids], tokenizer, 3, "text")
    check_tokens(tokenizer("word <x>").input_ids, tokenizer, 5, "text")


def test_gguf_without_a_tokenizer(tiny_gguf: Path) -> None:
    with pytest.raises(UserError, match=r"tiny\.gguf.*tokenizer\.ggml.*data\.tokenizer"):
        load_tokenizer(str(tiny_gguf))
