"""The tokenizer of a GGUF file: copied from another, or written from a transformers tokenizer.

llama.cpp has its own implementations of the tokenizers it knows. `gpt2` splits a text by a rule
that is compiled in and merges bytes by rank; `llama` merges by the score of what comes out.
Tokenizers that neither reproduces are refused.
"""

from __future__ import annotations

import json
import textwrap
import warnings
from pathlib import Path
from typing import Any

from gguf import GGUFReader, GGUFWriter, TokenType
from transformers import PreTrainedTokenizerBase

from pgprune_lightning.errors import UserError
from pgprune_lightning.masking.tokenizer import tokens_beyond

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_BYTES_SPLIT = ("ByteLevel", True)
_BYTES_ALONE = ("ByteLevel", False)
_SPLITS: dict[tuple[Any, ...], str] = {
    (_BYTES_SPLIT,): "gpt-2",
    (("Digits", True), _BYTES_SPLIT): "smollm",
    (("Split", _WORDS + r"\p{N}{1,3}" + _REST), _BYTES_ALONE): "llama-bpe",
    (("Split", _WORDS + r"\p{N}" + _REST), _BYTES_ALONE): "qwen2",
}
"""llama.cpp's name of a splitting rule, by the steps of the tokenizer."""

_SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}


_OF_EACH_TOKEN = tuple(f"tokenizer.ggml.{name}" for name in ("tokens", "scores", "token_type"))


def copy_vocabulary(file: Path, vocab_size: int, writer: GGUFWriter) -> None:
    """Copy the tokenizer of another GGUF file, without tokens that the model has no row for.

    Args:
        file: What the base model was read from.
        vocab_size: Rows of the model's embedding.
        writer: Where to.
    """
    for name, field in GGUFReader(file).fields.items():
        if not name.startswith("tokenizer."):
            continue
        item_type = field.types[-1] if len(field.types) > 1 else None
        value = field.contents()
        if name in _OF_EACH_TOKEN:
            if name == _OF_EACH_TOKEN[0]:
                _warn_of_missing_rows(value[vocab_size:], vocab_size)
            value = value[:vocab_size]
        if not (name.endswith("_token_id") and value >= vocab_size):
            writer.add_key_value(name, value, field.types[0], item_type)


def write_vocabulary(
    tokenizer: PreTrainedTokenizerBase, vocab_size: int, writer: GGUFWriter
) -> None:
    """Write a tokenizer as llama.cpp reads it.

    Args:
        tokenizer: One that transformers runs by its `tokenizers` library.
        vocab_size: Rows of the model's embedding; ids that the tokenizer lacks become unused ones,
            and tokens that have no row are left out, with a warning: llama.cpp wants one for each.
        writer: Where to.

    Raises:
        UserError: llama.cpp would split texts differently.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _unsupported("it has no tokenizer.json")
    description = json.loads(backend.to_str())
    if description["model"]["type"] != "BPE":
        raise _unsupported(f"its model is {description['model']['type']}, not BPE")
    _warn_of_missing_rows(tokens_beyond(tokenizer, vocab_size), vocab_size)
    model = _leave_out_missing_rows(description, vocab_size)
    steps = _steps(description["pre_tokenizer"])
    if any(step["type"] == "ByteLevel" for step in steps):
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_split_rule(steps))
        writer.add_token_merges([" ".join(pair) for pair in _merges(model)])
    else:
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_add_space_prefix(_has_space_prefix(description, steps))
        writer.add_token_scores(_scores(model, vocab_size))
    tokens, types = _tokens(description, vocab_size)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    _add_special_tokens(tokenizer, vocab_size, writer)


def _warn_of_missing_rows(tokens: list[str], vocab_size: int) -> None:
    if tokens:
        warnings.warn(
            f"export: the model has rows for {vocab_size} tokens, and its tokenizer "
            f"{len(tokens)} more, which are left out of the GGUF file: "
            f"{textwrap.shorten(', '.join(tokens), 200)}.",
            stacklevel=2,
        )


def _leave_out_missing_rows(description: dict[str, Any], vocab_size: int) -> dict[str, Any]:
    """Drop what has no row from a tokenizer's description, and return its model."""
    model = description["model"]
    model["vocab"] = {token: i for token, i in model["vocab"].items() if i < vocab_size}
    # Not only the token: a text is split into what is merged before it.
    model["merges"] = [pair for pair in _merges(model) if "".join(pair) in model["vocab"]]
    added = description["added_tokens"]
    description["added_tokens"] = [token for token in added if token["id"] < vocab_size]
    return dict(model)


