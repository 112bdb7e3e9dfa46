"""Documents become one stream of tokens, and the stream becomes blocks of equal length.

Shapes: N blocks, L tokens a block.
"""

from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from pgprune_lightning.data.documents import (
    document_order,
    read_documents,
    spaced_documents,
)
from pgprune_lightning.data.text_source import TextSource, file_format
from pgprune_lightning.data.typography import spaced
from pgprune_lightning.errors import UserError, about

_DOCUMENTS_AT_ONCE = 256
_SHOW_PROGRESS_AFTER_SECONDS = 3.0


def tokenise_blocks(
    source: TextSource,
    tokenizer: PreTrainedTokenizerBase,
    block_length: int,
    *,
    seed: int | None = None,
    bos_per_block: bool = False,
) -> NDArray[np.int32]:
    """Read a text, tokenise it and cut it into full blocks; what is left at the end is dropped.

    Args:
        source: The text, and how its documents are joined.
        tokenizer: Of the model that will read the blocks.
        block_length: Tokens in a block, BOS included.
        seed: Seed of the documents' order for training; None: a fixed order.
        bos_per_block: Begin every block with the tokenizer's BOS token.

    Returns:
        Token ids, shape (N, L), int32.

    Raises:
        SourceUnavailable: The text is missing or the hub cannot be reached.
        UserError: The text cannot be read or is too short for one block, or the tokenizer lacks
            the special token that is asked for.
    """
    bos = _special_token(tokenizer, "bos") if bos_per_block else None
    text_length = block_length - (bos is not None)
    documents = read_documents(source)
    order = document_order(len(documents), source, seed)
    with about(source.described):
        _refuse_empty_part(source, len(documents), len(order))
    if source.spaced_punctuation:
        documents = _typeset(documents, source)
    if source.join == "blank_line":
        # With a BOS in every block, the one the tokenizer sets before the text would be a second.
        stream = _tokenise_whole(documents, tokenizer, add_special_tokens=bos is None)
    else:
        wanted = None if source.num_blocks is None else source.num_blocks * text_length
        stream = _tokenise_documents(documents, order, tokenizer, wanted)
    num_blocks = len(stream) // text_length
    if num_blocks == 0:
        raise UserError(
            f"{source.described}: too short for one block: {len(stream)} tokens found in "
            f"{_documents_of(source, len(documents), len(order))}, {text_length} needed; give more "
            "text or a smaller block length"
        )
    blocks = stream[: num_blocks * text_length].reshape(num_blocks, text_length)
    if source.num_blocks is not None and source.num_blocks < num_blocks:
        blocks = blocks[_chosen_blocks(num_blocks, source)]
    if bos is None:
        return blocks
    return np.insert(blocks, 0, bos, axis=1)


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


def _documents_of(source: TextSource, num_documents: int, num_used: int) -> str:
    part = "" if num_used == num_documents else f"part {list(source.part)}, {num_used} of "
    return f"{part}{_counted(num_documents)}"


def _counted(num_documents: int) -> str:
    return "1 document" if num_documents == 1 else f"{num_documents} documents"


def _typeset(documents: datasets.Dataset, source: TextSource) -> datasets.Dataset:
    """Write the documents that are to have spaced punctuation so, as they are read."""
    is_spaced = spaced_documents(len(documents), source)

    def typeset(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        pairs = zip(rows["text"], rows["is_spaced"], strict=True)
        return {"text": [spaced(text) if text and is_so else text for text, is_so in pairs]}

    return documents.add_column("is_spaced", is_spaced.tolist()).with_transform(typeset)


def _chosen_blocks(num_blocks: int, source: TextSource) -> NDArray[np.int64]:
    """The first ones; of one long text evenly spaced ones, which represent it better."""
    assert source.num_blocks is not None
    chosen = np.arange(source.num_blocks)
    return chosen * num_blocks // source.num_blocks if source.join == "blank_line" else chosen


def _tokenise_documents(
    documents: datasets.Dataset,
    order: NDArray[np.int64],
    tokenizer: PreTrainedTokenizerBase,
    wanted: int | None,
) -> NDArray[np.int32]:
    """One stream, each document followed by the end token; no more than is wanted is tokenised."""
    end_token = _special_token(tokenizer, "eos")
    pieces: list[NDArray[np.int32]] = []
    found = 0
    with tqdm(
        desc="tokenising",
        total=wanted,
        unit=" tokens",
        unit_scale=True,
        delay=_SHOW_PROGRESS_AFTER_SECONDS,
    ) as progress:
        for start in range(0, len(order), _DOCUMENTS_AT_ONCE):
            if wanted is not None and found >= wanted:
                break
            rows = documents[order[start : start + _DOCUMENTS_AT_ONCE].tolist()]["text"]
            texts = [text for text in rows if text]
            if not texts:
                continue
            ids = tokenizer(
                texts, add_special_tokens=False, return_attention_mask=False, verbose=False
            )["input_ids"]
            pieces += [np.array([*document, end_token], dtype=np.int32) for document in ids]
            new = sum(len(document) + 1 for document in ids)
            found += new
            progress.update(new)
    return np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int32)


def _tokenise_whole(
    documents: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, *, add_special_tokens: bool
) -> NDArray[np.int32]:
    text = "\n\n".join(row or "" for row in documents["text"])
    ids = tokenizer(
        text,
        add_special_tokens=add_special_tokens,
        return_attention_mask=False,
        verbose=False,  # no warning that the text is longer than the model's context
    )["input_ids"]
    return np.array(ids, dtype=np.int32)


def _special_token(tokenizer: PreTrainedTokenizerBase, kind: str) -> int:
    token = getattr(tokenizer, f"{kind}_token_id")
    if token is None:
        remedy = {"bos": "set bos_per_block to false", "eos": "use join 'blank_line'"}[kind]
        raise UserError(f"the tokenizer {tokenizer.name_or_path!r} has no {kind} token; {remedy}")
    return int(token)
