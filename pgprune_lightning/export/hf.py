"""Format `hf`: the cut model, each layer with its own widths, for `from_pretrained`.

Shapes: B sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from pgprune_lightning import modeling_pruned
from pgprune_lightning.errors import UserError
from pgprune_lightning.export.export_format import ExportFormat, ExportOptions, Logits, PrunedModel
from pgprune_lightning.export.stock import described, stock_config
from pgprune_lightning.export.widths import LayerWidths
from pgprune_lightning.modeling_pruned import FAMILY_STEMS


class HuggingFace(ExportFormat):
    """A stock class where all widths are equal; else one file of code that comes with the model."""

    name = "hf"
    purpose = "cut, each layer with its own widths, for from_pretrained"

    def check(
        self, config: PreTrainedConfig, widths: tuple[LayerWidths, ...], options: ExportOptions
    ) -> None:
        """Refuse a family that the bundled file does not know, unless a stock class will do."""
        obstacle = stock_config(config, widths)
        if isinstance(obstacle, str) and config.model_type not in FAMILY_STEMS:
            raise UserError(
                f"export: hf has layers of different widths for {', '.join(FAMILY_STEMS)} alone, "
                f"and this model is of type {config.model_type!r}: {obstacle}. Give --format "
                "uniform or padded."
            )

    def write(self, pruned: PrunedModel, folder: Path, options: ExportOptions) -> None:
        """Write weights, configuration, tokenizer and, where it is needed, the code."""
        config = pruned.dense.config
        stock = stock_config(config, pruned.widths)
        with torch.device("meta"):
            if isinstance(stock, str):
                shell = _bundled_shell(config, pruned.widths)
            else:
                shell = AutoModelForCausalLM.from_config(stock)
        save_cut(pruned, shell, folder)

    def reload(self, folder: Path, pruned: PrunedModel, device: torch.device) -> Logits:
        """What `from_pretrained` makes of the folder."""
        return reloaded_logits(folder, pruned, device)


def _bundled_shell(config: PreTrainedConfig, widths: tuple[LayerWidths, ...]) -> PreTrainedModel:
    """A model of the bundled file, without weights."""
    stem = FAMILY_STEMS[config.model_type]
    values = described(config, widths) | {
        "kept_widths": [list(layer.sizes) for layer in widths],
        "auto_map": modeling_pruned.auto_map(config.model_type),
    }
    pruned_config = modeling_pruned.config_class(stem).from_dict(values)
    shell: PreTrainedModel = modeling_pruned.model_class(stem, "ForCausalLM")(pruned_config)
    return shell


def save_cut(pruned: PrunedModel, shell: PreTrainedModel, folder: Path) -> None:
    """Save a cut model as another class of the same tensors.

    Args:
        pruned: What is saved.
        shell: A model of that class, without weights; it takes over those of the cut model.
        folder: Where to write.
    """
    shell.load_state_dict(pruned.cut.state_dict(), assign=True)
    shell.tie_weights()
    shell.generation_config = copy.deepcopy(pruned.dense.generation_config)
    shell.save_pretrained(folder)
    pruned.planned.tokenizer.save_pretrained(folder)


def reloaded_logits(folder: Path, pruned: PrunedModel, device: torch.device) -> Logits:
    """Logits of a folder that `from_pretrained` reads, in the type the dense model has now."""
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=pruned.dense.dtype, local_files_only=True, trust_remote_code=False
    )
    nn.Module.to(model, device).eval()

    @torch.no_grad()
    def logits(tokens_BT: Tensor) -> Tensor:
        return model(tokens_BT.to(device), use_cache=False).logits

    return logits
