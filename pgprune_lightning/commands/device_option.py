"""The option of commands that say where a model runs."""

# No `from __future__ import annotations`: the command line reads these types.
from typing import Literal

import torch

from pgprune_lightning.console import OneLineErrorParser
from pgprune_lightning.errors import UserError


def add_device_option(parser: OneLineErrorParser) -> None:
    """Add `--device`."""
    parser.add_argument(
        "--device",
        type=Literal["auto", "cpu", "cuda"],
        default="auto",
        help="Where the model runs; auto: a GPU where there is one.",
    )


def named_device(name: str) -> torch.device:
    """The device that `--device` names.

    Raises:
        UserError: If there is none.
    """
    has_gpu = torch.cuda.is_available()
    if name == "cuda" and not has_gpu:
        raise UserError("--device: cuda is given, but there is no CUDA device; give cpu.")
    return torch.device("cuda" if name != "cpu" and has_gpu else "cpu")
