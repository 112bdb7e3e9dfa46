"""Alpaca's instructions, as prompts and responses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import datasets
import torch
from transformers import PreTrainedTokenizerBase

from pgprune_lightning.data.documents import cause_of, load_columns, text_columns
from pgprune_lightning.data.text_source import TextSource, file_format
from pgprune_lightning.errors import UserError, about
from pgprune_lightning.masking.tokenizer import check_tokens
from pgprune_lightning.recovery.lora import LoraOptions

ALPACA = "tatsu-lab/alpaca"
"""The 52,002 records that the paper cites; LLM-Pruner takes `yahma/alpaca-cleaned`."""

NOT_SCORED = -100
"""The target of tokens that are not to be learned, as PyTorch's cross-entropy has it."""

Example = tuple[list[int], list[int]]
"""Token ids of a record and the targets that `tokenize_record` gives them."""


@dataclass(frozen=True)
class AlpacaRecord:
    """One task and its answer.

    Args:
        instruction: What is to be done.
        input: What it is to be done with; may be empty.
        output: The answer.
    """

    instruction: str
    input: str
    output: str


def read_alpaca(path: str = ALPACA) -> list[AlpacaRecord]:
    """Read records.

    Args:
        path: Hub dataset, or a file of JSON lines or Parquet; each record has `instruction`,
            `input` and `output`.

    Raises:
        UserError: If the records cannot be read or have other fields.
    """
    names = [field.name for field in fields(AlpacaRecord)]
    table = _load(path, names, f"each record has {', '.join(names)}")
    columns = [[text or "" for text in table[name]] for name in names]
    return [AlpacaRecord(*row) for row in zip(*columns, strict=True)]


def _load(path: str, names: list[str], advice: str) -> datasets.Dataset:
    files = TextSource(path).local_files()
    if files is not None:
        if file_format(files[0]) in ("plain", "wikitext"):
            raise UserError(f"{path} is plain text; give records as .jsonl or .parquet")
        return load_columns(files, names, advice)
    try:
        table = datasets.load_dataset(path, split="train")
    except Exception as error:  # datasets and the hub raise errors of many kinds
        raise UserError(
            f"{path!r} is no local path and cannot be had from the hub ({cause_of(error)}); give "
            "a .jsonl or .parquet file, or a hub dataset"
        ) from error
    with about(path):
        return text_columns(table, names, advice)


def prompt_of(record: AlpacaRecord) -> str:
    """Ask for the answer in the words that Alpaca was trained with.

    Source: Taori et al. 2023, Stanford Alpaca.
    """
    context = ", paired with an input that provides further context" if record.input else ""
    given = f"### Input:\n{record.input}\n\n" if record.input else ""
    return (
        f"Below is an instruction that describes a task{context}. "
        "Write a response that appropriately completes the request.\n\n"
        f"### Instruction:\n{record.instruction}\n\n{given}### Response:\n"
    )


def tokenize_record(
    record: AlpacaRecord, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[list[int], list[int]]:
    """Turn a record into tokens and what is to be learned of them: the answer and its end.

    Args:
        record: The record.
        tokenizer: The model's.
        max_length: Tokens at most; the rest is cut off.

    Returns:
        Token ids, and as many targets: the same ids in the answer, `NOT_SCORED` before it.
    """
    prompt = prompt_of(record)
    ids = _without_end(tokenizer, prompt + record.output)
    num_prompt = len(_without_end(tokenizer, prompt))
    ids = [*ids, _end_of(tokenizer)][:max_length]
    return ids, [NOT_SCORED] * min(num_prompt, len(ids)) + ids[num_prompt:]


def _without_end(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Some tokenizers end every text, and a prompt does not end."""
    encoded: Any = tokenizer(text)
    ids: list[int] = list(encoded.input_ids)
    return ids[:-1] if ids and ids[-1] == _end_of(tokenizer) else ids


def _end_of(tokenizer: PreTrainedTokenizerBase) -> int:
    assert isinstance(tokenizer.eos_token_id, int), "load_tokenizer refuses a tokenizer without one"
    return tokenizer.eos_token_id


def draw_examples(
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[AlpacaRecord],
    options: LoraOptions,
    num_rows: int,
) -> list[Example]:
    """Draw the records that are trained on, and leave out those whose answer is cut off.

    Args:
        tokenizer: The model's.
        records: To draw from.
        options: How many, by which seed, and how long.
        num_rows: Rows of the model's embedding.

    Returns:
        At most `options.num_records` examples.

    Raises:
        UserError: If no record has an answer within `max_length`, or one has a token that the model
            has no row for.
    """
    generator = torch.Generator().manual_seed(options.seed)
    drawn = torch.randperm(len(records), generator=generator)[: options.num_records].tolist()
    examples = [tokenize_record(records[index], tokenizer, options.max_length) for index in drawn]
    answered = [example for example in examples if example[1] and example[1][-1] != NOT_SCORED]
    if not answered:
        raise UserError(
            f"finetuning: none of {len(examples)} records has an answer within max_length = "
            f"{options.max_length} tokens; raise it, or give other records."
        )
    largest = [max(ids) for ids, _ in answered]
    check_tokens(largest, tokenizer, num_rows, "finetuning: a record")
    return answered
