"""What an export format is: what it can carry, how it is written, how it is read back.

Shapes: U units, B sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from pgprune_lightning.export.planned_model import PlannedModel
from pgprune_lightning.export.rethreshold import Multiples
from pgprune_lightning.export.widths import LayerWidths
from pgprune_lightning.plan import PruningPlan
from pgprune_lightning.slicing import cut_model

Logits = Callable[[Tensor], Tensor]
"""Maps token ids, (B, T), int64, to logits, (B, T, V)."""

Quantization = Literal["f16", "f32", "q8_0"]

ROUNDING = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""How far logits may differ by computing in a type, as a share of the largest logit."""


@dataclass(frozen=True)
class ExportOptions:
    """What a user may choose of the files.

    Args:
        dtype: Type of the weights.
        quantization: How `gguf` stores them.
    """

    dtype: torch.dtype
    quantization: Quantization = "f16"


@dataclass(frozen=True)
class PrunedModel:
    """A dense model, and the mask that an export applies to it.

    Args:
        planned: The plan and the dense model, in the type of the export.
        mask_U: Which units stay, (U,), bool: the plan's own mask or another of its probabilities.
        widths: Of the layers that stay.
        keep_ratio: Share of the budget that the mask was made for.
    """

    planned: PlannedModel
    mask_U: Tensor
    widths: tuple[LayerWidths, ...]
    keep_ratio: float

    @property
    def plan(self) -> PruningPlan:
        """The plan, whose own mask may be another."""
        return self.planned.plan

    @property
    def dense(self) -> PreTrainedModel:
        """The dense model; it must stay as it is."""
        return self.planned.model

    @cached_property
    def cut(self) -> PreTrainedModel:
        """The model that the mask leaves, in memory; it must stay as it is."""
        return cut_model(self.dense, self.plan.space, self.mask_U)


class ExportFormat(ABC):
    """One format: one file, one row of `FORMATS`.

    A format that cannot carry a mask says so in `check`, which is called before weights are loaded.
    """

    name: ClassVar[str]
    """What `--format` takes."""
    purpose: ClassVar[str]
    """What it is for, in a few words, for the help."""

    def choose_mask(self, plan: PruningPlan, mask_U: Tensor, multiples: Multiples) -> Tensor:
        """The mask that is exported, (U,), bool: the one given, unless the format changes it."""
        del plan, multiples
        return mask_U

    @abstractmethod
    def check(
        self, config: PreTrainedConfig, widths: tuple[LayerWidths, ...], options: ExportOptions
    ) -> None:
        """Refuse what the format cannot carry, before weights are loaded.

        Args:
            config: The dense model's.
            widths: Of the layers that stay.
            options: What the user chose.

        Raises:
            UserError: It names the layer, the rule, and what to do.
        """

    def weights_dtype(self, options: ExportOptions) -> torch.dtype:
        """The type that the dense model is loaded in."""
        return options.dtype

    @abstractmethod
    def write(self, pruned: PrunedModel, folder: Path, options: ExportOptions) -> None:
        """Write all files but `export.json` into an empty folder.

        Raises:
            UserError: If something of the model cannot be carried; what is there is thrown away.
        """

    @abstractmethod
    def reload(self, folder: Path, pruned: PrunedModel, device: torch.device) -> Logits | None:
        """The logits of what was written, for the self-check.

        Args:
            folder: What `write` was given.
            pruned: The same, but computing in `pruned.dense.dtype`, which is float32 for all but
                the largest models; a reader that has a choice of types takes it.
            device: Where to compute.

        Returns:
            A function of token ids; None if what reads this format is not installed.
        """

    def tolerance(self, options: ExportOptions) -> float | None:
        """Largest difference of logits by rounding alone, as a share of the largest logit.

        None: that of the type which the self-check computes in, as `ROUNDING` has it.
        """
        del options
        return None

    def parameters(self, pruned: PrunedModel) -> int:
        """How many parameters the written model has."""
        return int(pruned.cut.num_parameters())

    def dense_bytes(self, pruned: PrunedModel, options: ExportOptions) -> int:
        """What the dense model's weights take in the same format, in bytes."""
        return sum(
            parameter.numel() * self.weights_dtype(options).itemsize
            for parameter in pruned.dense.parameters()
        )
