"""The frozen model: a causal language model that is only ever read."""

from __future__ import annotations

import copy
import textwrap
from functools import lru_cache
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from pgprune_lightning.errors import UserError
from pgprune_lightning.masking.checkpoint_checks import check_sizes, own_code_message
from pgprune_lightning.masking.decoder_family import family_names, family_of, supported_attention
from pgprune_lightning.masking.model_source import ModelSource
from pgprune_lightning.masking.sharding import run_whole_once, shard_config

DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Turn a dtype's name into a dtype.

    Args:
        dtype: `bfloat16`, `float16`, `float32`, or `auto`: bfloat16 where the device computes in
            it natively, else float32.
        device: Where the model will run.

    Raises:
        UserError: If the name is none of these.
    """
    if dtype == "auto":
        return torch.bfloat16 if _has_native_bfloat16(device) else torch.float32
    if dtype not in DTYPES:
        raise UserError(f"dtype: {dtype!r} is not one of auto, {', '.join(DTYPES)}.")
    return DTYPES[dtype]


def _has_native_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        # Without these instructions bfloat16 is emulated and several times slower than float32.
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("bf16"))
    return False


def load_model_config(source: ModelSource) -> PreTrainedConfig:
    """Read a model's configuration and check that its family can be pruned.

    Raises:
        UserError: If it cannot be read, or the family is not supported.
    """
    try:
        config = read_model_config(source)
    except UserError as error:
        if isinstance(error.__cause__, ValueError):  # an architecture that is not known
            raise UserError(f"{error} Families that can be pruned: {family_names()}.") from error
        raise
    family_of(config)
    if source.gguf_file is None and getattr(config, "quantization_config", None) is not None:
        raise UserError(
            f"base_model: the weights of {source.given!r} are quantised, and units of packed "
            "weights cannot be pruned. Give the checkpoint that they were made from, or a .gguf "
            "file, which is dequantised when it is loaded."
        )
    return config


def read_model_config(source: ModelSource) -> PreTrainedConfig:
    """Read a model's configuration, whatever its family.

    Raises:
        UserError: If it cannot be read.
    """
    values: dict[str, Any] = {}
    try:
        if source.gguf_file is None:
            values, _ = PreTrainedConfig.get_config_dict(
                source.location, **source.keyword_arguments()
            )
            check_sizes(values, source.given)
            config = AutoConfig.from_pretrained(source.location, **source.keyword_arguments())
        else:
            config = copy.deepcopy(_gguf_config(source, source.file_state()))
    except UserError:
        raise
    except Exception as error:  # transformers raises a different type for each kind of damage
        message = own_code_message(values, source.given)
        raise UserError(message or _loading_failed("configuration", source, error)) from error
    assert isinstance(config, PreTrainedConfig)
    return config


@lru_cache(maxsize=1)
def _gguf_config(source: ModelSource, state: tuple[int, int] | None) -> PreTrainedConfig:
    """Read a configuration that takes seconds to read, once for each state of its file."""
    del state
    config = AutoConfig.from_pretrained(source.location, **source.keyword_arguments())
    assert isinstance(config, PreTrainedConfig)
    return config


def model_on_meta(config: PreTrainedConfig) -> PreTrainedModel:
    """Build a model's shape without its weights, to count units before anything is loaded."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    assert isinstance(model, PreTrainedModel)
    return model


def load_frozen_model(
    source: ModelSource,
    *,
    dtype: torch.dtype,
    device: torch.device,
    attention: str = "sdpa",
    shard: int = 1,
) -> PreTrainedModel:
    """Load a model and freeze it: evaluation mode, no parameter takes a gradient.

    Args:
        source: Where the model lies.
        dtype: Type of its weights.
        device: Where they go.
        attention: Attention implementation of transformers: `sdpa`, `eager`, `flash_attention_2`.
            Models that cap attention logits have no sdpa; eager takes its place.
        shard: Ranks that share one copy of the weights; each of them reads its part alone.

    Raises:
        UserError: If the weights cannot be loaded or shared, or some are missing.
    """
    arguments = source.keyword_arguments()
    if shard > 1:
        arguments["distributed_config"] = shard_config(shard, device)
    if source.gguf_file is not None:
        # Packed weights are no Linear layers; a unit's rows and columns must be addressable.
        arguments["quantization_config"] = transformers.GgufConfig(dequantize=True)
    elif shard == 1 and device.type != "cpu":
        # As they are read, so that the host never holds all of them, for each rank.
        arguments["device_map"] = {"": device}
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source.location,
            dtype=dtype,
            attn_implementation=supported_attention(read_model_config(source), attention),
            output_loading_info=True,
            **arguments,
        )
    except Exception as error:  # transformers raises a different type for each kind of damage
        raise UserError(_loading_failed("weights", source, error)) from error
    model, report = loaded
    _refuse_missing_weights(source, sorted(report["missing_keys"]))
    _say_whether_tied(model)
    if source.gguf_file is not None:
        _forget_quantization(model)
    if shard == 1:
        nn.Module.to(model, device)
    freeze(model)
    if shard > 1:
        run_whole_once(model)
    assert isinstance(model, PreTrainedModel)
    return model


def freeze(model: PreTrainedModel) -> PreTrainedModel:
    """Put a model into evaluation mode and take the gradient from every parameter."""
    nn.Module.eval(model)
    nn.Module.requires_grad_(model, False)
    return model


def _refuse_missing_weights(source: ModelSource, missing: list[str]) -> None:
    """Transformers would go on with random numbers in their place."""
    if missing:
        raise UserError(
            f"base_model: {source.given!r} lacks {len(missing)} of its weights, the first of them "
            f"{missing[0]}. Check that every file of it is there and whole."
        )


def _say_whether_tied(model: PreTrainedModel) -> None:
    """Correct a configuration that ties the head to the embedding where the files hold both.

    Transformers keeps two different matrices apart and only warns. What writes the model again goes
    by the configuration, and would leave the head out.
    """
    if getattr(model.config, "tie_word_embeddings", False):
        model.config.tie_word_embeddings = bool(model.all_tied_weights_keys)


def _forget_quantization(model: PreTrainedModel) -> None:
    """Make a dequantised model an ordinary one; otherwise it refuses to be saved."""
    for owner, name in ((model.config, "quantization_config"), (model, "hf_quantizer")):
        if hasattr(owner, name):
            delattr(owner, name)


def _loading_failed(what: str, source: ModelSource, error: Exception) -> str:
    reason = textwrap.shorten(str(error), 300, placeholder=" ...").rstrip(" .")
    hint = (
        "Check that the file is whole."
        if source.is_local
        else "Check the name, your network and, for gated models, that you are logged in "
        "(hf auth login); a local folder or a .gguf file works without the hub."
    )
    return f"base_model: the {what} of {source.given!r} could not be loaded: {reason}. {hint}"


def quiet_transformers() -> None:
    """Keep transformers' advice and loading bars out of a run's output."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
