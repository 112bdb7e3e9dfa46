"""What is read of a text: blocks as a comparison reads them, and one row for windows."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgprune_lightning.data.text_source import TextSource
from pgprune_lightning.evaluation import text_blocks, text_stream
from pgprune_lightning.masking.tokenizer import load_tokenizer


@pytest.fixture
def sources(tiny_texts: Path, tmp_path: Path) -> dict[str, TextSource]:
    """A text that is tokenised whole, and one of documents."""
    raw = tmp_path / "rows.raw"
    raw.write_text((tiny_texts / "test.txt").read_text())
    return {
        "blank_line": TextSource(str(raw), join="blank_line"),
        "end_token": TextSource(str(tiny_texts / "test.txt")),
    }


@pytest.mark.parametrize("join", ["blank_line", "end_token"])
@pytest.mark.parametrize("tokens", [None, 50])
def test_a_stream_is_the_beginning_of_the_text(
    sources: dict[str, TextSource],
    tiny_model_folder: Path,
    tmp_path: Path,
    join: str,
    tokens: int | None,
) -> None:
    tokenizer = load_tokenizer(str(tiny_model_folder))
    stream = text_stream(
        sources[join], tokenizer, tokens=tokens, bos_per_block=False, cache_dir=tmp_path
    )
    text = (tmp_path / "rows.raw").read_text()
    ids = tokenizer(text)["input_ids"] + ([tokenizer.eos_token_id] if join == "end_token" else [])
    assert stream.tolist() == ids[:tokens]


def test_a_stream_for_windows_with_a_bos_has_none(
    sources: dict[str, TextSource], tiny_model_folder: Path, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(str(tiny_model_folder))
    tokenizer.bos_token = "w0"
    streams = [
        text_stream(
            sources["blank_line"], tokenizer, tokens=30, bos_per_block=bos, cache_dir=tmp_path
        ).tolist()
        for bos in (True, False)
    ]
    assert streams[0] == streams[1]


def test_limited_blocks_spread_over_a_text_that_is_tokenised_whole(
    sources: dict[str, TextSource], tiny_model_folder: Path, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(str(tiny_model_folder))
    blocks = {
        tokens: text_blocks(
            sources["blank_line"],
            tokenizer,
            16,
            tokens=tokens,
            bos_per_block=False,
            cache_dir=tmp_path,
        ).array.tolist()
        for tokens in (None, 40, 3)
    }
    everything = blocks[None]
    assert len(everything) == 8
    assert blocks[40] == [everything[0], everything[4]]
    assert blocks[3] == [everything[0]]  # one block at least
