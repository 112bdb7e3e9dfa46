"""Reads a text source into documents, and says in which order they are used."""

import re
import socket
import threading
import urllib.parse
import urllib.request

import datasets
import huggingface_hub.constants
import numpy as np
from numpy.typing import NDArray

from pgprune_lightning.data.text_files import (
    cause_of,
    load_columns,
    place_of,
    read_texts,
    text_columns,
)
from pgprune_lightning.data.text_source import SourceUnavailable, TextSource, file_format
from pgprune_lightning.errors import about, warn_once

# Parts of a text must not overlap between runs, so their order never depends on a run's seed.
_PART_SEED = 0
# Nor must the typography of a document.
_SPACED_SEED = 1
_REACH_SECONDS = 3.0
_ADVICE = "name one of them as the text's field"


def read_documents(source: TextSource) -> datasets.Dataset:
    """Read all documents of a source.

    Args:
        source: What to read.

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
            texts = read_texts(files)
            separator = source.document_separator
            if separator is not None and not any(separator in text for text in texts):
                warn_once(
                    f"{place_of(files)}: document_separator {separator!r} does not occur, so every "
                    "file is one document."
                )
            return _as_dataset([part for text in texts for part in _split(text, source)])
        case "wikitext":
            return _as_dataset([row for text in read_texts(files) for row in _wikitext_rows(text)])
        case _:
            return _as_text(load_columns(files, [source.field], _ADVICE))


def document_order(num_documents: int, source: TextSource, seed: int | None) -> NDArray[np.int64]:
    """Which documents are used, and in which order.

    Args:
        num_documents: Number of documents in the source.
        source: Its `part` says which share of the documents is used.
        seed: Seed of the shuffled order for training; None: a fixed order for evaluation, the
            source's own where all of it is used.

    Returns:
        Indices of documents, shape (documents used,), int64.
    """
    start, end = source.part
    order = np.arange(num_documents)
    if (start, end) != (0, 1):
        order = np.random.default_rng(_PART_SEED).permutation(num_documents)
    used = order[round(start * num_documents) : round(end * num_documents)]
    return used if seed is None else np.random.default_rng(seed).permutation(used)


def spaced_documents(num_documents: int, source: TextSource) -> NDArray[np.bool_]:
    """Which documents are written with spaced punctuation.

    Args:
        num_documents: Number of documents in the source.
        source: Its `spaced_punctuation` says how large a share; with a larger one it is these, too.

    Returns:
        Shape (num_documents,), bool.
    """
    drawn = np.random.default_rng(_SPACED_SEED).random(num_documents)
    return drawn < source.spaced_punctuation


def _split(text: str, source: TextSource) -> list[str]:
    if source.document_separator is None:
        return [text]
    return [part.strip() for part in text.split(source.document_separator) if part.strip()]


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
            # The sizes on record are those of the whole dataset; some of its files never match.
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

    # A thread, because looking up the host's name has no timeout of its own.
    attempt = threading.Thread(target=connect, daemon=True)
    attempt.start()
    attempt.join(_REACH_SECONDS)
    return reached.is_set()
