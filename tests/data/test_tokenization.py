import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from pgprune_lightning.data import token_blocks
from pgprune_lightning.data.text_source import TextSource
from pgprune_lightning.data.token_blocks import document_order, restyled_documents, tokenise_blocks
from pgprune_lightning.errors import UserError
from pgprune_lightning.progress import work_bar

BOS, END = 1001, 1002


def _documents(path: Path, lengths: list[int]) -> list[list[int]]:
    """Write documents of so many words each; every word of all of them is another token."""
    words = iter(range(1000))
    ids = [[next(words) for _ in range(length)] for length in lengths]
    texts = [" ".join(f"w{token}" for token in document) for document in ids]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return ids


@pytest.fixture
def corpus(tmp_path: Path) -> tuple[TextSource, list[list[int]]]:
    lengths = [1 + index * 7 % 5 for index in range(60)]
    lengths[3] = lengths[40] = 0
    path = tmp_path / "corpus.jsonl"
    return TextSource(str(path)), _documents(path, lengths)


def _with(source: TextSource, **settings: Any) -> TextSource:
    return TextSource(source.path, **settings)


@pytest.mark.parametrize("bos_per_block", [False, True])
@pytest.mark.parametrize("seed", [None, 0, 7])
@pytest.mark.parametrize("part", [(0.0, 1.0), (0.2, 0.9)])
@pytest.mark.parametrize("block_length", [2, 8])
def test_blocks_are_those_of_the_definition(
    corpus: tuple[TextSource, list[list[int]]],
    tokenizer: PreTrainedTokenizerFast,
    block_length: int,
    part: tuple[float, float],
    seed: int | None,
    bos_per_block: bool,
) -> None:
    source, ids = corpus
    source = _with(source, part=part)
    stream = []
    for index in document_order(len(ids), source, seed):
        if ids[index]:
            stream += [*ids[index], END]
    head = [BOS] if bos_per_block else []
    length = block_length - len(head)
    expected = [
        head + stream[start : start + length]
        for start in range(0, len(stream) - length + 1, length)
    ]
    blocks = tokenise_blocks(
        source, tokenizer, block_length, seed=seed, bos_per_block=bos_per_block
    )
    assert blocks.dtype == np.int32
    assert blocks.tolist() == expected


