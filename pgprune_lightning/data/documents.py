"""Reads a text source into documents: from the hub, or from files of text, JSON or Parquet.

One rule decodes every text file of a user, whatever its format. A byte order mark decides; without
one the file is UTF-8. If that fails, the file is damaged UTF-8 where most of its characters beyond
ASCII are whole, else Windows-1252, and a warning names it. Files with many control characters, or
with too many bytes beyond ASCII for Windows-1252, are refused.
"""

from __future__ import annotations

import codecs
import gzip
import re
import socket
import tempfile
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import datasets
import huggingface_hub.constants
import pyarrow as pa
import pyarrow.parquet

from pgprune_lightning.data.text_source import SourceUnavailable, TextSource, file_format
from pgprune_lightning.errors import UserError, about, warn_once

_REACH_SECONDS = 3.0
_ADVICE = "name one of them as the text's field"
_ROWS_AT_ONCE = 10_000  # `datasets` takes the number in the first group, which may be none
# Rows before any object: pyarrow ends the process on them.
_BEGINS_WITH_NULL = re.compile(rb"\s*\[?\s*null\b")
_TEXT = ("null", "string", "large_string", "string_view")
_BINARY = ("binary", "large_binary", "binary_view", "fixed_size_binary")

_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    # Before those of UTF-16, which begin alike.
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_CONTROL_CHARACTERS = bytes({*range(32), 127} - set(b"\t\n\v\f\r"))
# Text has next to none; a ninth of random bytes are, and half of the bytes of ASCII in UTF-16.
_MOST_CONTROL_CHARACTERS = 0.02
# A fifth at most in the languages of Windows-1252; half and more in GBK, Shift JIS or KOI8-R.
_MOST_BEYOND_ASCII = 0.3
_BYTES_AT_ONCE = 2**20
_REPLACEMENT = "\ufffd"


def read_documents(source: TextSource) -> datasets.Dataset:
    """Read all documents of a source.

    Args:
        source: The text to read.

    Returns:
        A dataset with the single column "text", one row a document, in the source's own order.

    Raises:
        SourceUnavailable: The text is missing or the hub cannot be reached.
        UserError: The text cannot be read, is empty, or has no such column.
    """
    files = source.local_files()
    if files is None:
        table = _load_from_hub(source)
        with about(source.described):
            return _as_text(text_columns(table, [source.field], _ADVICE))
    match file_format(files[0]):
        case "plain":
            texts = _read_texts(files)
            separator = source.document_separator
            if separator is not None and not any(separator in text for text in texts):
                warn_once(
                    f"{place_of(files)}: document_separator {separator!r} does not occur, so every "
                    "file is one document."
                )
            return _as_dataset([part for text in texts for part in _split(text, separator)])
        case "wikitext":
            return _as_dataset([row for text in _read_texts(files) for row in _wikitext_rows(text)])
        case _:
            return _as_text(load_columns(files, [source.field], _ADVICE))


def _split(text: str, separator: str | None) -> list[str]:
    if separator is None:
        return [text]
    return [part.strip() for part in text.split(separator) if part.strip()]


def _wikitext_rows(text: str) -> list[str]:
    """Rows as on the hub: a line keeps its newline, a blank one becomes the empty string."""
    lines = re.findall(r"[^\n]*\n|[^\n]+", text)
    return [line if line.strip() else "" for line in lines]


def _as_dataset(texts: list[str]) -> datasets.Dataset:
    # Plain strings overflow beyond 2 GiB of text.
    features = datasets.Features({"text": datasets.Value("large_string")})
    return datasets.Dataset.from_dict({"text": texts}, features=features)


def _as_text(table: datasets.Dataset) -> datasets.Dataset:
    (name,) = table.column_names
    return table if name == "text" else table.rename_column(name, "text")


def place_of(files: Sequence[Path]) -> str:
    """The location of files, for messages."""
    return str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"


