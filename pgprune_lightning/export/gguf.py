"""Format `gguf`: one file for llama.cpp and what builds on it.

Shapes: B sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import (
    GGML_QUANT_VERSION,
    GGMLQuantizationType,
    GGUFWriter,
    LlamaFileType,
    quant_shape_to_byte_shape,
    quants,
)
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from pgprune_lightning.errors import UserError
from pgprune_lightning.evaluation.llama_cpp import LlamaCppModel, has_llama_cpp
from pgprune_lightning.export.export_format import (
    ExportFormat,
    ExportOptions,
    Logits,
    PrunedModel,
    Quantization,
)
from pgprune_lightning.export.gguf_architecture import (
    GGUF_FAMILIES,
    GgufLayer,
    add_architecture,
    architecture_of,
    gguf_layers,
    head_dim_of,
    layer_tensors,
    llama_cpp_obstacle,
    rope_factors,
)
from pgprune_lightning.export.gguf_vocabulary import copy_vocabulary, write_vocabulary
from pgprune_lightning.export.widths import LayerWidths
from pgprune_lightning.masking.decoder_family import backbone_of

_TYPES = {
    "f32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}
_BLOCK = 32
"""Values of a row that q8_0 packs together."""


def write_gguf(
    model: PreTrainedModel,
    file: Path,
    quantization: Quantization,
    *,
    tokenizer: PreTrainedTokenizerBase,
    vocabulary_file: Path | None = None,
) -> None:
    """Write a cut model as llama.cpp reads it.

    Args:
        model: What `cut_model` returns, where `llama_cpp_obstacle` names nothing.
        file: Where to; must not exist.
        quantization: Type of the matrices: `f32`, `f16` or `q8_0`. Vectors are float32. Rows that
            q8_0 cannot pack, because 32 does not divide them, are f16.
        tokenizer: The model's.
        vocabulary_file: A GGUF file to copy the tokenizer from instead.

    Raises:
        UserError: If llama.cpp does not know the tokenizer.
    """
    layers = gguf_layers(model, _BLOCK if quantization == "q8_0" else 1)
    matrix_type, file_type = _TYPES[quantization]
    writer = GGUFWriter(file, architecture_of(model.config, layers))
    add_architecture(writer, model, layers)
    writer.add_file_type(file_type)
    writer.add_quantization_version(GGML_QUANT_VERSION)
    if vocabulary_file is None:
        write_vocabulary(tokenizer, model.config.vocab_size, writer)
    else:
        copy_vocabulary(vocabulary_file, model.config.vocab_size, writer)
    for name, values in _tensors(model, layers):
        stored = _stored_type(values.shape, matrix_type)
        shape = quant_shape_to_byte_shape(values.shape, stored)
        bytes_type = np.dtype(np.uint8)
        writer.add_tensor_info(name, shape, bytes_type, math.prod(shape), raw_dtype=stored)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        # A second pass, and no list: besides the model, one tensor at a time is in memory.
        for _, values in _tensors(model, layers):
            writer.write_tensor_data(_packed(values, _stored_type(values.shape, matrix_type)))
    finally:
        writer.close()


def num_parameters(model: PreTrainedModel) -> int:
    """Parameters of the file of a cut model, without the zeros that fill up packed rows."""
    return sum(values.numel() for _, values in _tensors(model, gguf_layers(model, 1)))


def stored_bytes(shape: Sequence[int], quantization: Quantization) -> int:
    """What a tensor of a shape takes in a file."""
    return math.prod(quant_shape_to_byte_shape(shape, _stored_type(shape, _TYPES[quantization][0])))


def _tensors(model: PreTrainedModel, layers: list[GgufLayer]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the file by their names, in its order."""
    config, backbone = model.config, backbone_of(model)
    head_dim = head_dim_of(model)
    yield "token_embd.weight", backbone.get_parameter("embed_tokens.weight")
    if (factors := rope_factors(config, head_dim)) is not None:
        yield "rope_freqs.weight", factors
    interleaved = GGUF_FAMILIES[config.model_type].interleaved
    for index, layer in enumerate(layers):
        for name, values in layer_tensors(
            layer, hidden_size=config.hidden_size, head_dim=head_dim, interleaved=interleaved
        ):
            yield f"blk.{index}.{name}", values
    yield "output_norm.weight", backbone.get_parameter("norm.weight")
    if not config.tie_word_embeddings:
        yield "output.weight", model.get_output_embeddings().weight


def _stored_type(shape: Sequence[int], matrix_type: GGMLQuantizationType) -> GGMLQuantizationType:
    if len(shape) == 1:
        return GGMLQuantizationType.F32
    if matrix_type == GGMLQuantizationType.Q8_0 and shape[-1] % _BLOCK:
        return GGMLQuantizationType.F16
    return matrix_type


def _packed(values: Tensor, stored: GGMLQuantizationType) -> NDArray[Any]:
    on_host = values.detach().to("cpu", torch.float32).contiguous().numpy()
    return quants.quantize(on_host, stored)


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
