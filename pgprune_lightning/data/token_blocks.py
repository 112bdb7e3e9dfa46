"""Documents become blocks of tokens, which are kept on disk and found again by their ingredients.

A cache entry is a pair of files: `blocks-KEY.npy`, int32 of shape (N, L), and `blocks-KEY.json`,
which describes the blocks. KEY is a hash of everything that decides the tokens.

Shapes: N blocks, L tokens a block.
"""

import hashlib
import io
import json
import os
import warnings
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from pgprune_lightning.atomic_write import write_atomically
from pgprune_lightning.data.documents import read_documents
from pgprune_lightning.data.text_source import TextSource, file_format
from pgprune_lightning.data.wikitext_style import in_wikitext_style
from pgprune_lightning.errors import UserError, about
from pgprune_lightning.progress import work_bar
from pgprune_lightning.record_file import read_object

# To be raised whenever the same ingredients give other tokens than before.
_VERSION = 2
# Neither the part nor the style of a document may depend on the seed of a run.
_PART_SEED = 0
_STYLE_SEED = 1
_DOCUMENTS_AT_ONCE = 256


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


# The cache.


def build_token_blocks(
    source: TextSource,
    tokenizer: PreTrainedTokenizerBase,
    block_length: int,
    *,
    seed: int | None = None,
    bos_per_block: bool = False,
    cache_dir: str | Path | None = None,
) -> TokenBlocks:
    """Open the blocks of a text, and make them first where the cache does not hold them.

    Args:
        source: The text, and how its documents are joined.
        tokenizer: Tokenizer of the model that will read the blocks.
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
    ingredients = _ingredients(source, tokenizer, block_length, seed, bos_per_block)
    entry = _entry(ingredients, cache_dir)
    blocks = _open(entry, source)
    if blocks is None:
        array = tokenise_blocks(
            source, tokenizer, block_length, seed=seed, bos_per_block=bos_per_block
        )
        _save(entry, array, source, ingredients)
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
    """Open the blocks that `build_token_blocks` made of the same arguments; None: there are none.

    Raises:
        SourceUnavailable: The files of a local text are missing.
    """
    ingredients = _ingredients(source, tokenizer, block_length, seed, bos_per_block)
    return _open(_entry(ingredients, cache_dir), source)


def default_cache_dir() -> Path:
    """PGPRUNE_CACHE where it is set, else pgprune_lightning in the user's cache folder."""
    if chosen := os.environ.get("PGPRUNE_CACHE"):
        return Path(chosen).expanduser()
    user_cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(user_cache) / "pgprune_lightning"


def _ingredients(
    source: TextSource,
    tokenizer: PreTrainedTokenizerBase,
    block_length: int,
    seed: int | None,
    bos_per_block: bool,
) -> dict[str, Any]:
    """Everything that decides the tokens."""
    return {
        "version": _VERSION,
        "text": _text_state(source),
        "field": source.field,
        "join": source.join,
        "document_separator": source.document_separator,
        "part": list(source.part),
        "num_blocks": source.num_blocks,
        "wikitext_style": source.wikitext_style,
        "tokenizer": _tokenizer_hash(tokenizer),
        "block_length": block_length,
        # A text joined as one has no order of documents to shuffle.
        "seed": seed if source.join == "end_token" else None,
        "bos_per_block": bos_per_block,
    }


def _text_state(source: TextSource) -> dict[str, Any]:
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


def _entry(ingredients: dict[str, Any], cache_dir: str | Path | None) -> Path:
    """The path of the array; the description lies beside it as .json."""
    key = hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()[:16]
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
    entry: Path, array: NDArray[np.int32], source: TextSource, ingredients: dict[str, Any]
) -> None:
    description = {
        "label": source.title,
        "path": source.path,
        "shape": list(array.shape),
        "tokens": array.size,
        **ingredients,
    }
    content = io.BytesIO()
    np.save(content, array)
    try:
        write_atomically(entry, content.getvalue())
        # Last: its presence means that the array is whole.
        write_atomically(entry.with_suffix(".json"), json.dumps(description, indent=2).encode())
    except UserError as error:
        raise UserError(
            f"the token blocks of {source.title} cannot be kept: {error} Set cache_dir or the "
            "environment variable PGPRUNE_CACHE to a writable folder with room."
        ) from error


# Tokenising.