def cause_of(error: BaseException) -> str:
    """The first line of the error at the bottom of the chain."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


# The hub.


def _load_from_hub(source: TextSource) -> datasets.Dataset:
    if source.optional and not _hub_is_reachable():
        raise SourceUnavailable(f"the hub cannot be reached for {source.path!r}")
    split_name = source.split.partition("[")[0]
    some_files = source.data_files is not None
    try:
        return datasets.load_dataset(
            source.path,
            name=source.name,
            split=source.split,
            data_files={split_name: source.data_files} if some_files else None,
            revision=source.revision,
            # The recorded sizes are those of the whole dataset; some of its files never match.
            verification_mode="no_checks" if some_files else None,
        )
    except Exception as error:  # datasets raises errors of many kinds
        raise SourceUnavailable(
            f"{source.path!r} is no local path and cannot be had from the hub "
            f"({cause_of(error)}); check its name, configuration and split, or give a local path "
            "as path or local_copy"
        ) from error


def _hub_is_reachable() -> bool:
    """Whether a connection to the hub opens within seconds; offline mode answers by itself."""
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return True
    endpoint = urllib.parse.urlsplit(huggingface_hub.constants.ENDPOINT)
    proxy = urllib.request.getproxies().get(endpoint.scheme)
    target = urllib.parse.urlsplit(proxy) if proxy else endpoint
    port = target.port or (443 if target.scheme == "https" else 80)
    reached = threading.Event()

    def connect() -> None:
        try:
            with socket.create_connection((target.hostname, port), timeout=_REACH_SECONDS):
                reached.set()
        except OSError:
            return

    # A thread, because the look-up of the host's name has no timeout of its own.
    attempt = threading.Thread(target=connect, daemon=True)
    attempt.start()
    attempt.join(_REACH_SECONDS)
    return reached.is_set()


# Tables.


def load_columns(files: Sequence[Path], names: Sequence[str], advice: str) -> datasets.Dataset:
    """Read columns of text from files of JSON or Parquet.

    Args:
        files: The files, of one format.
        names: Names of the columns.
        advice: The remedy in the message about a missing column.

    Returns:
        A dataset with these columns, in this order.

    Raises:
        UserError: A file cannot be read, lacks a column, or a column holds no text.
    """
    _refuse_empty(files)
    if file_format(files[0]) == "parquet":
        for file in files:
            with about(str(file)):
                _check_columns(_parquet_schema(file), names, advice)
        # Files may store text in different types, and `datasets` takes the first for all.
        features = datasets.Features({name: datasets.Value("large_string") for name in names})
        options = {"columns": list(names), "features": features, "batch_size": _ROWS_AT_ONCE}
        table = _load("parquet", files, **options)
    else:
        with as_utf8(files) as copies:
            for file, copy in zip(files, copies, strict=True):
                _refuse_leading_null(file, copy)
            table = _load("json", files, copies)
    with about(place_of(files)):
        return text_columns(table, names, advice)


def text_columns(table: datasets.Dataset, names: Sequence[str], advice: str) -> datasets.Dataset:
    """Select columns of text from a table.

    Args:
        table: The table.
        names: Names of the columns.
        advice: The remedy in the message about a missing column.

    Raises:
        UserError: There is no such column, or it holds no text.
    """
    _check_columns(table.features.arrow_schema, names, advice)
    for name in names:
        try:
            table.data.column(name).validate(full=True)
        except pa.ArrowInvalid as error:
            raise UserError(
                f"field {name!r} holds text that is no UTF-8 ({error}); write it anew as strings"
            ) from error
    return table.select_columns(list(names))


def _check_columns(schema: pa.Schema, names: Sequence[str], advice: str) -> None:
    for name in names:
        if name not in schema.names:
            there = ", ".join(schema.names) or "none"
            raise UserError(f"no field {name!r}; there are {there}: {advice}")
        kind = schema.field(name).type
        if not _is_one_of(kind, _TEXT):
            is_binary = _is_one_of(kind, _BINARY)
            hint = ": bytes have no encoding; write the column as strings" * is_binary
            raise UserError(f"field {name!r} holds {kind}, not text{hint}")


def _is_one_of(kind: pa.DataType, names: Sequence[str]) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return any(getattr(pa.types, f"is_{name}")(kind) for name in names)


def _parquet_schema(file: Path) -> pa.Schema:
    try:
        return pyarrow.parquet.read_schema(file)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"cannot be read as parquet: {cause_of(error)}") from error


def _load(
    builder: str, files: Sequence[Path], copies: Sequence[Path] | None = None, **options: Any
) -> datasets.Dataset:
    read = files if copies is None else copies
    try:
        return datasets.load_dataset(
            builder, data_files=list(map(str, read)), split="train", **options
        )
    except Exception as error:  # datasets raises errors of many kinds
        if "corresponds to no data" in str(error):
            raise UserError(f"{place_of(files)} holds no rows; give a text with content") from error
        raise UserError(
            f"{place_of(files)} cannot be read as {builder}: {cause_of(error)}"
        ) from error


def _refuse_leading_null(file: Path, copy: Path) -> None:
    with _opened(copy) as stream:
        if _BEGINS_WITH_NULL.match(stream.read(_BYTES_AT_ONCE)):
            raise UserError(f"{file} begins with null, which is no document; remove such rows")


def _refuse_empty(files: Sequence[Path]) -> None:
    if not any(file.stat().st_size for file in files):
        raise UserError(f"{place_of(files)} is empty; give a text with content")


# Characters.


@dataclass(frozen=True)
class _Decoding:
    """How the bytes of a file become characters; `doubt` is a warning, empty if there is none."""

    encoding: str
    errors: str = "strict"
    doubt: str = ""


@dataclass
class _Counts:
    """Characters of a file: all of them, and those that tell whether it is text."""

    all: int = 0
    control: int = 0
    beyond_ascii: int = 0
    replaced: int = 0


def _read_texts(files: Sequence[Path]) -> list[str]:
    """The text of each file; all line ends are newlines."""
    _refuse_empty(files)
    pairs = zip(files, _decodings(files), strict=True)
    return [file.read_text(how.encoding, how.errors) for file, how in pairs]


@contextmanager
def as_utf8(files: Sequence[Path]) -> Iterator[list[Path]]:
    """Provide text files as UTF-8, for libraries that read nothing else.

    Args:
        files: The files, also compressed ones (`.gz`).

    Yields:
        The same files; those that are not plain UTF-8 as temporary copies.

    Raises:
        UserError: One cannot be read, or is no text.
    """
    with tempfile.TemporaryDirectory(prefix="pgprune-") as folder:
        given = []
        for number, (file, how) in enumerate(zip(files, _decodings(files), strict=True)):
            if how == _Decoding("utf-8"):
                given.append(file)
                continue
            copy = Path(folder, f"{number}-{file.name.removesuffix('.gz')}")
            with copy.open("w", encoding="utf-8", newline="") as written:
                written.writelines(_decoded(file, how.encoding, how.errors))
            given.append(copy)
        yield given


def _decodings(files: Sequence[Path]) -> list[_Decoding]:
    """The decoding of each file; one warning names the uncertain ones."""
    found = []
    for file in files:
        try:
            found.append(_decoding(file))
        except (OSError, EOFError) as error:  # gzip raises the second where a file ends too early
            raise UserError(f"{file} cannot be read: {cause_of(error)}") from error
    doubtful = [(file, how.doubt) for file, how in zip(files, found, strict=True) if how.doubt]
    if doubtful:
        warn_once(f"{place_of([file for file, _ in doubtful])}: {doubtful[0][1]}")
    return found


def _decoding(file: Path) -> _Decoding:
    with _opened(file) as stream:
        head = stream.read(4)
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS if head.startswith(mark)), "utf-8")
    try:
        how, counts = _Decoding(encoding), _count(file, encoding, "strict")
    except UnicodeDecodeError as error:
        if encoding in ("utf-16", "utf-32"):
            raise UserError(
                f"{file} begins as {encoding.upper()} does, and is not: {error.reason}. Give the "
                "whole file, or UTF-8"
            ) from error
        how, counts = _second_best(file, encoding)
    if counts.control > _MOST_CONTROL_CHARACTERS * counts.all:
        raise UserError(
            f"{file} is no text: {counts.control / counts.all:.0%} of its characters are control "
            "characters. If it is UTF-16 without a byte order mark, convert it: "
            "iconv -f UTF-16LE -t UTF-8 FILE > NEW_FILE"
        )
    if how.encoding == "cp1252" and counts.beyond_ascii > _MOST_BEYOND_ASCII * counts.all:
        raise UserError(
            f"{file} is no UTF-8, and {counts.beyond_ascii / counts.all:.0%} of its bytes are "
            "beyond ASCII, too many for Windows-1252. Convert it from the encoding that it has, "
            "such as by: iconv -f GBK -t UTF-8 FILE > NEW_FILE"
        )
    return how


def _second_best(file: Path, encoding: str) -> tuple[_Decoding, _Counts]:
    """The decoding of a file that is not all UTF-8."""
    counts = _count(file, encoding, "replace")
    if encoding == "utf-8-sig" or counts.beyond_ascii > 2 * counts.replaced:
        doubt = (
            f"not all of it is UTF-8; it was read with {_REPLACEMENT} in {counts.replaced} places. "
            "Check that the file is whole."
        )
        return _Decoding(encoding, "replace", doubt), counts
    doubt = (
        "it is no UTF-8, and was read as Windows-1252. If it has another encoding, convert it: "
        "iconv -f ENCODING -t UTF-8 FILE > NEW_FILE"
    )
    return _Decoding("cp1252", "replace", doubt), _count(file, "cp1252", "replace")


def _count(file: Path, encoding: str, errors: str) -> _Counts:
    counts = _Counts()
    for text in _decoded(file, encoding, errors):
        content = text.encode()
        counts.all += len(text)
        counts.control += len(content) - len(content.translate(None, _CONTROL_CHARACTERS))
        counts.beyond_ascii += len(text) - len(text.encode("ascii", "ignore"))
        counts.replaced += text.count(_REPLACEMENT)
    return counts


def _decoded(file: Path, encoding: str, errors: str) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder(encoding)(errors)
    with _opened(file) as stream:
        while content := stream.read(_BYTES_AT_ONCE):
            yield decoder.decode(content)
    yield decoder.decode(b"", final=True)


def _opened(file: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(file)) if file.suffix == ".gz" else file.open("rb")
