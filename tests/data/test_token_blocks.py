import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from pgprune_lightning.data import token_blocks
from pgprune_lightning.data.text_source import SourceUnavailable, TextSource
from pgprune_lightning.data.token_blocks import (
    TokenBlocks,
    build_token_blocks,
    default_cache_dir,
    open_token_blocks,
    tokenise_blocks,
)
from pgprune_lightning.errors import UserError


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[TextSource]:
    """The sources that were tokenised, one entry a time."""
    made: list[TextSource] = []

    def counting(source: TextSource, *args: Any, **settings: Any) -> Any:
        made.append(source)
        return tokenise_blocks(source, *args, **settings)

    monkeypatch.setattr(token_blocks, "tokenise_blocks", counting)
    return made


def _files(cache_dir: Path) -> list[str]:
    return sorted(file.name for file in cache_dir.iterdir())


def test_blocks_are_int64_rows_of_the_array(
    source: TextSource, tokenizer: PreTrainedTokenizerFast, cache_dir: Path
) -> None:
    blocks = build_token_blocks(source, tokenizer, 8, seed=1, cache_dir=cache_dir)
    expected = tokenise_blocks(source, tokenizer, 8, seed=1)
    assert isinstance(blocks.array, np.memmap)
    assert blocks.array.tolist() == expected.tolist()
    assert blocks.label == "corpus"
    assert (len(blocks), blocks.num_tokens) == (50, 400)
    assert blocks[3].dtype == torch.int64
    assert blocks[3].tolist() == expected[3].tolist()


def test_a_second_call_does_not_tokenise_again(
    source: TextSource,
    tokenizer: PreTrainedTokenizerFast,
    cache_dir: Path,
    calls: list[TextSource],
) -> None:
    first = build_token_blocks(source, tokenizer, 8, cache_dir=cache_dir)
    files = _files(cache_dir)
    # A call with truncation changes the state of the tokenizer, but none of the tokens.
    state = tokenizer.backend_tokenizer.to_str()
    tokenizer(["w1 w2 w3"], truncation=True, max_length=2)
    assert tokenizer.backend_tokenizer.to_str() != state
    second = build_token_blocks(source, tokenizer, 8, cache_dir=cache_dir)
    assert len(calls) == 1
    assert _files(cache_dir) == files
    assert second.array.tolist() == first.array.tolist()


def test_opening_makes_nothing(
    source: TextSource, tokenizer: PreTrainedTokenizerFast, cache_dir: Path
) -> None:
    assert open_token_blocks(source, tokenizer, 8, cache_dir=cache_dir) is None
    assert not cache_dir.exists()
    built = build_token_blocks(source, tokenizer, 8, cache_dir=cache_dir)
    opened = open_token_blocks(source, tokenizer, 8, cache_dir=cache_dir)
    assert opened is not None
    assert opened.array.tolist() == built.array.tolist()


def test_the_description_can_be_read(
    source: TextSource, tokenizer: PreTrainedTokenizerFast, cache_dir: Path
) -> None:
    build_token_blocks(source, tokenizer, 8, cache_dir=cache_dir)
    array, description = sorted(cache_dir.iterdir(), key=lambda file: file.suffix, reverse=True)
    assert array.stem == description.stem
    content = json.loads(description.read_text())
    assert content["path"] == source.path
    assert (content["shape"], content["tokens"]) == ([50, 8], 400)
    assert content["text"]["bytes"] == Path(source.path).stat().st_size


@pytest.mark.parametrize("suffix", [".npy", ".json"])
@pytest.mark.parametrize("kept_bytes", [0, 20, -1])
def test_a_damaged_entry_is_made_again(
    source: TextSource,
    tokenizer: PreTrainedTokenizerFast,
    cache_dir: Path,
    suffix: str,
    kept_bytes: int,
) -> None:
    expected = build_token_blocks(source, tokenizer, 8, cache_dir=cache_dir).array.tolist()
    damaged = next(cache_dir.glob(f"*{suffix}"))
    damaged.write_bytes(damaged.read_bytes()[:kept_bytes])
    with pytest.warns(UserWarning, match=r"corpus: the cached token blocks .* are damaged"):
        blocks = build_token_blocks(source, tokenizer, 8, cache_dir=cache_dir)
    assert blocks.array.tolist() == expected


