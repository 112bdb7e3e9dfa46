"""Records become prompts and answers, and only answers are learned."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from transformers import PreTrainedTokenizerBase

from pgprune_lightning.errors import UserError
from pgprune_lightning.masking.tokenizer import load_tokenizer
from pgprune_lightning.recovery.alpaca import (
    NOT_SCORED,
    AlpacaRecord,
    prompt_of,
    read_alpaca,
    tokenize_record,
)

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
    with pytest.raises(UserError, match=r"no field 'output'.* has instruction, input, output"):
        read_alpaca(str(tmp_path / "a.jsonl"))


def test_records_whose_answers_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"instruction": "a", "input": "b", "output": 3}\n')
    with pytest.raises(UserError, match=r"a\.jsonl: field 'output' holds int64, not text"):
        read_alpaca(str(tmp_path / "a.jsonl"))


def test_records_are_decoded_as_texts_are(tmp_path: Path) -> None:
    record = {"instruction": "Name a drink.", "input": "", "output": "café"}
    content = json.dumps(record, ensure_ascii=False) + "\n"
    (tmp_path / "a.jsonl").write_bytes(content.encode("utf-16"))
    assert read_alpaca(str(tmp_path / "a.jsonl")) == [AlpacaRecord(**record)]
    (tmp_path / "b.jsonl").write_bytes(content.encode("cp1252"))
    with pytest.warns(UserWarning, match=r"b\.jsonl: it is no UTF-8"):
        assert read_alpaca(str(tmp_path / "b.jsonl")) == [AlpacaRecord(**record)]


def test_records_in_the_parquet_that_polars_writes(tmp_path: Path) -> None:
    record = {"instruction": "Name a drink.", "input": None, "output": "coffee"}
    columns = {name: pa.array([text], type=pa.string_view()) for name, text in record.items()}
    pyarrow.parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
    expected = AlpacaRecord("Name a drink.", "", "coffee")
    assert read_alpaca(str(tmp_path / "a.parquet")) == [expected]


def test_plain_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a text")
    with pytest.raises(UserError, match=r"a\.txt is plain text; give records"):
        read_alpaca(str(tmp_path / "a.txt"))


def test_a_damaged_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"instruction": \n')
    with pytest.raises(UserError, match=r"a\.jsonl cannot be read as json: "):
        read_alpaca(str(tmp_path / "a.jsonl"))
