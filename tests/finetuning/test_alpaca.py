"""Records become prompts and answers, and only answers are learned."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from pgprune_lightning.errors import UserError
from pgprune_lightning.finetuning.alpaca import (
    NOT_SCORED,
    AlpacaRecord,
    prompt_of,
    read_alpaca,
    tokenize_record,
)
from pgprune_lightning.masking.tokenizer import load_tokenizer

PLAIN = AlpacaRecord("Say hello.", "", "Hello there")
WITH_INPUT = AlpacaRecord("Add them.", "1, 2", "3")


@pytest.fixture(scope="module")
def tokenizer(pgprune_data: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(str(pgprune_data / "stories260K"))


def test_the_template() -> None:
    assert prompt_of(PLAIN) == (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\nSay hello.\n\n### Response:\n"
    )
    assert prompt_of(WITH_INPUT) == (
        "Below is an instruction that describes a task, paired with an input that provides further "
        "context. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd them.\n\n### Input:\n1, 2\n\n### Response:\n"
    )


@pytest.mark.parametrize("record", [PLAIN, WITH_INPUT])
def test_targets_are_the_answer_and_its_end(
    tokenizer: PreTrainedTokenizerBase, record: AlpacaRecord
) -> None:
    ids, targets = tokenize_record(record, tokenizer, max_length=1000)
    assert len(ids) == len(targets)
    assert tokenizer.decode(ids, skip_special_tokens=True) == prompt_of(record) + record.output
    learned = [target for target in targets if target != NOT_SCORED]
    assert targets == [NOT_SCORED] * (len(ids) - len(learned)) + ids[-len(learned) :]
    assert tokenizer.decode(learned[:-1]).strip() == record.output
    assert learned[-1] == tokenizer.eos_token_id


def test_a_tokenizer_that_ends_every_text(tokenizer: PreTrainedTokenizerBase) -> None:
    class Ending:
        eos_token_id = tokenizer.eos_token_id

        def __call__(self, text: str) -> object:
            encoded = tokenizer(text)
            encoded["input_ids"].append(tokenizer.eos_token_id)
            return encoded

    expected = tokenize_record(PLAIN, tokenizer, 1000)
    assert tokenize_record(PLAIN, Ending(), 1000) == expected  # type: ignore[arg-type]


def test_what_is_too_long_is_cut_off(tokenizer: PreTrainedTokenizerBase) -> None:
    whole_ids, whole_targets = tokenize_record(PLAIN, tokenizer, max_length=1000)
    for max_length in (len(whole_ids) - 2, 5):
        ids, targets = tokenize_record(PLAIN, tokenizer, max_length)
        assert (ids, targets) == (whole_ids[:max_length], whole_targets[:max_length])


def test_reads_the_shared_records(pgprune_data: Path) -> None:
    path = pgprune_data / "alpaca" / "alpaca_9k.jsonl"
    records = read_alpaca(str(path))
    assert len(records) == 9229
    for record, line in zip(records[:50], path.read_text().splitlines(), strict=False):
        assert vars(record) == json.loads(line)


def test_records_without_an_answer(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"instruction": "a", "input": "b"}\n')
    with pytest.raises(UserError, match=r"have no output; a record has instruction, input, output"):
        read_alpaca(str(tmp_path / "a.jsonl"))


def test_plain_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a text")
    with pytest.raises(UserError, match=r"a\.txt is plain text; give records"):
        read_alpaca(str(tmp_path / "a.txt"))


def test_a_damaged_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"instruction": \n')
    with pytest.raises(UserError, match=r"records of .*a\.jsonl cannot be read"):
        read_alpaca(str(tmp_path / "a.jsonl"))
