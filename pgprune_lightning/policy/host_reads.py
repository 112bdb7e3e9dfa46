"""Where the host may look at a number of the policy without waiting for it."""

from __future__ import annotations

import torch


def reading_is_free(device: torch.device) -> bool:
    """Whether numbers lie where the host computes, and not on an accelerator that it waits for."""
    return device.type == "cpu"
