"""Token blocks on disk: made once, memory-mapped after that, found again by what they consist of.

A cache entry is a pair of files: `blocks-KEY.npy`, int32 of shape (N, L), and `blocks-KEY.json`,
which says in words what the blocks are. KEY is a hash of everything that decides the tokens.
"""

import hashlib
import io
import json
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from pgprune_lightning.atomic_write import write_atomically
from pgprune_lightning.data.text_source import TextSource
from pgprune_lightning.data.tokenization import tokenise_blocks
from pgprune_lightning.errors import UserError
from pgprune_lightning.record_file import read_object

# To be raised whenever the same ingredients give other tokens than before.
_VERSION = 2


class TokenBlocks(Dataset[Tensor]):
    """Blocks of tokens of one text; `blocks[i]` is an int64 tensor of shape (L,).

    Args:
        array: Token ids, shape (N, L), int32; may be memory-mapped.
        label: Name of the text in tables and metrics.
    """

    def __init__(self, array: NDArray[np.int32], label: str) -> None:
        assert array.ndim == 2
        self.array = array
        self.label = label

    @property
    def num_tokens(self) -> int:
        """Number of tokens in all blocks."""
        return self.array.size

    def __len__(self) -> int:
        """Number of blocks."""
        return len(self.array)

    def __getitem__(self, index: int) -> Tensor:
        """One block, shape (L,), int64."""
        return torch.from_numpy(self.array[index].astype(np.int64))


def build_token_blocks(
    source: TextSource,
    tokenizer: PreTrainedTokenizerBase,
    block_length: int,
    *,
    seed: int | None = None,
    bos_per_block: bool = False,
    cache_dir: str | Path | None = None,
) -> TokenBlocks:
    """Open the blocks of a text, after making them where the cache does not hold them yet.

    Args:
        source: The text, and how its documents are joined.
        tokenizer: Of the model that will read the blocks.
        block_length: Tokens in a block, BOS included.
        seed: Seed of the documents' order for training; None: a fixed order, for evaluation.
        bos_per_block: Begin every block with the tokenizer's BOS token.
        cache_dir: Folder of the cache; None: see `default_cache_dir`.

    Returns:
        The blocks, memory-mapped.

    Raises:
        SourceUnavailable: The text is missing or the hub cannot be reached.
        UserError: The text cannot be read, is too short, or the cache cannot be written.
    """
    identity = _identity(source, tokenizer, block_length, seed, bos_per_block)
    entry = _entry(identity, cache_dir)
    blocks = _open(entry, source)
    if blocks is None:
        array = tokenise_blocks(
            source, tokenizer, block_length, seed=seed, bos_per_block=bos_per_block
        )
        _save(entry, array, source, identity)
        blocks = _open(entry, source)
        assert blocks is not None
    return blocks


def open_token_blocks(
    source: TextSource,
    tokenizer: PreTrainedTokenizerBase,
    block_length: int,
    *,
    seed: int | None = None,
    bos_per_block: bool = False,
    cache_dir: str | Path | None = None,
) -> TokenBlocks | None:
    """Open the blocks that `build_token_blocks` made with the same arguments.

    Returns:
        The blocks, memory-mapped; None where the cache does not hold them.

    Raises:
        SourceUnavailable: The files of a local text are missing.
    """
    identity = _identity(source, tokenizer, block_length, seed, bos_per_block)
    return _open(_entry(identity, cache_dir), source)


def default_cache_dir() -> Path:
    """PGPRUNE_CACHE where it is set, else pgprune_lightning in the user's cache folder."""
    if chosen := os.environ.get("PGPRUNE_CACHE"):
        return Path(chosen).expanduser()
    user_cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(user_cache) / "pgprune_lightning"


def _identity(
    source: TextSource,
    tokenizer: PreTrainedTokenizerBase,
    block_length: int,
    seed: int | None,
    bos_per_block: bool,
) -> dict[str, Any]:
    """Everything that decides the tokens."""
    return {
        "version": _VERSION,
        "text": _text_identity(source),
        "field": source.field,
        "join": source.join,
        "document_separator": source.document_separator,
        "part": list(source.part),
        "num_blocks": source.num_blocks,
        "spaced_punctuation": source.spaced_punctuation,
        "tokenizer": _tokenizer_hash(tokenizer),
        "block_length": block_length,
        # One joined text has no order of documents to shuffle.
        "seed": seed if source.join == "end_token" else None,
        "bos_per_block": bos_per_block,
    }


def _text_identity(source: TextSource) -> dict[str, Any]:
    files = source.local_files()
    if files is None:
        names = ("path", "name", "split", "data_files", "revision")
        return {name: getattr(source, name) for name in names}
    states = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    digest = hashlib.sha256(json.dumps(states).encode()).hexdigest()
    return {"files": len(files), "bytes": sum(size for _, size, _ in states), "digest": digest}


def _tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        content = json.dumps([type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())])
    else:
        # Truncation and padding stand before the tokens, and change with every call of the
        # tokenizer that uses them.
        content = backend.to_str()
        content = content[content.index('"added_tokens"') :]
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id]
    return hashlib.sha256(f"{special} {content}".encode()).hexdigest()


def _entry(identity: dict[str, Any], cache_dir: str | Path | None) -> Path:
    """The path of the entry's array; the description lies beside it as .json."""
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    folder = default_cache_dir() if cache_dir is None else Path(cache_dir).expanduser()
    return folder / f"blocks-{key}.npy"


def _open(entry: Path, source: TextSource) -> TokenBlocks | None:
    description = entry.with_suffix(".json")
    if not description.exists():
        return None
    try:
        array = np.load(entry, mmap_mode="r")
        expected = read_object(description, "cache")["shape"]
        if array.dtype != np.int32 or list(array.shape) != expected:
            raise ValueError(f"{array.dtype} of shape {array.shape} is not what was written")
    except (OSError, EOFError, ValueError, KeyError) as error:
        warnings.warn(
            f"{source.title}: the cached token blocks {entry} are damaged ({error}); "
            "they are made again",
            stacklevel=3,
        )
        return None
    return TokenBlocks(array, source.title)


def _save(
    entry: Path, array: NDArray[np.int32], source: TextSource, identity: dict[str, Any]
) -> None:
    description = {
        "label": source.title,
        "path": source.path,
        "shape": list(array.shape),
        "tokens": array.size,
        **identity,
    }
    content = io.BytesIO()
    np.save(content, array)
    try:
        write_atomically(entry, content.getvalue())
        # Last, because its presence says that the array is whole.
        write_atomically(entry.with_suffix(".json"), json.dumps(description, indent=2).encode())
    except UserError as error:
        raise UserError(
            f"the token blocks of {source.title} cannot be kept: {error} Set cache_dir or the "
            "environment variable PGPRUNE_CACHE to a writable folder with room."
        ) from error
