"""Writing a cut model as one GGUF file."""

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
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pgprune_lightning.export.export_format import Quantization
from pgprune_lightning.export.gguf_architecture import (
    GGUF_FAMILIES,
    add_architecture,
    architecture_of,
    rope_factors,
)
from pgprune_lightning.export.gguf_layers import (
    GgufLayer,
    gguf_layers,
    head_dim_of,
    layer_tensors,
)
from pgprune_lightning.export.gguf_vocabulary import copy_vocabulary, write_vocabulary
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
