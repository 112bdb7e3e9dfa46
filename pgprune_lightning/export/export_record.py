"""Writing one export, checking it, and saying in `export.json` what it is."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from pgprune_lightning.atomic_directory import files_in
from pgprune_lightning.atomic_write import write_atomically
from pgprune_lightning.credentials import hidden
from pgprune_lightning.evaluation.provenance import provenance
from pgprune_lightning.export.export_format import ExportFormat, ExportOptions, PrunedModel
from pgprune_lightning.export.runtimes import runtime_verdicts
from pgprune_lightning.export.self_check import check_export
from pgprune_lightning.policy import scope_costs
from pgprune_lightning.record_file import read_object

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
