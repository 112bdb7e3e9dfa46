"""Measuring all rows, and writing what comes of it."""

from __future__ import annotations

import gc
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from pgprune_lightning.atomic_write import write_atomically
from pgprune_lightning.console import print_error
from pgprune_lightning.errors import UserError, about
from pgprune_lightning.evaluation import Evaluated, ModelFacts, provenance
from pgprune_lightning.masking.frozen_model import read_model_config
from pgprune_lightning.masking.model_reuse import one_model_kept
from pgprune_lightning.masking.positions import check_lengths
from pgprune_lightning.masking.tokenizer import check_tokens
from pgprune_lightning.model_table import table
from pgprune_lightning.model_table.opening import (
    Loading,
    model_type_of,
    num_tokens_of,
    open_row,
    tokenizer_of,
)
from pgprune_lightning.model_table.passage import Passage, passage_title, read_passages
from pgprune_lightning.model_table.protocol import Protocol, SpeedProtocol
from pgprune_lightning.model_table.quality import Attempts, measure_quality, message_of
from pgprune_lightning.model_table.row import Row
from pgprune_lightning.model_table.speed import time_in_turn

FORMAT = "pgprune-evaluation"
VERSION = 1


@dataclass(frozen=True)
class Prepared:
    """A row whose texts are tokenised.

    Args:
        row: The row.
        tokenizer: Its model's.
        passages: The texts.
        has_bos: Whether blocks begin with BOS.
    """

    row: Row
    tokenizer: PreTrainedTokenizerBase
    passages: list[Passage]
    has_bos: bool


def output_files(output: Path) -> tuple[Path, Path, Path]:
    """The files of a result: JSON, CSV and Markdown."""
    return output, output.with_suffix(".csv"), output.with_suffix(".md")


def prepare(rows: Sequence[Row], protocol: Protocol, loading: Loading) -> list[Prepared]:
    """Read tokenizers and texts, before any weights.

    Raises:
        UserError: If a model's configuration, a tokenizer or a text cannot be read, or llama.cpp
            is asked for what it is not made to do here.
    """
    batch_size = 1 if protocol.speed is None else protocol.speed.batch_size
    if batch_size > 1 and any(row.kind == "llama.cpp" for row in rows):
        raise UserError(f"--batch-size: llama.cpp reads one sequence here, given {batch_size}.")
    return [_prepared(row, protocol, loading) for row in rows]


def _prepared(row: Row, protocol: Protocol, loading: Loading) -> Prepared:
    with about(f"--model {row.name}"):
        model_type = model_type_of(row)
        if row.kind != "llama.cpp":
            check_lengths(read_model_config(row.source), protocol.lengths())
        tokenizer = tokenizer_of(row, loading)
        passages = read_passages(protocol.text, tokenizer, model_type)
        if (num_rows := num_tokens_of(row)) is not None:
            for passage in passages:
                check_tokens(passage.token_ids, tokenizer, num_rows, f"--texts: {passage.title}")
    return Prepared(row, tokenizer, passages, protocol.text.has_bos(model_type))


def run_evaluation(
    prepared: Sequence[Prepared],
    protocol: Protocol,
    loading: Loading,
    output: Path,
    command: str,
) -> bool:
    """Measure all rows; write the result anew whenever a row is finished, and print it at the end.

    Args:
        prepared: The rows.
        protocol: What is measured.
        loading: How models are loaded.
        output: The JSON file; a table as CSV and Markdown goes beside it.
        command: How the program was called.

    Returns:
        Whether everything could be measured.
    """
    run = _Run(protocol, loading, output, command)
    with one_model_kept():
        if protocol.text.texts or protocol.zero_shot.tasks:
            for each in prepared:
                run.add_quality(each)
        if protocol.speed is not None:
            run.add_speed(prepared, protocol.speed)
    table.print_table(run.result)
    print(f"Written to {', '.join(map(str, output_files(output)))}")
    return not run.result["errors"]


