"""From a row to a model that can be measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pgprune_lightning.errors import UserError
from pgprune_lightning.evaluation import Evaluated, TorchModel
from pgprune_lightning.export import open_planned_model
from pgprune_lightning.export.export_record import read_record
from pgprune_lightning.masking.frozen_model import read_model_config, resolve_dtype
from pgprune_lightning.masking.model_reuse import open_frozen_model
from pgprune_lightning.masking.model_source import resolve_model_source
from pgprune_lightning.masking.tokenizer import load_tokenizer
from pgprune_lightning.model_table.llama_cpp_row import LlamaCppRow
from pgprune_lightning.model_table.row import Row, gguf_architecture
from pgprune_lightning.slicing import cut_model


@dataclass(frozen=True)
class Loading:
    """How models are loaded.

    Args:
        dtype: Type of the weights; see `resolve_dtype`.
        device: Where they go.
        tokenizer: Where the tokenizer lies of GGUF files that transformers does not read.
        context_length: Tokens that llama.cpp makes room for.
    """

    dtype: str
    device: torch.device
    tokenizer: str | None = None
    context_length: int = 2048

    def check(self) -> None:
        """Refuse what could not be loaded with.

        Raises:
            UserError: If there is no such type, or no such tokenizer.
        """
        resolve_dtype(self.dtype, self.device)
        if self.tokenizer is not None:
            resolve_model_source(self.tokenizer)


@dataclass(frozen=True)
class Opened:
    """A model that can be measured.

    Args:
        evaluated: The model.
        model: As transformers runs it; None where another program does.
    """

    evaluated: Evaluated
    model: PreTrainedModel | None


def model_type_of(row: Row) -> str:
    """The family of a row's model.

    Raises:
        UserError: If its configuration cannot be read.
    """
    if row.plan is not None:
        return row.plan.base_model.model_type
    if row.kind == "llama.cpp":
        return gguf_architecture(row.file) or "unknown"
    return str(read_model_config(row.source).model_type)


def num_tokens_of(row: Row) -> int | None:
    """Rows of the embedding of a row's model; None where llama.cpp runs it.

    Raises:
        UserError: If its configuration cannot be read.
    """
    if row.kind == "llama.cpp":
        return None
    return int(read_model_config(row.source).get_text_config().vocab_size)


def tokenizer_of(row: Row, loading: Loading) -> PreTrainedTokenizerBase:
    """The tokenizer of a row's model.

    Raises:
        UserError: If there is none.
    """
    if row.kind != "llama.cpp":
        return load_tokenizer(row.source.given)
    if loading.tokenizer is not None:
        return load_tokenizer(loading.tokenizer)
    for source in (row.source.given, _exported_from(row.file.parent)):
        try:
            if source is not None:
                return load_tokenizer(source)
        except UserError:  # transformers does not read every GGUF file
            continue
    raise UserError(
        f"transformers cannot read the tokenizer in {row.given!r}; name the dense model's by "
        "--tokenizer."
    )


def _exported_from(folder: Path) -> str | None:
    """The dense model that an export was made of; None where the folder does not say."""
    try:
        record = read_record(folder) or {}
        return str(record["plan"]["base_model"]["source"])
    except (UserError, KeyError, TypeError):
        return None


def open_row(row: Row, loading: Loading) -> Opened:
    """Load a row's model; of a plan, the dense model, which is then cut.

    Inside `one_model_kept` a dense model is loaded once for itself and for all of its plans.

    Raises:
        UserError: If it cannot be loaded, or is not the one that the plan was learned on.
    """
    if row.kind == "llama.cpp":
        return Opened(LlamaCppRow(row.file, loading.context_length), None)
    model = _cut(row, loading) if row.plan is not None else _whole(row, loading)
    return Opened(TorchModel(model), model)


def _whole(row: Row, loading: Loading) -> PreTrainedModel:
    dtype = resolve_dtype(loading.dtype, loading.device)
    return open_frozen_model(row.source, dtype=dtype, device=loading.device, attention="sdpa")


def _cut(row: Row, loading: Loading) -> PreTrainedModel:
    assert row.plan_folder is not None
    planned = open_planned_model(
        row.plan_folder,
        device=loading.device,
        dtype=loading.dtype,
        base_model=row.source.given,
    )
    return cut_model(planned.model, planned.plan.space, planned.plan.mask_U)
