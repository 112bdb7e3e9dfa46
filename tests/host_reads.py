"""Counts what makes the host wait for an accelerator, where there is none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pgprune_lightning.policy import host_reads

WAITING = (
    "_local_scalar_dense",  # item(), float(), bool(), if
    "is_nonzero",
    "equal",
    "nonzero",
    "masked_select",
    "unique",
    "bincount",
    "lift_fresh",  # torch.tensor(number), which an accelerator gets by a copy
)


class HostReads(TorchDispatchMode):
    """Lists the operations after which the host waits, on an accelerator, for what they give."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).removeprefix("aten.").partition(".")[0]
        by_mask = name.startswith("index") and any(
            isinstance(index, torch.Tensor) and index.dtype == torch.bool
            for argument in args
            if isinstance(argument, (list, tuple))
            for index in argument
        )
        if by_mask or name.startswith(WAITING):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def as_on_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the program take it that every look at a number waits."""
    monkeypatch.setattr(host_reads, "reading_is_free", lambda device: False)


def take_a_step_wrongly_for_granted(monkeypatch: pytest.MonkeyPatch, number: int) -> list[int]:
    """Let a step turn out wrong where it is read, as where a projection takes many rounds.

    Args:
        monkeypatch: Undoes it.
        number: Number of steps before it.

    Returns:
        The steps that were taken for granted, to be looked at when all is over.
    """
    all_hold, steps = host_reads.all_hold, []

    def wrong_once(verdicts: Sequence[Tensor]) -> bool:
        if host_reads._LATER.get() is not None:  # in a step, and not where the run starts
            steps.append(len(steps))
            if steps[-1] == number:
                verdicts = [torch.zeros_like(verdicts[0])]
        return all_hold(verdicts)

    monkeypatch.setattr(host_reads, "all_hold", wrong_once)
    return steps
