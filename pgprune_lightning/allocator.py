"""The C library's allocator: what it gives back to the system of the memory that is freed."""

from __future__ import annotations

import ctypes
import os

LARGE_BYTES = 8 * 2**20
"""Chunks of logits and the activations of a validation are larger, those of a step are not."""

_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of malloc.h
_ALREADY_CHOSEN = ("MALLOC_MMAP_THRESHOLD_", "glibc.malloc.mmap_threshold")


def give_back_large_blocks() -> None:
    """Let blocks of `LARGE_BYTES` or more leave the process as soon as they are freed.

    Left to itself, glibc soon cuts blocks of up to 32 MB from its heap, where each leaves a hole
    that the next one may not fit: a run on a CPU then holds twice what it uses. Elsewhere, and
    where the environment has chosen, nothing is done.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if not any(name in os.environ or name in tunables for name in _ALREADY_CHOSEN):
        _call("mallopt", _MMAP_THRESHOLD, LARGE_BYTES)


def give_back_freed_memory() -> None:
    """Have the process take as little as it uses, or its growth would be seen too small."""
    _call("malloc_trim", 0)


def _call(name: str, *arguments: int) -> None:
    try:
        getattr(ctypes.CDLL(None), name)(*arguments)
    except (OSError, AttributeError):  # not glibc
        return
