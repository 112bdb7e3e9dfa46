"""What lies in a model's weight files, whatever it is loaded as."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from transformers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    cached_file,
)

from pgprune_lightning.masking.model_source import ModelSource

_NAMES = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME)
"""In the order in which transformers looks for them."""


def weight_files(source: ModelSource) -> tuple[Path, ...]:
    """Find the files that transformers reads a model's weights from, without the network.

    Args:
        source: Where the model lies.

    Returns:
        The files, or none where they are not on this machine (yet), or an index is damaged.
    """
    if source.gguf_file is not None:
        return (Path(source.location) / source.gguf_file,)
    for name in _NAMES:
        if (path := _local_file(source, name)) is not None:
            return (path,) if name in (SAFE_WEIGHTS_NAME, WEIGHTS_NAME) else _shards(source, path)
    return ()


def stored_tensors(files: Sequence[Path]) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of weight files by their names; values are read when they are used.

    Args:
        files: Safetensors, GGUF, or what `torch.save` wrote. The packed weights of a GGUF file are
            bytes.
    """
    for file in files:
        if file.suffix == ".safetensors":
            with safe_open(str(file), framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 (it is no dictionary)
                    yield name, opened.get_tensor(name)
        elif file.suffix == ".gguf":
            yield from _of_gguf(file)
        else:
            yield from _of_torch(file)


def _of_torch(file: Path) -> Iterator[tuple[str, Tensor]]:
    is_mapped = zipfile.is_zipfile(file)  # torch before 1.6 wrote pickles alone
    held = torch.load(file, map_location="cpu", weights_only=True, mmap=is_mapped)
    yield from ((name, value) for name, value in held.items() if isinstance(value, Tensor))


def _of_gguf(file: Path) -> Iterator[tuple[str, Tensor]]:
    from gguf import GGUFReader

    for tensor in GGUFReader(file, "c").tensors:  # torch warns of arrays that cannot be written to
        yield tensor.name, torch.from_numpy(tensor.data)


def _shards(source: ModelSource, index: Path) -> tuple[Path, ...]:
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ()  # loading says what is wrong with it
    found = [_local_file(source, name) for name in names]
    return tuple(path for path in found if path is not None)


def _local_file(source: ModelSource, name: str) -> Path | None:
    try:
        found = cached_file(source.location, name, revision=source.revision, local_files_only=True)
    except OSError:
        return None
    return None if found is None else Path(found)