def _split_rule(steps: list[dict[str, Any]]) -> str:
    """llama.cpp's name of how a text is split before bytes are merged."""
    known = {"ByteLevel": "use_regex", "Digits": "individual_digits", "Split": "pattern"}
    rule = []
    for step in steps:
        value = step.get(known.get(step["type"], ""))
        rule.append((step["type"], value.get("Regex") if isinstance(value, dict) else value))
    has_prefix = any(step.get("add_prefix_space") for step in steps)
    name = None if has_prefix else _SPLITS.get(tuple(rule))
    if name is None:
        raise _unsupported("it splits texts by another rule")
    return name


def _steps(pre_tokenizer: dict[str, Any] | None) -> list[dict[str, Any]]:
    if pre_tokenizer is None:
        return []
    if pre_tokenizer["type"] == "Sequence":
        return list(pre_tokenizer["pretokenizers"])
    return [pre_tokenizer]


def _has_space_prefix(description: dict[str, Any], steps: list[dict[str, Any]]) -> bool:
    """Whether a text gets a space in front, for tokenizers that write spaces as sentencepiece."""
    normalizer = description["normalizer"] or {"type": "Sequence", "normalizers": []}
    parts = normalizer.get("normalizers", [normalizer])
    names = [part["type"] for part in parts + steps]
    if names == ["Metaspace"]:
        return bool(steps[0]["prepend_scheme"] != "never")
    if (
        names not in (["Prepend", "Replace"], ["Replace"])
        or not description["model"]["byte_fallback"]
    ):
        raise _unsupported("it writes neither bytes nor spaces as those do")
    return names[0] == "Prepend"


def _scores(model: dict[str, Any], vocab_size: int) -> list[float]:
    """The score of each token: the earlier its merge, the higher.

    Scores rank what comes out of a merge, and ranks the merge itself. They agree where the merges
    of one token follow one another, and every two tokens that make up a third are merged: so it is
    in what was converted from sentencepiece.
    """
    vocabulary, merges = model["vocab"], _merges(model)
    outcomes = ["".join(pair) for pair in merges]
    ranks: dict[str, int] = {}
    for rank, outcome in enumerate(outcomes):
        if outcome in ranks and outcomes[rank - 1] != outcome:
            raise _unsupported(f"the merges that make {outcome!r} are apart")
        ranks.setdefault(outcome, rank)
    known = set(merges)
    for token in ranks:
        halves = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        for pair in halves:
            if pair not in known and all(half in vocabulary for half in pair):
                raise _unsupported(f"it does not merge {pair[0]!r} with {pair[1]!r}")
    scores = [-1e6] * vocab_size
    for token, index in vocabulary.items():
        scores[index] = -float(ranks[token]) if token in ranks else -1e6
    return scores


def _merges(model: dict[str, Any]) -> list[tuple[str, str]]:
    pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"])
    return [(left, right) for left, right in pairs]


def _tokens(description: dict[str, Any], vocab_size: int) -> tuple[list[str], list[int]]:
    model = description["model"]
    tokens = [f"[PAD{index}]" for index in range(vocab_size)]
    types = [int(TokenType.UNUSED)] * vocab_size
    for token, index in model["vocab"].items():
        is_byte = model["byte_fallback"] and len(token) == 6 and token.startswith("<0x")
        tokens[index] = token
        types[index] = int(TokenType.BYTE if is_byte else TokenType.NORMAL)
    for added in description["added_tokens"]:
        tokens[added["id"]] = added["content"]
        is_unknown = added["content"] == model["unk_token"]
        special = TokenType.UNKNOWN if is_unknown else TokenType.CONTROL
        types[added["id"]] = int(special if added["special"] else TokenType.USER_DEFINED)
    return tokens, types


def _add_special_tokens(
    tokenizer: PreTrainedTokenizerBase, vocab_size: int, writer: GGUFWriter
) -> None:
    ids = {name: getattr(tokenizer, f"{name}_token_id") for name in _SPECIAL}
    ids = {name: index for name, index in ids.items() if index is not None and index < vocab_size}
    for name, index in ids.items():
        writer.add_uint32(f"tokenizer.ggml.{_SPECIAL[name]}_token_id", index)
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a", add_special_tokens=True)["input_ids"]
    writer.add_add_bos_token(whole[0] == ids.get("bos") != plain[0])
    writer.add_add_eos_token(whole[-1] == ids.get("eos") != plain[-1])
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _unsupported(reason: str) -> UserError:
    return UserError(
        f"export: llama.cpp cannot run this model's tokenizer: {reason}. Byte-level BPE that "
        f"splits as {', '.join(_SPLITS.values())} can be written, and BPE converted from "
        "sentencepiece; for others export --format hf, or start from a .gguf file, whose tokenizer "
        "is copied."
    )
