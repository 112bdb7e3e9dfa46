"""A whole export: the model loaded once, every mask written and checked, the curve measured."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pgprune_lightning.atomic_directory import atomic_directory, check_no_foreign_files
from pgprune_lightning.data.token_blocks import TokenBlocks
from pgprune_lightning.errors import UserError
from pgprune_lightning.export.curve import (
    CURVE_FILE,
    CurveText,
    curve_point,
    perplexity_of,
    write_curve,
)
from pgprune_lightning.export.export_choice import ExportChoice
from pgprune_lightning.export.export_format import ExportFormat, ExportOptions, PrunedModel
from pgprune_lightning.export.export_record import EXPORT_FILE, ExportRecord, write_export
from pgprune_lightning.export.planned_model import PlannedModel, open_planned_model
from pgprune_lightning.number_text import bytes_text, count_text, share_text


@dataclass(frozen=True)
class ExportRequest:
    """An export that has been checked as far as it can be without weights.

    Args:
        plan: Folder of the plan, or of its run.
        base_model: Where the dense model lies now; None: where it lay.
        export_format: What is written.
        options: What the user chose of the files.
        choices: One mask for each export; several go to folders of their own.
        text: What perplexity is measured on; None: it is not.
        blocks: Its tokens; None: it is not, because there is no text or it cannot be reached.
        device: Where the model runs.
        output: Folder of the result.
    """

    plan: Path
    base_model: str | None
    export_format: ExportFormat
    options: ExportOptions
    choices: Sequence[ExportChoice]
    text: CurveText | None
    blocks: TokenBlocks | None
    device: torch.device
    output: Path


def check_output(output: Path, *, replace: bool) -> None:
    """Refuse a folder that must not be replaced, before anything is loaded.

    Args:
        output: The folder.
        replace: Whether an earlier export may be replaced.

    Raises:
        UserError: If it holds something that is no export, an export that is not to be replaced, or
            files besides that an export did not write.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    is_export = any((output / name).is_file() for name in (EXPORT_FILE, CURVE_FILE))
    if not is_export:
        raise UserError(
            f"--output: {output} exists and is no earlier export, so it is left alone. Give the "
            "name of a new folder."
        )
    if not replace:
        raise UserError(
            f"--output: {output} already holds an export. Give another folder, or --existing "
            "replace."
        )
    check_no_foreign_files(output, (EXPORT_FILE, CURVE_FILE), "export")


def run_export(request: ExportRequest, tell: Callable[[str], None]) -> list[ExportRecord]:
    """Write everything that was asked for, or nothing.

    Args:
        request: What was asked for; its output is claimed (`claimed_directory`).
        tell: Takes a line for the user.

    Returns:
        What the `export.json` of each export holds.

    Raises:
        UserError: If the model cannot be loaded or does not fit, a self-check fails, or the disk
            does not take the files.
    """
    dtype = request.export_format.weights_dtype(request.options)
    planned = open_planned_model(
        request.plan,
        device=request.device,
        dtype=str(dtype).removeprefix("torch."),
        base_model=request.base_model,
    )
    with atomic_directory(request.output) as folder:
        return _write_all(request, planned, folder, tell)


def _write_all(
    request: ExportRequest, planned: PlannedModel, folder: Path, tell: Callable[[str], None]
) -> list[ExportRecord]:
    blocks = request.blocks
    points: list[dict[str, Any]] = []
    records = []
    for choice in request.choices:
        pruned = PrunedModel(planned, choice.mask_U, choice.widths, choice.keep_ratio)
        place = folder
        if len(request.choices) > 1:
            place = folder / choice.folder_name
            place.mkdir()
        record = write_export(pruned, request.export_format, request.options, place)
        records.append(record)
        name = f"keep ratio {choice.keep_ratio:g}"
        perplexity = None if blocks is None else perplexity_of(pruned.cut, blocks, name)
        points.append(curve_point(record, perplexity))
        tell(summary(record, perplexity))
        if len(request.choices) == 1:
            tell(verdicts(record))
        del pruned
        gc.collect()  # cut models are cycles, and two may not fit
    if request.text is not None:
        perplexity = None if blocks is None else perplexity_of(planned.model, blocks, "dense")
        dense = {
            "keep_ratio": None,
            "parameters": records[0]["dense_parameters"],
            "bytes": records[0]["dense_bytes"],
            "max_logit_difference": None,
            "perplexity": perplexity,
        }
        if perplexity is not None:
            tell(f"dense: perplexity {perplexity:.2f}")
        write_curve(folder, {"text": _about(request.text, blocks), "points": [dense, *points]})
    return records


def _about(text: CurveText, blocks: Any) -> dict[str, Any] | None:
    if blocks is None:
        return None
    return {
        "label": text.source.title,
        "path": text.source.path,
        "sequence_length": text.block_length,
        "tokens": blocks.num_tokens,
        "bos_per_block": text.bos_per_block,
    }


def summary(record: ExportRecord, perplexity: float | None = None) -> str:
    """An export in a line: its size and its self-check."""
    share = record["parameters"] / record["dense_parameters"]
    difference = record["max_logit_difference"]
    read_back = (
        "not measured, no reader is installed" if difference is None else f"{difference:.2g}"
    )
    return (
        f"{record['format']}, keep ratio {record['keep_ratio']:g}: "
        f"{count_text(record['parameters'])} of {count_text(record['dense_parameters'])} "
        f"parameters ({share_text(share, 0)}), {bytes_text(record['bytes'])} of weights (dense "
        f"{bytes_text(record['dense_bytes'])}); largest logit difference {read_back}"
        + ("" if perplexity is None else f"; perplexity {perplexity:.2f}")
    )


def verdicts(record: ExportRecord) -> str:
    """Which programs accept an export, a line each."""
    return "\n".join(
        f"  {runtime}: " + ("yes" if verdict["accepts"] else f"no: {verdict['reason']}")
        for runtime, verdict in record["runtimes"].items()
    )
