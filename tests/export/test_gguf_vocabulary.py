"""A tokenizer in a GGUF file splits texts as the one that it came from, or is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader, GGUFWriter
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from pgprune_lightning.errors import UserError
from pgprune_lightning.evaluation.llama_cpp import LlamaCppModel
from pgprune_lightning.export.gguf_vocabulary import copy_vocabulary, write_vocabulary

WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
RULES: dict[str, tuple[list[Any], bool]] = {
    "gpt-2": ([], True),
    "smollm": ([pre_tokenizers.Digits(individual_digits=True)], True),
    "llama-bpe": (
        [pre_tokenizers.Split(Regex(WORDS + r"\p{N}{1,3}" + REST), "isolated")],
        False,
    ),
    "qwen2": ([pre_tokenizers.Split(Regex(WORDS + r"\p{N}" + REST), "isolated")], False),
}


def written(tokenizer: PreTrainedTokenizerBase, size: int, file: Path) -> dict[str, Any]:
    """Write a file with the tokenizer alone, and read it back."""
    writer = GGUFWriter(file, "llama")
    write_vocabulary(tokenizer, size, writer)
    return finished(writer, file)


def finished(writer: GGUFWriter, file: Path) -> dict[str, Any]:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    return {
        name.removeprefix("tokenizer."): field.contents()
        for name, field in GGUFReader(file).fields.items()
        if name.startswith("tokenizer.")
    }


@pytest.mark.parametrize("rule", RULES)
def test_byte_level_tokenizers_are_known_by_their_rule(
    byte_level_tokenizer: Callable[..., PreTrainedTokenizerBase], rule: str, tmp_path: Path
) -> None:
    steps, use_regex = RULES[rule]
    tokenizer = byte_level_tokenizer(320, *steps, use_regex=use_regex)
    found = written(tokenizer, 322, tmp_path / "tokenizer.gguf")
    assert (found["ggml.model"], found["ggml.pre"]) == ("gpt2", rule)
    assert found["ggml.tokens"][:2] == ["<s>", "</s>"]
    assert found["ggml.tokens"][-2:] == ["[PAD320]", "[PAD321]"]
    assert found["ggml.token_type"][:3] == [3, 3, 1]
    assert found["ggml.token_type"][-2:] == [5, 5]
    assert (found["ggml.bos_token_id"], found["ggml.eos_token_id"]) == (0, 1)
    assert found["ggml.add_bos_token"] is False
    first, second = found["ggml.merges"][0].split(" ")
    assert first + second in found["ggml.tokens"]


@pytest.mark.usefixtures("_llama_cpp")
@pytest.mark.parametrize("rule", RULES)
def test_llama_cpp_splits_as_they_do(
    byte_level_tokenizer: Callable[..., PreTrainedTokenizerBase],
    awkward_text: str,
    rule: str,
    tmp_path: Path,
) -> None:
    steps, use_regex = RULES[rule]
    tokenizer = byte_level_tokenizer(320, *steps, use_regex=use_regex)
    written(tokenizer, 320, tmp_path / "tokenizer.gguf")
    model = LlamaCppModel(tmp_path / "tokenizer.gguf", context_length=8, vocabulary_only=True)
    expected = tokenizer(awkward_text, add_special_tokens=False)["input_ids"]
    assert model.tokenize(awkward_text) == expected
    assert len(expected) < len(awkward_text.encode())


def test_merges_of_sentencepiece_become_scores(pgprune_data: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(pgprune_data / "stories260K")
    found = written(tokenizer, 512, tmp_path / "tokenizer.gguf")
    assert found["ggml.model"] == "llama"
    assert found["ggml.add_space_prefix"] is True
    assert found["ggml.add_bos_token"] is True
    assert found["ggml.token_type"][:4] == [2, 3, 3, 6]
    scores = dict(zip(found["ggml.tokens"], found["ggml.scores"], strict=True))
    assert scores["▁t"] == 0
    assert scores["▁t"] > scores["he"] > scores["▁the"] > scores["e"]


@pytest.mark.usefixtures("_llama_cpp")
def test_llama_cpp_splits_as_sentencepiece_does(
    pgprune_data: Path, awkward_text: str, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(pgprune_data / "stories260K")
    written(tokenizer, 512, tmp_path / "tokenizer.gguf")
    model = LlamaCppModel(tmp_path / "tokenizer.gguf", context_length=8, vocabulary_only=True)
    stories = (pgprune_data / "tinystories" / "stories.txt").read_text().split("<|endoftext|>")
    for text in (*stories[:20], awkward_text):
        expected = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert model.tokenize(text) == expected


def test_the_tokenizer_of_a_gguf_file_is_copied(smollm2_gguf: Path, tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "copy.gguf", "deci")
    copy_vocabulary(smollm2_gguf, 49152, writer)
    found = finished(writer, tmp_path / "copy.gguf")
    fields = GGUFReader(smollm2_gguf).fields
    names = {name.removeprefix("tokenizer.") for name in fields if name.startswith("tokenizer.")}
    assert set(found) == names
    assert found["ggml.pre"] == "smollm"
    assert len(found["ggml.tokens"]) == 49152
    for name in names:
        assert found[name] == fields[f"tokenizer.{name}"].contents(), name


def test_tokens_without_a_row_are_left_out(
    byte_level_tokenizer: Callable[..., PreTrainedTokenizerBase], tmp_path: Path
) -> None:
    """Its last merge makes a token beyond the 319 rows, and so do the two that were added."""
    tokenizer = byte_level_tokenizer(320)
    last = tokenizer.convert_ids_to_tokens(319)
    tokenizer.add_special_tokens({"pad_token": "<pad>", "additional_special_tokens": ["<new>"]})
    with pytest.warns(
        UserWarning, match=f"has rows for 319 tokens, .* 3 more.*{last}, <pad>, <new"
    ):
        found = written(tokenizer, 319, tmp_path / "tokenizer.gguf")
    assert len(found["ggml.tokens"]) == len(found["ggml.token_type"]) == 319
    assert last not in [merge.replace(" ", "") for merge in found["ggml.merges"]]
    assert len(found["ggml.merges"]) == 319 - 2 - 256
    assert "ggml.padding_token_id" not in found
    assert found["ggml.eos_token_id"] == 1

    writer = GGUFWriter(tmp_path / "copy.gguf", "llama")
    with pytest.warns(UserWarning, match="has rows for 300 tokens, and its tokenizer 19 more"):
        copy_vocabulary(tmp_path / "tokenizer.gguf", 300, writer)
    copied = finished(writer, tmp_path / "copy.gguf")
    assert copied["ggml.tokens"] == found["ggml.tokens"][:300]
    assert len(copied["ggml.token_type"]) == 300


def test_scores_of_tokens_without_a_row_are_left_out(pgprune_data: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(pgprune_data / "stories260K")
    with pytest.warns(UserWarning, match="has rows for 500 tokens, and its tokenizer 12 more"):
        found = written(tokenizer, 500, tmp_path / "tokenizer.gguf")
    assert len(found["ggml.scores"]) == len(found["ggml.tokens"]) == 500


@pytest.mark.parametrize(
    ("model", "pre_tokenizer", "reason"),
    [
        (models.WordLevel({"<u>": 0, "a": 1}, unk_token="<u>"), None, "WordLevel, not BPE"),
        (
            models.BPE({"a": 0}, []),
            pre_tokenizers.Sequence(
                [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
            ),
            "another rule",
        ),
        (models.BPE({"a": 0}, []), pre_tokenizers.ByteLevel(), "another rule"),
        (models.BPE({"a": 0}, []), None, "neither bytes nor spaces"),
        (
            models.BPE({"a": 0, "b": 1, "ab": 2, "abb": 3, "bb": 4}, [("a", "b"), ("ab", "b")]),
            pre_tokenizers.Metaspace(),
            "does not merge 'a' with 'bb'",
        ),
    ],
)
def test_others_are_refused(model: models.Model, pre_tokenizer: Any, reason: str) -> None:
    backend = Tokenizer(model)
    if pre_tokenizer is not None:
        backend.pre_tokenizer = pre_tokenizer
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    with pytest.raises(UserError, match=reason):
        write_vocabulary(tokenizer, 97, GGUFWriter(None, "llama"))
