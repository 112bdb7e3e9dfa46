"""Writes one export, compares it with the masked model, and describes it in `export.json`.

Shapes: B sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pgprune_lightning.atomic_directory import files_in
from pgprune_lightning.atomic_write import write_atomically
from pgprune_lightning.credentials import hidden
from pgprune_lightning.errors import UserError
from pgprune_lightning.evaluation.provenance import provenance
from pgprune_lightning.export.export_format import (
    ROUNDING,
    ExportFormat,
    ExportOptions,
    PrunedModel,
)
from pgprune_lightning.export.runtimes import runtime_verdicts
from pgprune_lightning.masking.dense_masked import DenseMaskedExecution
from pgprune_lightning.policy import scope_costs
from pgprune_lightning.record_file import read_object

SEQUENCES, TOKENS = 2, 64
LARGEST_IN_FLOAT32 = 4_000_000_000
"""Parameters of the largest model that is checked in float32; others would not fit twice."""


@dataclass(frozen=True)
class SelfCheck:
    """Largest absolute differences of logits from those of the masked model.

    Args:
        cut: Of the model that was cut in memory.
        reloaded: Of what lies on the disk; None if nothing here can read it.
        largest_logit: Largest absolute logit of the masked model, to judge the others by.
        dtype: The type that was computed in.
    """

    cut: float
    reloaded: float | None
    largest_logit: float
    dtype: torch.dtype


@torch.no_grad()
def check_export(
    pruned: PrunedModel, export_format: ExportFormat, folder: Path, options: ExportOptions
) -> SelfCheck:
    """Compute the logits of the masked, the cut and the reloaded model.

    Args:
        pruned: What was exported.
        export_format: How.
        folder: Where it was written.
        options: What the user chose.

    Returns:
        The differences.

    Raises:
        UserError: One is larger than rounding explains.
    """
    device = pruned.dense.device
    tokens_BT = check_tokens(pruned.dense).to(device)
    with _precise(pruned.dense), _precise(pruned.cut):
        with DenseMaskedExecution(pruned.dense, pruned.plan.space).masked(
            pruned.mask_U.to(device)
        ) as masked:
            expected = masked(tokens_BT, use_cache=False).logits.float()
        cut = _difference(pruned.cut(tokens_BT, use_cache=False).logits, expected)
        read = export_format.reload(folder, pruned, device)
        reloaded = None if read is None else _difference(read(tokens_BT), expected)
        largest = float(expected.abs().max())
        check = SelfCheck(cut, reloaded, largest, pruned.dense.dtype)
        share = export_format.tolerance(options) or ROUNDING[pruned.dense.dtype]
        tolerance = share * max(1.0, largest)
    for name, difference in (("cut", cut), ("reloaded", reloaded)):
        # "not <=", so that NaN is too much.
        if difference is not None and not difference <= tolerance:
            raise UserError(
                f"export: the {name} model's logits differ from the masked model's by "
                f"{difference:.3g}, and rounding explains {tolerance:.3g}. Nothing was written. "
                "Please report it with the plan, or export another --format."
            )
    return check


def check_tokens(model: PreTrainedModel) -> Tensor:
    """The fixed batch: random tokens, the same for every model of a vocabulary, (B, T), int64."""
    config = model.config
    length = min(TOKENS, getattr(config, "max_position_embeddings", TOKENS))
    generator = torch.Generator().manual_seed(0)
    return torch.randint(config.vocab_size, (SEQUENCES, length), generator=generator)


def _difference(logits: Tensor, expected: Tensor) -> float:
    return float((logits.float().to(expected.device) - expected).abs().max())


@contextmanager
def _precise(model: PreTrainedModel) -> Iterator[None]:
    """Compute in float32 with the weights as they are, where that is affordable."""
    before = {parameter: parameter.dtype for parameter in model.parameters()}
    if model.num_parameters() <= LARGEST_IN_FLOAT32:
        _retype(model, dict.fromkeys(before, torch.float32))
    try:
        yield
    finally:
        _retype(model, before)


def _retype(model: nn.Module, dtypes: dict[nn.Parameter, torch.dtype]) -> None:
    # Not `model.to`, which would round buffers too, such as rotary frequencies.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtypes[parameter])


EXPORT_FILE = "export.json"
WEIGHT_FILES = (".safetensors", ".gguf")

ExportRecord = dict[str, Any]
"""What `export.json` holds."""


def write_export(
    pruned: PrunedModel, export_format: ExportFormat, options: ExportOptions, folder: Path
) -> ExportRecord:
    """Write an export into an empty folder and compare it with the masked model.

    Args:
        pruned: What is exported.
        export_format: How.
        options: What the user chose.
        folder: Where.

    Returns:
        What `export.json` holds, which is written last. Its `keep_ratio` is what was asked for, its
        `kept_share` what the mask keeps of the same budget.

    Raises:
        UserError: If the format cannot carry it, or its logits differ from the masked model's.
    """
    export_format.write(pruned, folder, options)
    check = check_export(pruned, export_format, folder, options)
    record = {
        "format": export_format.name,
        "keep_ratio": pruned.keep_ratio,
        "parameters": export_format.parameters(pruned),
        "dense_parameters": pruned.dense.num_parameters(),
        "bytes": weight_bytes(folder),
        "dense_bytes": export_format.dense_bytes(pruned, options),
        "max_logit_difference": check.reloaded,
        "max_logit_difference_of_cut": check.cut,
        "largest_logit": check.largest_logit,
        "checked_in": _name(check.dtype),
        "runtimes": runtime_verdicts(pruned, export_format.name),
        **_describe(pruned, export_format, options),
        "files": sorted([*files_in(folder), EXPORT_FILE]),
    }
    write_record(folder, record)
    return record


def _describe(
    pruned: PrunedModel, export_format: ExportFormat, options: ExportOptions
) -> dict[str, Any]:
    plan = pruned.plan
    has_types = export_format.name == "gguf"
    costs_U = scope_costs(plan.space, plan.budget["scope"])
    return {
        "kept_share": float(costs_U @ pruned.mask_U.cpu().double() / costs_U.sum()),
        "dtype": options.quantization if has_types else _name(options.dtype),
        "kept_units": plan.space.kept_by_kind(pruned.mask_U),
        "layers": [asdict(layer) for layer in pruned.widths],
        "plan": {
            "base_model": asdict(plan.base_model),
            "budget": plan.budget,
            "step": plan.step,
            "validation": plan.validation,
            "is_its_own_mask": torch.equal(pruned.mask_U.cpu(), plan.mask_U.cpu()),
        },
        "provenance": provenance(pruned.dense.device),
    }


def read_record(folder: Path) -> ExportRecord | None:
    """Read `export.json`; None where the folder has none.

    Raises:
        UserError: If it cannot be read.
    """
    path = folder / EXPORT_FILE
    return read_object(path, "export") if path.exists() else None


def write_record(folder: Path, record: ExportRecord) -> None:
    """Write `export.json`; a plan of others may name its model with a token."""
    text = json.dumps(hidden(record), indent=1, allow_nan=False) + "\n"
    write_atomically(folder / EXPORT_FILE, text.encode())


def weight_bytes(folder: Path) -> int:
    """Size of the weight files of a folder, in bytes."""
    return sum(file.stat().st_size for file in folder.iterdir() if file.suffix in WEIGHT_FILES)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
