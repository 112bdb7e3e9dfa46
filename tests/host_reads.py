"""Counts what makes the host wait for an accelerator, where there is none."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

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