def tokenise_blocks(
    source: TextSource,
    tokenizer: PreTrainedTokenizerBase,
    block_length: int,
    *,
    seed: int | None = None,
    bos_per_block: bool = False,
) -> NDArray[np.int32]:
    """Read a text, tokenise it and cut it into full blocks; the rest at the end is dropped.

    Arguments and errors are those of `build_token_blocks`, but for the cache.

    Returns:
        Token ids, shape (N, L), int32.
    """
    bos = _special_token(tokenizer, "bos") if bos_per_block else None
    text_length = block_length - (bos is not None)
    documents = read_documents(source)
    order = document_order(len(documents), source, seed)
    with about(source.described):
        _refuse_empty_part(source, len(documents), len(order))
    if source.wikitext_style:
        documents = _restyled(documents, source)
    if source.join == "blank_line":
        # With a BOS in every block, the tokenizer's own at the start would be a second one.
        stream = _tokenise_whole(documents, tokenizer, add_special_tokens=bos is None)
    else:
        wanted = None if source.num_blocks is None else source.num_blocks * text_length
        stream = _tokenise_documents(documents, order, tokenizer, wanted)
    num_blocks = len(stream) // text_length
    if num_blocks == 0:
        part = f"part {list(source.part)}, {len(order)} of " * (len(order) < len(documents))
        raise UserError(
            f"{source.described}: too short for one block: {len(stream)} tokens found in "
            f"{part}{_counted(len(documents))}, {text_length} needed; give more text or a smaller "
            "block length"
        )
    blocks = stream[: num_blocks * text_length].reshape(num_blocks, text_length)
    if source.num_blocks is not None and source.num_blocks < num_blocks:
        # Of one long text evenly spaced blocks, which represent it better than the first ones.
        chosen = np.arange(source.num_blocks)
        spread = chosen * num_blocks // source.num_blocks
        blocks = blocks[spread if source.join == "blank_line" else chosen]
    return blocks if bos is None else np.insert(blocks, 0, bos, axis=1)


def document_order(num_documents: int, source: TextSource, seed: int | None) -> NDArray[np.int64]:
    """Choose the documents that are used, and their order.

    Args:
        num_documents: Number of documents in the source.
        source: Its `part` is the share of the documents that is used.
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


def restyled_documents(num_documents: int, source: TextSource) -> NDArray[np.bool_]:
    """Choose the documents that `wikitext_style` rewrites, (num_documents,) bool.

    A larger share includes the documents of a smaller one.
    """
    drawn = np.random.default_rng(_STYLE_SEED).random(num_documents)
    return drawn < source.wikitext_style


def _restyled(documents: datasets.Dataset, source: TextSource) -> datasets.Dataset:
    """Rewrite the chosen documents when they are read."""
    chosen = restyled_documents(len(documents), source)

    def rewrite(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        pairs = zip(rows["text"], rows["restyled"], strict=True)
        return {"text": [in_wikitext_style(text) if text and it else text for text, it in pairs]}

    return documents.add_column("restyled", chosen.tolist()).with_transform(rewrite)


def _refuse_empty_part(source: TextSource, num_documents: int, num_used: int) -> None:
    if num_used or not num_documents:
        return
    files = source.local_files()
    is_plain = files is not None and file_format(files[0]) == "plain"
    hint = ", or split the text by document_separator: a .txt file is one document without it"
    raise UserError(
        f"no text is left: part {list(source.part)} takes none of its {_counted(num_documents)}; "
        f"set part to [0, 1]{hint * is_plain}"
    )


def _counted(num_documents: int) -> str:
    return "1 document" if num_documents == 1 else f"{num_documents} documents"


def _tokenise_documents(
    documents: datasets.Dataset,
    order: NDArray[np.int64],
    tokenizer: PreTrainedTokenizerBase,
    wanted: int | None,
) -> NDArray[np.int32]:
    """One stream, each document followed by the end token; it may stop at the wanted tokens."""
    end_token = _special_token(tokenizer, "eos")
    pieces: list[NDArray[np.int32]] = []
    found = 0
    total, unit = (len(order), " documents") if wanted is None else (wanted, " tokens")
    with work_bar(desc="tokenising", total=total, unit=unit, unit_scale=True) as bar:
        for start in range(0, len(order), _DOCUMENTS_AT_ONCE):
            if wanted is not None and found >= wanted:
                break
            rows = documents[order[start : start + _DOCUMENTS_AT_ONCE].tolist()]["text"]
            texts, before = [text for text in rows if text], found
            for ids in _tokens(tokenizer, texts, add_special_tokens=False) if texts else ():
                pieces.append(np.array([*ids, end_token], dtype=np.int32))
                found += len(pieces[-1])
            bar.update(len(rows) if wanted is None else min(found, wanted) - before)
    return np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int32)


def _tokenise_whole(
    documents: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, *, add_special_tokens: bool
) -> NDArray[np.int32]:
    text = "\n\n".join(row or "" for row in documents["text"])
    ids = _tokens(tokenizer, text, add_special_tokens=add_special_tokens)
    return np.array(ids, dtype=np.int32)


def _tokens(
    tokenizer: PreTrainedTokenizerBase, text: str | list[str], *, add_special_tokens: bool
) -> Any:
    return tokenizer(
        text,
        add_special_tokens=add_special_tokens,
        return_attention_mask=False,
        verbose=False,  # no warning that the text is longer than the model's context
    )["input_ids"]


def _special_token(tokenizer: PreTrainedTokenizerBase, kind: str) -> int:
    token = getattr(tokenizer, f"{kind}_token_id")
    if token is None:
        remedy = {"bos": "set bos_per_block to false", "eos": "use join 'blank_line'"}[kind]
        raise UserError(f"the tokenizer {tokenizer.name_or_path!r} has no {kind} token; {remedy}")
    return int(token)
