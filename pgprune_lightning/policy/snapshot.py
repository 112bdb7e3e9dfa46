"""The state of a module, to be put back where a step is refused."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


def snapshot(module: nn.Module) -> Callable[[], None]:
    """Copy what a checkpoint would hold of a module.

    Args:
        module: Has a state of tensors.

    Returns:
        What puts the copies back, into the same tensors.
    """
    before = {name: value.clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def undo() -> None:
        for name, value in module.state_dict().items():
            value.copy_(before[name])

    return undo
