"""What a metric of importance is given, and what it must return."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel

from pgprune_lightning.policy.mask_space import MaskSpace


@dataclass(frozen=True)
class MetricInputs:
    """What a metric may look at.

    Args:
        model: The dense, frozen model.
        space: Its prunable units.
        calibration_batches: Called to get batches of token ids, (B, T), int64.
        seed: For metrics that draw.
    """

    model: PreTrainedModel
    space: MaskSpace
    calibration_batches: Callable[[], Iterable[Tensor]]
    seed: int


Metric = Callable[[MetricInputs], Tensor]
"""Importance of every unit, (U,), float64 on the CPU; larger is more important."""