@pytest.mark.parametrize("content", ["[1]", "{}", '{"shape": null}', "[" * 10_000 + "]" * 10_000])
def test_a_description_that_is_none_is_made_again(
    source: TextSource, tokenizer: PreTrainedTokenizerFast, cache_dir: Path, content: str
) -> None:
    expected = build_token_blocks(source, tokenizer, 8, cache_dir=cache_dir).array.tolist()
    next(cache_dir.glob("*.json")).write_text(content)
    with pytest.warns(UserWarning, match="damaged"):
        blocks = build_token_blocks(source, tokenizer, 8, cache_dir=cache_dir)
    assert blocks.array.tolist() == expected


def test_an_entry_of_another_shape_is_made_again(
    source: TextSource, tokenizer: PreTrainedTokenizerFast, cache_dir: Path
) -> None:
    build_token_blocks(source, tokenizer, 8, cache_dir=cache_dir)
    np.save(next(cache_dir.glob("*.npy")), np.zeros((50, 7), dtype=np.int32))
    with pytest.warns(UserWarning, match="damaged"):
        assert len(build_token_blocks(source, tokenizer, 8, cache_dir=cache_dir)[0]) == 8


def test_an_array_without_description_is_unfinished(
    source: TextSource,
    tokenizer: PreTrainedTokenizerFast,
    cache_dir: Path,
    calls: list[TextSource],
) -> None:
    build_token_blocks(source, tokenizer, 8, cache_dir=cache_dir)
    next(cache_dir.glob("*.json")).unlink()
    assert open_token_blocks(source, tokenizer, 8, cache_dir=cache_dir) is None
    build_token_blocks(source, tokenizer, 8, cache_dir=cache_dir)
    assert len(calls) == 2


def test_a_cache_that_cannot_be_written(
    source: TextSource, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"corpus cannot be kept: .*PGPRUNE_CACHE"):
        build_token_blocks(source, tokenizer, 8, cache_dir=tmp_path / "file" / "cache")


def test_a_missing_text(tokenizer: PreTrainedTokenizerFast, cache_dir: Path) -> None:
    for function in (build_token_blocks, open_token_blocks):
        with pytest.raises(SourceUnavailable, match="no such file"):
            function(TextSource("missing.txt"), tokenizer, 8, cache_dir=cache_dir)


def test_where_the_cache_lies_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPRUNE_CACHE", str(tmp_path / "chosen"))
    assert default_cache_dir() == tmp_path / "chosen"
    monkeypatch.delenv("PGPRUNE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "pgprune_lightning"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / ".cache" / "pgprune_lightning"


def test_blocks_travel_to_worker_processes(
    source: TextSource, tokenizer: PreTrainedTokenizerFast, cache_dir: Path
) -> None:
    blocks = build_token_blocks(source, tokenizer, 8, cache_dir=cache_dir)
    received: TokenBlocks = pickle.loads(pickle.dumps(blocks))
    assert received[4].tolist() == blocks[4].tolist()


RACER = """
import sys, time
from pathlib import Path
from transformers import PreTrainedTokenizerFast
from pgprune_lightning.data.text_source import TextSource
from pgprune_lightning.data.token_blocks import build_token_blocks
folder, own = Path(sys.argv[1]), sys.argv[2]
tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
(folder / f"ready-{own}").touch()
while len(list(folder.glob("ready-*"))) < 2:
    time.sleep(0.001)
for length in range(2, 42):
    source = TextSource(str(folder / "corpus.txt"), document_separator="|")
    blocks = build_token_blocks(source, tokenizer, length, cache_dir=folder / "cache")
    assert len(blocks) == 400 // length
    assert int(blocks.array.max()) == 1002
"""


def test_two_processes_at_once(
    source: TextSource,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    pytestconfig: pytest.Config,
) -> None:
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    environment = {**os.environ, "PYTHONPATH": str(pytestconfig.rootpath)}
    racers = [
        subprocess.Popen([sys.executable, "-c", RACER, str(tmp_path), own], env=environment)
        for own in "ab"
    ]
    assert [racer.wait(timeout=100) for racer in racers] == [0, 0]
    names = _files(tmp_path / "cache")
    assert len(names) == 80
    assert all(name.endswith((".npy", ".json")) for name in names)