class _Run:
    """A result as it grows; on the disk it is as far as the last row."""

    def __init__(self, protocol: Protocol, loading: Loading, output: Path, command: str) -> None:
        self.protocol = protocol
        self.loading = loading
        self.output = output
        self.result: table.Result = {
            "format": FORMAT,
            "version": VERSION,
            "protocol": protocol.describe(),
            "passages": _described_passages(protocol),
            "models": [],
            "errors": {},
            "provenance": provenance(loading.device) | {"command": command},
        }

    def add_quality(self, each: Prepared) -> None:
        """Measure a model, and let it go again."""
        attempts = Attempts(each.row.name, partial(print, flush=True))
        try:
            opened = open_row(each.row, self.loading)
        except Exception as error:  # other rows are worth having without this one
            self._fail(each.row.name, [message_of(error)])
        else:
            measure_quality(opened, each.tokenizer, each.passages, self.protocol, attempts)
            self._entry(each, opened.evaluated.facts).update(attempts.values)
            self._fail(each.row.name, attempts.errors)
            del opened
        _free_memory(self.loading.device)
        self._write()

    def add_speed(self, prepared: Sequence[Prepared], protocol: SpeedProtocol) -> None:
        """Time all models that can be loaded, together in memory."""
        models: dict[str, Evaluated] = {}
        for each in prepared:
            name = each.row.name
            if name in self.result["errors"] and name not in self._entries:
                continue  # it could not be loaded
            try:
                models[name] = open_row(each.row, self.loading).evaluated
            except Exception as error:  # other rows are worth having without this one
                self._fail(name, [message_of(error)])
            else:
                self._entry(each, models[name].facts)
        measured, errors = time_in_turn(models, protocol)
        for name, values in measured.items():
            self._entries[name]["speed"] = values
        for name, message in errors.items():
            self._fail(name, [f"speed: {message}"])
        self._write()

    @property
    def _entries(self) -> dict[str, dict[str, Any]]:
        return {entry["model"]: entry for entry in self.result["models"]}

    def _entry(self, each: Prepared, facts: ModelFacts) -> dict[str, Any]:
        """What the result says of a model; made where it says nothing yet."""
        row = each.row
        if row.name not in self._entries:
            self.result["models"].append(
                {
                    "model": row.name,
                    "kind": row.kind,
                    "source": row.given,
                    "disk_bytes": row.disk_bytes,
                    **asdict(facts),
                    "bos_per_block": each.has_bos,
                    **_plan_facts(row),
                }
            )
        return self._entries[row.name]

    def _fail(self, name: str, messages: Sequence[str]) -> None:
        if not messages:
            return
        message = "; ".join(dict.fromkeys(messages))
        print_error(f"{name}: {message}")
        errors = self.result["errors"]
        errors[name] = f"{errors[name]}; {message}" if name in errors else message

    def _write(self) -> None:
        texts = (
            json.dumps(self.result, indent=1, allow_nan=False) + "\n",
            table.csv_text(self.result),
            table.markdown(self.result),
        )
        for path, text in zip(output_files(self.output), texts, strict=True):
            write_atomically(path, text.encode())


def _described_passages(protocol: Protocol) -> list[dict[str, Any]]:
    asked = protocol.text
    strides = [(length, None) for length in asked.lengths]
    windows = [] if asked.stride is None else [(max(asked.lengths), asked.stride)]
    return [
        {
            "title": passage_title(source.title, length, stride),
            "text": source.title,
            "length": length,
            "stride": stride,
        }
        for source in asked.texts
        for length, stride in (*strides, *windows)
    ]


def _plan_facts(row: Row) -> dict[str, Any]:
    if row.plan is None:
        return {}
    plan = row.plan
    return {
        "base_model": row.source.given,
        "keep_ratio": plan.budget.get("keep_ratio"),
        "plan_step": plan.step,
        "plan_validation": plan.validation,
    }


def _free_memory(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
