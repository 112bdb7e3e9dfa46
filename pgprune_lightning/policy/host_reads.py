"""Where the host may look at a number of the policy without waiting for it, and where it may later.

Shapes: a verdict is a bool, ().
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

_LATER: ContextVar[list[Tensor] | None] = ContextVar("verdicts to be read later", default=None)


def reading_is_free(device: torch.device) -> bool:
    """Whether numbers lie where the host computes, and not on an accelerator that it waits for."""
    return device.type == "cpu"


def all_hold(verdicts: Sequence[Tensor]) -> bool:
    """Whether what was computed without a look stands; the one result that the host reads.

    Args:
        verdicts: Of each part, () bool, on one device.

    Returns:
        Whether all are true; within `reading_later` True, unread.
    """
    if not verdicts:
        return True
    outcome, later = torch.stack(list(verdicts)).all(), _LATER.get()
    if later is None:
        return bool(outcome)
    later.append(outcome)
    return True


@contextmanager
def reading_later() -> Iterator[list[Tensor]]:
    """Take it for granted that all holds.

    Yields:
        What has to be read later, () bool each: where one is false, everything computed within
        the block has to be undone, and computed again outside of it.
    """
    verdicts: list[Tensor] = []
    token = _LATER.set(verdicts)
    try:
        yield verdicts
    finally:
        _LATER.reset(token)


class HostCopy:
    """A whole number on its way to the host, which waits for it alone and not for what comes after.

    Args:
        number: () bool or int64, on any device; a verdict is 0 or 1.
    """

    def __init__(self, number: Tensor) -> None:
        on_gpu = number.device.type == "cuda"
        self._copy = torch.empty((), dtype=number.dtype, pin_memory=on_gpu)
        self._copy.copy_(number, non_blocking=on_gpu)
        self._arrived = torch.cuda.Event() if on_gpu else None
        if self._arrived is not None:
            self._arrived.record()

    def read(self) -> int:
        """Wait until it is there, and look at it."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return int(self._copy.numpy())
