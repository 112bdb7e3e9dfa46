"""An exported model's folder: read to be tuned, and written again with other weights."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from pgprune_lightning.atomic_write import write_atomically
from pgprune_lightning.errors import UserError
from pgprune_lightning.export.export_record import (
    EXPORT_FILE,
    read_record,
    weight_bytes,
    write_record,
)
from pgprune_lightning.masking.frozen_model import load_frozen_model, resolve_dtype
from pgprune_lightning.masking.model_source import ModelSource
from pgprune_lightning.plan import PLAN_FILE
from pgprune_lightning.recovery.lora import probe_logits
from pgprune_lightning.training.metrics_file import METRICS_FILE

WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json", "*.gguf")
RESULT_FILE = "finetune.json"
RECORDS = (EXPORT_FILE, RESULT_FILE, METRICS_FILE)
"""What says how a folder's weights came about, and does not hold for others."""
FORMATS_HINT = "a folder that export --format hf, uniform or padded wrote."
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 1e-2}
"""How far logits may differ after reloading, as a share of the largest: by the order of sums."""


def read_exported_config(folder: Path) -> PreTrainedConfig:
    """Read the configuration of an exported model.

    Args:
        folder: Its folder.

    Raises:
        UserError: If it is no folder of a model that transformers can load, such as a plan, or its
            export.json is damaged.
    """
    if not folder.is_dir():
        raise UserError(f"--model: there is no folder {str(folder)!r}; give {FORMATS_HINT}")
    if (folder / PLAN_FILE).is_file() or (folder / "plans").is_dir():
        raise UserError(
            f"--model: {folder} is a run or a plan, which has no weights of its own; export it "
            f"first: python -m pgprune_lightning export --plan {folder} --format hf --output DIR"
        )
    if not (folder / "config.json").is_file():
        inside = sorted(path.parent.name for path in folder.glob("*/config.json"))
        raise UserError(
            f"--model: {folder} has no config.json; give "
            + (f"one of its folders: {', '.join(inside)}." if inside else FORMATS_HINT)
        )
    read_record(folder)  # it is carried over at the end, and must not fail then
    try:
        config: Any = AutoConfig.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    except Exception as error:  # transformers raises a different type for each kind of damage
        reason = " ".join(str(error).split())[:200].rstrip(" .")
        raise UserError(
            f"--model: {folder} cannot be read as a model: {reason}. Formats that can be "
            "fine-tuned: hf, uniform, padded."
        ) from error
    assert isinstance(config, PreTrainedConfig)
    return config


def dtype_of(config: PreTrainedConfig, name: str, device: torch.device) -> torch.dtype:
    """The type of the weights that a user asks for; `files`: that of the export."""
    if name != "files":
        return resolve_dtype(name, device)
    return config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32


def load_exported(folder: Path, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """Load an exported model, frozen.

    Raises:
        UserError: If its weights are damaged or missing.
    """
    return load_frozen_model(exported_source(folder), dtype=dtype, device=device)


def exported_source(folder: Path) -> ModelSource:
    """An export, as what it is loaded from."""
    return ModelSource(str(folder), str(folder))


def folder_digest(folder: Path) -> str:
    """Tell exports apart without reading their weights: what describes them, names and sizes."""
    digest = hashlib.sha256()
    for name in ("config.json", EXPORT_FILE):
        if (folder / name).is_file():
            digest.update((folder / name).read_bytes())
    for path in sorted(folder.iterdir()):
        if _is_weights(path):
            digest.update(f"{path.name} {path.stat().st_size}\n".encode())
    return digest.hexdigest()


def write_like(model: PreTrainedModel, exported: Path, folder: Path) -> None:
    """Write a model's weights, with all other files of the export that it was made from.

    Args:
        model: The model.
        exported: The folder that it was loaded from.
        folder: A new folder.

    Raises:
        UserError: If it cannot be written, such as on a full disk.
    """
    try:
        model.save_pretrained(folder)
        for file in sorted(exported.rglob("*")):
            inside = file.relative_to(exported)
            if file.is_file() and _belongs_to_model(inside):
                (folder / inside).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, folder / inside)
        _describe_weights(folder / "config.json", model)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"the tuned model cannot be written to {folder}: {error}. Make room, and go on with "
            "--resume auto: nothing that was trained is lost."
        ) from error


def check_reloaded(model: PreTrainedModel, merged_logits_BTV: torch.Tensor) -> float:
    """Compare what lies on the disk with what was written.

    Args:
        model: The model, reloaded.
        merged_logits_BTV: `Merged.logits_BTV`.

    Returns:
        The largest difference of logits.

    Raises:
        UserError: If it is more than rounding.
    """
    difference = float((probe_logits(model) - merged_logits_BTV).abs().max())
    allowed = TOLERANCE[model.dtype] * float(merged_logits_BTV.abs().max())
    if not difference <= allowed:
        raise UserError(
            f"the tuned model does not reload as it was: its logits differ by {difference:.3g}, "
            f"where rounding explains {allowed:.3g}. Nothing was put in place; please report it."
        )
    return difference


def update_export(exported: Path, folder: Path, difference: float) -> None:
    """Carry `export.json` over, with what the other weights change in it.

    Args:
        exported: The folder that was tuned; it may have none.
        folder: The tuned one.
        difference: What `check_reloaded` returned.
    """
    described = read_record(exported)
    if described is None:
        return
    described["max_logit_difference"] = difference
    described["bytes"] = weight_bytes(folder)
    described["finetuned"] = RESULT_FILE
    write_record(folder, described)


def _is_weights(path: Path) -> bool:
    return any(fnmatch.fnmatch(path.name, pattern) for pattern in WEIGHTS)


def _belongs_to_model(inside: Path) -> bool:
    is_private = any(part.startswith((".", "__")) for part in inside.parts)
    return not is_private and not _is_weights(inside) and inside.name not in RECORDS


def _describe_weights(path: Path, model: PreTrainedModel) -> None:
    """The export's own configuration stays, but for what the weights now are."""
    config = json.loads(path.read_bytes())
    dtype = str(model.dtype).removeprefix("torch.")
    now = {"dtype": dtype, "tie_word_embeddings": model.config.tie_word_embeddings}
    config.setdefault("dtype", config.pop("torch_dtype", None))
    if any(config.get(name) != value for name, value in now.items()):
        write_atomically(path, (json.dumps(config | now, indent=2) + "\n").encode())