def test_the_end_token_stands_between_documents(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    _documents(tmp_path / "a.jsonl", [2, 3])
    blocks = tokenise_blocks(TextSource(str(tmp_path / "a.jsonl")), tokenizer, 7)
    assert blocks.tolist() == [[0, 1, END, 2, 3, 4, END]]


def test_nulls_are_empty_documents(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": null}\n{"text": "w1 w2 w3"}\n')
    source = str(tmp_path / "a.jsonl")
    assert tokenise_blocks(TextSource(source), tokenizer, 4).tolist() == [[1, 2, 3, END]]
    whole = tokenise_blocks(TextSource(source, join="blank_line"), tokenizer, 4)
    assert whole.tolist() == [[BOS, 1, 2, 3]]


def test_one_text_with_blank_lines_is_tokenised_whole(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    # With Llama's BOS before the text, none at later blocks, and no end token.
    (tmp_path / "a.raw").write_text(" \nw0 w1 \nw2 w3\n \nw4 w5 w6 w7\n")
    source = TextSource(str(tmp_path / "a.raw"), join="blank_line")
    assert tokenise_blocks(source, tokenizer, 3).tolist() == [[BOS, 0, 1], [2, 3, 4], [5, 6, 7]]
    with_bos = tokenise_blocks(source, tokenizer, 3, bos_per_block=True).tolist()
    assert with_bos == [[BOS, 0, 1], [BOS, 2, 3], [BOS, 4, 5], [BOS, 6, 7]]


def test_at_most_so_many_blocks_and_no_more_is_tokenised(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("|".join(f"w{index % 1000}" for index in range(5000)))
    tokenised = []
    call = type(tokenizer).__call__

    def counting_call(self: Any, text: Any, **settings: Any) -> Any:
        tokenised.extend(text)
        return call(self, text, **settings)

    monkeypatch.setattr(type(tokenizer), "__call__", counting_call)
    source = TextSource(str(path), document_separator="|")
    first = tokenise_blocks(_with(source, document_separator="|", num_blocks=10), tokenizer, 4)
    assert len(tokenised) == 256
    whole = tokenise_blocks(source, tokenizer, 4)
    assert len(whole) == 2500
    assert first.tolist() == whole[:10].tolist()


@pytest.mark.parametrize(
    ("num_blocks", "total", "unit"), [(None, 60, " documents"), (3, 3 * 4, " tokens")]
)
def test_the_progress_bar_has_a_total(
    corpus: tuple[TextSource, list[list[int]]],
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
    num_blocks: int | None,
    total: int,
    unit: str,
) -> None:
    bars = []

    def kept_bar(**options: Any) -> Any:
        bars.append(work_bar(**options))
        return bars[-1]

    monkeypatch.setattr(token_blocks, "work_bar", kept_bar)
    tokenise_blocks(_with(corpus[0], num_blocks=num_blocks), tokenizer, 4)
    (bar,) = bars
    assert (bar.n, bar.total, bar.unit) == (total, total, unit)


def test_fewer_blocks_of_one_text_are_evenly_spaced(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    (tmp_path / "a.raw").write_text(" ".join(f"w{index}" for index in range(199)))
    source = TextSource(str(tmp_path / "a.raw"), join="blank_line")
    whole = tokenise_blocks(source, tokenizer, 20)
    assert len(whole) == 10
    four = tokenise_blocks(_with(source, join="blank_line", num_blocks=4), tokenizer, 20)
    assert four.tolist() == whole[[0, 2, 5, 7]].tolist()
    more = tokenise_blocks(_with(source, join="blank_line", num_blocks=40), tokenizer, 20)
    assert more.tolist() == whole.tolist()


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("seed", [None, 7])
def test_a_share_of_the_documents_has_wikitext_style(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, share: float, seed: int | None
) -> None:
    path = tmp_path / "corpus.jsonl"
    words = [f"w{index},w{index}" for index in range(400)]  # unknown as one word
    path.write_text("".join(json.dumps({"text": word}) + "\n" for word in [*words, None]))
    source = _with(TextSource(str(path)), wikitext_style=share)
    tokens = tokenise_blocks(source, tokenizer, 2, seed=seed).ravel().tolist()
    spaced = {token for token in tokens if token < 400}
    assert len(spaced) / 400 == pytest.approx(share, abs=0.07)
    expected: list[int] = []
    for index in document_order(401, source, seed):
        if index < 400:
            expected += [index, 1000, index, END] if index in spaced else [1000, END]
    assert tokens == expected[: len(tokens)]
    assert len(expected) - len(tokens) < 2


def test_a_larger_share_spaces_the_same_documents_and_more() -> None:
    of_a_third = restyled_documents(300, TextSource("a/b", wikitext_style=0.3))
    of_half = restyled_documents(300, TextSource("a/b", wikitext_style=0.5))
    assert of_half[of_a_third].all()
    assert of_half.sum() > of_a_third.sum()


def test_one_text_with_blank_lines_has_wikitext_style_too(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    path = tmp_path / "rows.raw"
    path.write_text("w1,w2\n\nw3\n")
    source = _with(TextSource(str(path)), join="blank_line", wikitext_style=1.0)
    assert tokenise_blocks(source, tokenizer, 2).ravel().tolist() == [BOS, 1, 1000, 2]


def test_a_text_longer_than_the_model_s_context_is_no_cause_for_a_warning(
    tmp_path: Path,
    make_tokenizer: Callable[..., PreTrainedTokenizerFast],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "a.txt").write_text("w1 " * 200)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    # A command that ran before has quietened the library for the whole process.
    caplog.set_level(logging.WARNING, logger="transformers")
    for join in ("end_token", "blank_line"):
        tokenise_blocks(TextSource(str(tmp_path / "a.txt"), join=join), make_tokenizer(), 8)
    assert not caplog.records
    make_tokenizer()("w1 " * 200)
    assert "longer than the specified maximum" in caplog.text  # what was kept quiet


@pytest.mark.parametrize("join", ["end_token", "blank_line"])
def test_a_text_too_short_for_one_block(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, join: Any
) -> None:
    (tmp_path / "a.txt").write_text("w1 w2 w3")
    source = TextSource(str(tmp_path / "a.txt"), label="tiny", join=join)
    assert len(tokenise_blocks(source, tokenizer, 4)) == 1
    found = r"tiny \(/.*/a\.txt\): too short for one block: 4 tokens found in 1 document, 5 needed"
    with pytest.raises(UserError, match=found):
        tokenise_blocks(source, tokenizer, 5)


def test_a_part_without_documents(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    (tmp_path / "a.txt").write_text("w1 w2 w3")
    path = str(tmp_path / "a.txt")
    assert len(tokenise_blocks(TextSource(path, part=(0, 0.8)), tokenizer, 4)) == 1
    message = r"a\.txt: no text is left: part \[0\.8, 0\.9\] takes none of its 1 document; set part"
    with pytest.raises(UserError, match=message):
        tokenise_blocks(TextSource(path, part=(0.8, 0.9)), tokenizer, 4)


def test_a_text_of_empty_documents(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n' * 3)
    with pytest.raises(UserError, match="too short for one block: 0 tokens found"):
        tokenise_blocks(TextSource(str(tmp_path / "a.jsonl")), tokenizer, 4)


def test_a_tokenizer_without_the_special_token(
    tmp_path: Path, make_tokenizer: Callable[..., PreTrainedTokenizerFast]
) -> None:
    (tmp_path / "a.txt").write_text("w1 w2 w3")
    tokenizer = make_tokenizer(special_tokens=False, bos_at_head=False)
    source = TextSource(str(tmp_path / "a.txt"))
    with pytest.raises(UserError, match="no eos token; use join 'blank_line'"):
        tokenise_blocks(source, tokenizer, 2)
    with pytest.raises(UserError, match="no bos token; set bos_per_block to false"):
        tokenise_blocks(source, tokenizer, 2, bos_per_block=True)


def test_real_text_with_a_real_tokenizer(pgprune_data: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(pgprune_data / "stories260K")
    source = TextSource(str(pgprune_data / "wikitext2" / "wiki.test.raw"), join="blank_line")
    blocks = tokenise_blocks(source, tokenizer, 128)
    text = "\n\n".join(
        line + "\n" if line.strip() else ""
        for line in Path(source.path).read_text().split("\n")[:-1]
    )
    ids = tokenizer(text, verbose=False)["input_ids"]
    assert blocks.ravel().tolist() == ids[: len(ids) // 128 * 128]
