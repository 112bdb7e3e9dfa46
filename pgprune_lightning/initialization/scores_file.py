"""Importance that was measured elsewhere, read from a file.

Shapes: U units.
"""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from pgprune_lightning.errors import UserError
from pgprune_lightning.policy import UnitLayout

SCORES = "scores"


def load_scores(path: str, space: UnitLayout) -> Tensor:
    """Read the importance of every unit.

    Args:
        path: A safetensors file with one floating-point tensor, `scores`, (U,), in the order of
            the mask: layer by layer, in a layer kind by kind as in `unit_kinds`, then by index.
        space: The units.

    Returns:
        Importance, (U,), float64, CPU; larger is more important.

    Raises:
        UserError: If the file cannot be read, or its scores are not for these units or not finite.
    """
    try:
        tensors = safetensors.torch.load_file(Path(path).expanduser())
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"initialization.scores: {path} cannot be read: {error}. Give a safetensors file."
        ) from error
    if list(tensors) != [SCORES]:
        raise UserError(
            f"initialization.scores: {path} must hold one tensor named {SCORES!r}, and holds "
            f"{sorted(tensors)}."
        )
    return _checked(tensors[SCORES], path, space)


def _checked(scores: Tensor, path: str, space: UnitLayout) -> Tensor:
    if scores.shape != (space.num_units,) or not scores.is_floating_point():
        raise UserError(
            f"initialization.scores: {path} holds scores of shape {tuple(scores.shape)} and type "
            f"{scores.dtype}; the units ({', '.join(space.kinds)}) need shape "
            f"({space.num_units},) and floating point."
        )
    broken = (~scores.isfinite()).nonzero()
    if len(broken):
        layer, kind, index = space.locate(int(broken[0]))
        raise UserError(
            f"initialization.scores: {path} holds {float(scores[broken[0]])} for {kind} {index} "
            f"of layer {layer}; every score must be finite."
        )
    return scores.double()
