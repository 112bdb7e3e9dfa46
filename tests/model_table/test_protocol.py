"""What could not be measured is refused before a model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pgprune_lightning.data.text_source import TextSource
from pgprune_lightning.errors import UserError
from pgprune_lightning.model_table.protocol import (
    BosPerBlock,
    Protocol,
    SpeedProtocol,
    TextProtocol,
    ZeroShotProtocol,
)


@pytest.mark.parametrize(
    ("bos_per_block", "model_type", "expected"),
    [
        ("auto", "llama", False),
        ("auto", "gemma", True),
        ("auto", "gemma2", True),
        ("auto", "pruned_gemma", True),
        ("always", "llama", True),
        ("never", "gemma", False),
    ],
)
def test_bos_by_family(bos_per_block: BosPerBlock, model_type: str, expected: bool) -> None:
    assert TextProtocol(bos_per_block=bos_per_block).has_bos(model_type) is expected


@pytest.mark.parametrize(
    ("part", "options", "message"),
    [
        ("text", {"lengths": ()}, "--lengths: must be different numbers"),
        ("text", {"lengths": (128, 1)}, "at least 2, given 128 1"),
        ("text", {"lengths": (16, 16)}, "different"),
        ("text", {"lengths": (16,), "stride": 15}, "--stride: must be from 1 to 14"),
        ("text", {"stride": 0}, "--stride"),
        ("text", {"lengths": (16, 32), "tokens": 31}, "--tokens: .* greatest length, 32"),
        ("text", {"tokens_per_batch": 0}, "--batch-tokens"),
        ("text", {"texts": (TextSource("none.txt"),)}, "no such file"),
        ("zero_shot", {"tasks": ("piqa", "piqa")}, "given twice"),
        ("zero_shot", {"tasks": ("piqa",), "limit": 1}, "--limit"),
        ("zero_shot", {"limit": 4}, "they are for --zero-shot"),
        ("zero_shot", {"tasks": ("piqa",), "folder": Path("none")}, "there is no file none"),
        ("speed", {"new_tokens": 0}, "--new-tokens: must be at least 1, given 0"),
        ("speed", {"batch_size": -1}, "--batch-size"),
    ],
)
def test_what_is_out_of_range_is_named(part: str, options: dict[str, Any], message: str) -> None:
    makers: dict[str, Any] = {
        "text": TextProtocol,
        "zero_shot": ZeroShotProtocol,
        "speed": SpeedProtocol,
    }
    with pytest.raises(UserError, match=message):
        Protocol(**{part: makers[part](**options)}).check()


def test_two_texts_of_one_name(tiny_texts: Path) -> None:
    texts = (TextSource(str(tiny_texts / "test.txt")),) * 2
    with pytest.raises(UserError, match=r"two texts are called 'test'.* NAME=TEXT"):
        TextProtocol(texts=texts).check()
