"""Format `gguf`: one file for llama.cpp and what builds on it.

Shapes: B sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from pgprune_lightning.errors import UserError
from pgprune_lightning.evaluation.llama_cpp import LlamaCppModel, has_llama_cpp
from pgprune_lightning.export.export_format import ExportFormat, ExportOptions, Logits, PrunedModel
from pgprune_lightning.export.gguf_architecture import llama_cpp_obstacle
from pgprune_lightning.export.gguf_file import num_parameters, stored_bytes, write_gguf
from pgprune_lightning.export.widths import LayerWidths

FILE_NAME = "model.gguf"

_ROUNDING = {"f32": 1e-4, "f16": 0.1, "q8_0": 0.3}
"""How far logits may differ, as a share of the largest: llama.cpp rounds activations as weights.

SmolLM2-135M at a keep ratio of 0.7 differs by 3e-6, 0.006 and 0.08 on random tokens.
"""


class Gguf(ExportFormat):
    """Each layer at its own widths, in the types of llama.cpp."""

    name = "gguf"
    purpose = "one file for llama.cpp and its kin, each layer its own widths"

    def check(
        self, config: PreTrainedConfig, widths: tuple[LayerWidths, ...], options: ExportOptions
    ) -> None:
        """Refuse what no graph of llama.cpp can run."""
        if (obstacle := llama_cpp_obstacle(config, widths)) is not None:
            raise UserError(
                f"export: llama.cpp cannot run this model: {obstacle}. Export --format uniform, "
                "padded or hf instead."
            )

    def write(self, pruned: PrunedModel, folder: Path, options: ExportOptions) -> None:
        """Write the file, with the tokenizer of the file that the base model came from, if any."""
        source = pruned.planned.source
        is_gguf = source.gguf_file is not None
        original = Path(source.location) / str(source.gguf_file) if is_gguf else None
        write_gguf(
            pruned.cut,
            folder / FILE_NAME,
            options.quantization,
            tokenizer=pruned.planned.tokenizer,
            vocabulary_file=original,
        )

    def reload(self, folder: Path, pruned: PrunedModel, device: torch.device) -> Logits | None:
        """What llama.cpp computes, with keys and values in float32; None where it is missing."""
        if not has_llama_cpp():
            return None

        def logits(tokens_BT: Tensor) -> Tensor:
            length = tokens_BT.shape[1]
            model = LlamaCppModel(folder / FILE_NAME, context_length=length, float32_cache=True)
            found_BTV = model.logits(tokens_BT)
            model.close()
            return found_BTV.to(device)

        return logits

    def tolerance(self, options: ExportOptions) -> float:
        """That of the types in the file."""
        return _ROUNDING[options.quantization]

    def parameters(self, pruned: PrunedModel) -> int:
        """With the sub-layers of zeros that llama.cpp needs."""
        return num_parameters(pruned.cut)

    def dense_bytes(self, pruned: PrunedModel, options: ExportOptions) -> int:
        """What the tensors of the dense model take in the same types."""
        return sum(
            stored_bytes(parameter.shape, options.quantization)
            for parameter in pruned.dense.parameters()
        )
