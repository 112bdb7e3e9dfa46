"""One rule for the characters of every file, and every kind of column that holds text."""

import codecs
import gzip
import json
import random
import warnings
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from pgprune_lightning.data.documents import load_columns, read_documents
from pgprune_lightning.data.text_source import TextSource
from pgprune_lightning.errors import UserError

TEXT = "A café for £5, “quoted”, and then a second sentence without any such letter.\n"
BODIES = {
    "a.txt": TEXT,
    "a.raw": TEXT,
    "a.jsonl": json.dumps({"text": TEXT}, ensure_ascii=False) + "\n",
    "a.json": json.dumps([{"text": TEXT}], ensure_ascii=False),
}
BODIES |= {f"{name}.gz": BODIES[name] for name in ("a.jsonl", "a.json")}
"""By name of the file: the text in its format."""
MARKS = {
    "utf-8": codecs.BOM_UTF8,
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}
"""By encoding: its byte order mark."""
RANDOM = random.Random(0)
NO_TEXT = {
    "utf-16 without its mark": (TEXT.encode("utf-16-le"), r"is no text: [45]\d% of its characters"),
    "utf-32 without its mark": (TEXT.encode("utf-32-be"), r"is no text: 7\d% of its characters"),
    "random bytes": (RANDOM.randbytes(4000), r"is no text: 1\d% of its characters are control"),
    "random ascii": (bytes(RANDOM.choices(range(128), k=4000)), r"is no text: 2\d%"),
    "gbk": ("我们的世界。语言模型。\n".encode("gbk") * 9, r"no UTF-8, and 9\d% of its bytes"),
    "shift jis": ("日本語のテキスト。\n".encode("shift_jis") * 9, r"no UTF-8, and 6\d% of its"),
    "koi8-r": ("Привет, мир, и ещё слово.\n".encode("koi8-r") * 9, r"no UTF-8, and 6\d% of its"),
    "half of utf-16": (codecs.BOM_UTF16_LE + b"a\0b", r"begins as UTF-16 does, and is not"),
}
"""By name: what is refused, and why."""
WORDS = ["one", "two", None, "a longer one, beyond what a view holds itself"]
TEXT_COLUMNS = {
    "string": pa.array(WORDS),
    "large_string": pa.array(WORDS, type=pa.large_string()),
    "string_view": pa.array(WORDS, type=pa.string_view()),
    "dictionary": pa.array(WORDS).dictionary_encode(),
    "large dictionary": pa.array(WORDS, type=pa.large_string()).dictionary_encode(),
}
BYTES = [b"one", b"two"]
OTHER_COLUMNS = {
    "binary": (pa.array(BYTES), "bytes have no encoding; write the column as strings"),
    "large_binary": (pa.array(BYTES, type=pa.large_binary()), "bytes have no encoding"),
    "binary_view": (pa.array(BYTES, type=pa.binary_view()), "bytes have no encoding"),
    "fixed_size_binary": (pa.array(BYTES, type=pa.binary(3)), "bytes have no encoding"),
    "dictionary<values=binary": (pa.array(BYTES).dictionary_encode(), "bytes have no encoding"),
    "int64": (pa.array([1, 2]), ", not text$"),
    "list": (pa.array([["a"], ["b"]]), ", not text$"),
    "struct": (pa.array([{"a": "b"}]), ", not text$"),
}
"""By what the error calls it: a column that is refused, and why."""


def _read(path: Path, content: bytes) -> list[str]:
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return list(read_documents(TextSource(str(path)))["text"])


def _write(path: Path, **columns: Any) -> Path:
    pyarrow.parquet.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("encoding", MARKS)
