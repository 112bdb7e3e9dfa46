"""What a training step is asked to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pgprune_lightning.errors import UserError
from pgprune_lightning.policy import BudgetScope, FeasibleSet, UnitKind, UnitLayout


@dataclass(frozen=True)
class Workload:
    """A training step but for the model and the keep ratio; defaults are the paper's.

    Args:
        batch_size: Sequences B.
        block_length: Tokens T of a sequence.
        num_mask_samples: Masks drawn in a step (N_s).
        unit_kinds: What one decision drops.
        channels_per_unit: Neighbouring MLP channels that one decision drops.
        budget: What the keep ratio is a share of.
        lr: Step size of the update.
    """

    batch_size: int = 8
    block_length: int = 128
    num_mask_samples: int = 2
    unit_kinds: tuple[UnitKind, ...] = ("kv_group", "mlp_channel")
    channels_per_unit: int = 1
    budget: BudgetScope = "per_kind"
    lr: float = 2e-3

    def check(self) -> None:
        """Refuse sizes that make no step.

        Raises:
            UserError: There is one.
        """
        for name, least in (("batch_size", 1), ("block_length", 2), ("num_mask_samples", 1)):
            size = getattr(self, name)
            if size < least:
                option = name.replace("_", "-")
                raise UserError(f"--{option}: must be at least {least}, given {size}.")

    @property
    def tokens(self) -> int:
        """Tokens of a batch."""
        return self.batch_size * self.block_length

    def feasible_set(self, space: UnitLayout, keep_ratio: float) -> FeasibleSet:
        """The keep probabilities of a model's units that meet the budget exactly."""
        return FeasibleSet(space, keep_ratio, scope=self.budget, fill=True)

    def batch(self, vocabulary: int, device: torch.device) -> Tensor:
        """Random token ids, (B, T) int64: what a step costs does not depend on the text."""
        generator = torch.Generator().manual_seed(0)
        shape = (self.batch_size, self.block_length)
        return torch.randint(vocabulary, shape, generator=generator).to(device)


def check_keep_ratios(keep_ratios: Sequence[float]) -> None:
    """Refuse shares that are none.

    Raises:
        UserError: There is none, one is out of range, or one is given twice.
    """
    if not keep_ratios or len(set(keep_ratios)) != len(keep_ratios):
        raise UserError(
            f"--keep-ratio: give different numbers, at least one; given {list(keep_ratios)}."
        )
    for keep_ratio in keep_ratios:
        if not 0 < keep_ratio <= 1:
            raise UserError(
                f"--keep-ratio: must lie in (0, 1], given {keep_ratio}. It is the share that "
                "stays: 0.5 removes half."
            )
