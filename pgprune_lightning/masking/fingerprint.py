"""A model's identity: a hash that ties a pruning plan to the weights it was learned on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import torch
import xxhash
from torch import Tensor
from transformers import PreTrainedModel

from pgprune_lightning.masking.model_source import ModelSource
from pgprune_lightning.masking.sharding import whole_weight
from pgprune_lightning.masking.weight_files import stored_tensors, weight_files

FORM = "xxh3:"
"""What fingerprints of files begin with; those of loaded values are 64 digits alone."""

SAMPLES_PER_TENSOR = 1024


def weights_fingerprint(source: ModelSource, model: PreTrainedModel) -> str:
    """Hash what a model's weight files hold: every value as it is stored, type, shape and name.

    So it does not matter what the weights were loaded as, nor how they are spread over files, nor
    what else the files hold that the model does not read. A head that equals the embedding counts
    once, because only older files hold both. XXH3 reads 13 GB/s on one core: against accidents it
    is as good as a cryptographic hash, and files are read from the disk's cache a second time.

    Args:
        source: Where the model lies.
        model: The model as it was loaded from there, in any type; its names count.

    Returns:
        `FORM` and 32 hexadecimal digits; `loaded_fingerprint` where the files cannot be found.
    """
    files = weight_files(source)
    if not files:
        return loaded_fingerprint(model)
    digests = _read_by(model, _digests(files, tuple(_state(file) for file in files)))
    lines = "".join(f"{name} {digest}\n" for name, digest in sorted(digests.items()))
    return FORM + xxhash.xxh3_128_hexdigest(lines.encode())


def fingerprint_like(recorded: str, source: ModelSource, model: PreTrainedModel) -> str:
    """The fingerprint of a model, in the form that one was recorded in.

    Args:
        recorded: A fingerprint, perhaps of an earlier release.
        source: Where the model lies.
        model: The model as it was loaded from there.
    """
    if recorded.startswith(FORM):
        return weights_fingerprint(source, model)
    return loaded_fingerprint(model)


@torch.no_grad()
def loaded_fingerprint(model: PreTrainedModel) -> str:
    """Hash a model as earlier releases did: by its parameters' names, shapes and sampled values.

    At most 1,024 values of each are compared, as bfloat16 and as they were loaded: a model loaded
    in float16 differs from itself in float32. Ranks that share the model must all call it.

    Args:
        model: The dense model; its device does not matter.

    Returns:
        64 hexadecimal digits of SHA-256.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        # Odd, because rows are often 2^n long: an even stride would read a few columns only.
        stride = -(-parameter.numel() // SAMPLES_PER_TENSOR) | 1
        positions = torch.arange(0, parameter.numel(), stride, device=parameter.device)
        # By index: flattening would copy a weight that is stored column by column.
        sampled = whole_weight(parameter)[torch.unravel_index(positions, parameter.shape)]
        values = sampled.to(torch.bfloat16).cpu().view(torch.int16)
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()


def _state(file: Path) -> tuple[int, int]:
    state = file.stat()
    return state.st_mtime_ns, state.st_size


@lru_cache(maxsize=8)
def _digests(files: tuple[Path, ...], states: tuple[tuple[int, int], ...]) -> Mapping[str, str]:
    """Type, shape and hash of each tensor by its name, read once for each state of the files."""
    del states
    return {name: _digest(values) for name, values in stored_tensors(files)}


def _digest(values: Tensor) -> str:
    stored = values.contiguous().reshape(-1).view(torch.uint8).numpy()
    return f"{values.dtype} {tuple(values.shape)} {xxhash.xxh3_128_hexdigest(stored.data)}"


def _read_by(model: PreTrainedModel, digests: Mapping[str, str]) -> Mapping[str, str]:
    """Those of tensors that a model reads, by its names; all where it has other names, as of GGUF.

    Older files also hold rotary frequencies and masks, which are computed now, or lack the prefix
    of the model without its head.
    """
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    read = {}
    for name, digest in digests.items():
        own = name if name in names else f"{model.base_model_prefix}.{name}"
        if own in names:
            read[own] = digest
    tied: Mapping[str, str] = model._tied_weights_keys or {}
    for head, embedding in tied.items():
        if head in read and read.get(embedding, read[head]) == read[head]:
            read[embedding] = read.pop(head)
    return read if names - tied.keys() <= read.keys() else digests