def test_a_byte_order_mark_decides(tmp_path: Path, name: str, encoding: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        content = MARKS[encoding] + BODIES[name].encode(encoding)
        assert _read(tmp_path / name, content) == [TEXT]


@pytest.mark.parametrize("name", BODIES)
def test_what_is_no_utf_8_is_read_as_windows_1252_with_one_warning(
    tmp_path: Path, name: str
) -> None:
    content = BODIES[name].encode("cp1252")
    with pytest.warns(UserWarning, match=rf"/{name}: it is no UTF-8, and was read as"):
        assert _read(tmp_path / name, content) == [TEXT]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert _read(tmp_path / name, content) == [TEXT]


def test_one_byte_beyond_ascii_in_json_lines(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"a\.jsonl: it is no UTF-8"):
        assert _read(tmp_path / "a.jsonl", b'{"text": "caf\xe9"}\n{"text": "b"}\n') == ["café", "b"]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_utf_8_with_a_broken_character_stays_utf_8(tmp_path: Path, name: str) -> None:
    content = BODIES[name].encode().replace("é".encode(), b"\xc3", 1)
    with pytest.warns(UserWarning, match=rf"{name}: not all of it is UTF-8; .* in 1 places"):
        assert _read(tmp_path / name, content) == [TEXT.replace("é", "\ufffd")]


@pytest.mark.parametrize("name", ["a.txt", "a.raw", "a.jsonl", "a.json.gz"])
@pytest.mark.parametrize("case", NO_TEXT)
def test_what_is_no_text_is_refused(tmp_path: Path, name: str, case: str) -> None:
    content, message = NO_TEXT[case]
    with pytest.raises(UserError, match=rf"/{name}.* {message}"):
        _read(tmp_path / name, content)


def test_a_control_character_here_and_there_is_text(tmp_path: Path) -> None:
    assert _read(tmp_path / "a.txt", TEXT.encode() + b"\0") == [TEXT + "\0"]


@pytest.mark.parametrize("kind", TEXT_COLUMNS)
def test_parquet_columns_that_hold_text(tmp_path: Path, kind: str) -> None:
    path = _write(tmp_path / "a.parquet", text=TEXT_COLUMNS[kind], other=[1, 2, 3, 4])
    table = read_documents(TextSource(str(path)))
    assert table[[3, 0, 2]]["text"] == [WORDS[3], WORDS[0], WORDS[2]]
    assert list(table["text"]) == WORDS


@pytest.mark.parametrize("first", TEXT_COLUMNS)
def test_parquet_files_that_store_text_in_different_ways(tmp_path: Path, first: str) -> None:
    for number, kind in enumerate([first, *TEXT_COLUMNS]):
        _write(tmp_path / f"{number}.parquet", text=TEXT_COLUMNS[kind])
    table = read_documents(TextSource(str(tmp_path / "*.parquet")))
    assert list(table["text"]) == WORDS * (1 + len(TEXT_COLUMNS))


@pytest.mark.parametrize("kind", OTHER_COLUMNS)
def test_parquet_columns_that_hold_no_text(tmp_path: Path, kind: str) -> None:
    column, message = OTHER_COLUMNS[kind]
    path = _write(tmp_path / "a.parquet", text=column)
    with pytest.raises(UserError, match=rf"a\.parquet: field 'text' holds {kind}.*{message}"):
        read_documents(TextSource(str(path)))


def test_a_parquet_column_of_damaged_text(tmp_path: Path) -> None:
    damaged = pa.Array.from_buffers(pa.string(), 1, pa.array([b"caf\xe9"]).buffers())
    path = _write(tmp_path / "a.parquet", text=damaged)
    with pytest.raises(UserError, match=r"a\.parquet: field 'text' holds text that is no UTF-8"):
        read_documents(TextSource(str(path)))


def test_several_columns_in_the_order_asked_for(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.parquet", a=["1"], b=TEXT_COLUMNS["string_view"][:1], c=[b"3"])
    assert load_columns([path], ["b", "a"], "")[:] == {"b": ["one"], "a": ["1"]}


@pytest.mark.parametrize(
    ("name", "content"), [("a.json", "[]"), ("a.jsonl", "\n\n"), ("a.jsonl", ""), ("a.txt", "")]
)
def test_a_file_without_rows(tmp_path: Path, name: str, content: str) -> None:
    with pytest.raises(UserError, match=rf"{name} (is empty|holds no rows); give a text with"):
        _read(tmp_path / name, content.encode())


def test_a_parquet_file_without_rows(tmp_path: Path) -> None:
    none = _write(tmp_path / "0.parquet", text=pa.array([], type=pa.string()))
    with pytest.raises(UserError, match=r"0\.parquet holds no rows; give a text with content"):
        read_documents(TextSource(str(none)))
    _write(tmp_path / "1.parquet", text=WORDS)
    assert list(read_documents(TextSource(str(tmp_path / "*.parquet")))["text"]) == WORDS


@pytest.mark.parametrize("content", ["null", 'null\n{"text": "a"}\n', '\n[ null, {"text": "a"}]'])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json.gz"])
def test_json_that_begins_with_null(tmp_path: Path, name: str, content: str) -> None:
    """The reader of the library would end the process."""
    opened = gzip.open if name.endswith(".gz") else open
    with opened(tmp_path / name, "wt") as file:
        file.write(content)
    with pytest.raises(UserError, match=rf"{name} begins with null, which is no document"):
        read_documents(TextSource(str(tmp_path / name)))
