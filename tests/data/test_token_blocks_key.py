"""Cached blocks are found again by everything that decides their tokens, and by nothing else."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from pgprune_lightning.data import token_blocks
from pgprune_lightning.data.text_source import TextSource
from pgprune_lightning.data.token_blocks import build_token_blocks, open_token_blocks

CHANGES: dict[str, dict[str, Any]] = {
    "field": {"field": "content"},
    "join": {"join": "blank_line"},
    "document_separator": {"document_separator": " "},
    "part": {"part": (0.0, 0.5)},
    "num_blocks": {"num_blocks": 3},
    "wikitext_style": {"wikitext_style": 0.5},
}


@pytest.mark.parametrize("changed", CHANGES)
def test_the_key_changes_with_the_source(
    source: TextSource, tokenizer: PreTrainedTokenizerFast, cache_dir: Path, changed: str
) -> None:
    build_token_blocks(source, tokenizer, 8, cache_dir=cache_dir)
    settings = {"document_separator": "|", **CHANGES[changed]}
    other = TextSource(source.path, **settings)
    assert open_token_blocks(other, tokenizer, 8, cache_dir=cache_dir) is None


def test_the_key_does_not_change_with_the_label(
    source: TextSource, tokenizer: PreTrainedTokenizerFast, cache_dir: Path
) -> None:
    build_token_blocks(source, tokenizer, 8, cache_dir=cache_dir)
    other = TextSource(source.path, document_separator="|", label="mine")
    opened = open_token_blocks(other, tokenizer, 8, cache_dir=cache_dir)
    assert opened is not None
    assert opened.label == "mine"


def test_the_key_changes_with_layout_and_seed(
    source: TextSource, tokenizer: PreTrainedTokenizerFast, cache_dir: Path
) -> None:
    build_token_blocks(source, tokenizer, 8, cache_dir=cache_dir)
    assert open_token_blocks(source, tokenizer, 9, cache_dir=cache_dir) is None
    assert open_token_blocks(source, tokenizer, 8, seed=0, cache_dir=cache_dir) is None
    with_bos = open_token_blocks(source, tokenizer, 8, bos_per_block=True, cache_dir=cache_dir)
    assert with_bos is None


def test_the_key_changes_with_the_tokenizer(
    source: TextSource,
    make_tokenizer: Callable[..., PreTrainedTokenizerFast],
    cache_dir: Path,
) -> None:
    build_token_blocks(source, make_tokenizer(), 8, cache_dir=cache_dir)
    assert open_token_blocks(source, make_tokenizer(), 8, cache_dir=cache_dir) is not None
    for other in (make_tokenizer(bos_at_head=False), make_tokenizer(special_tokens=False)):
        assert open_token_blocks(source, other, 8, cache_dir=cache_dir) is None
    other = make_tokenizer()
    other.eos_token = "w5"
    assert open_token_blocks(source, other, 8, cache_dir=cache_dir) is None
    other = make_tokenizer()
    other.add_tokens(["w1|"])
    assert open_token_blocks(source, other, 8, cache_dir=cache_dir) is None


@pytest.mark.parametrize("change", ["content", "time", "path"])
def test_the_key_changes_with_the_file(
    source: TextSource, tokenizer: PreTrainedTokenizerFast, cache_dir: Path, change: str
) -> None:
    build_token_blocks(source, tokenizer, 8, cache_dir=cache_dir)
    path = Path(source.path)
    before = path.stat()
    if change == "content":
        path.write_text(path.read_text() + " w7")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    elif change == "time":
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    else:
        path = path.rename(path.with_name("other.txt"))
    other = TextSource(str(path), document_separator="|")
    assert open_token_blocks(other, tokenizer, 8, cache_dir=cache_dir) is None


@pytest.mark.parametrize(
    "changed",
    [
        {"path": "allenai/other"},
        {"name": "de"},
        {"split": "validation"},
        {"data_files": "en/other.json.gz"},
        {"revision": "abc"},
    ],
)
def test_the_key_of_a_hub_dataset(
    changed: dict[str, str],
    tokenizer: PreTrainedTokenizerFast,
    cache_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        token_blocks, "tokenise_blocks", lambda *_, **__: np.zeros((2, 8), dtype=np.int32)
    )
    names = {"path": "allenai/c4", "name": "en", "data_files": "en/c4.json.gz"}
    build_token_blocks(TextSource(**names), tokenizer, 8, cache_dir=cache_dir)
    # Found again without asking the hub, which the tests cannot reach.
    assert open_token_blocks(TextSource(**names), tokenizer, 8, cache_dir=cache_dir) is not None
    other = TextSource(**{**names, **changed})
    assert open_token_blocks(other, tokenizer, 8, cache_dir=cache_dir) is None
