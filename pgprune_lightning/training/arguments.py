"""What of the module's arguments can be checked without a model."""

from __future__ import annotations

from lightning.pytorch import Trainer

from pgprune_lightning.errors import UserError
from pgprune_lightning.policy import UnitKind


def check_arguments(keep_ratio: float, lr: float, num_mask_samples: int) -> None:
    """Refuse numbers out of their range.

    Raises:
        UserError: If one is.
    """
    if not 0 < keep_ratio <= 1:
        raise UserError(
            f"keep_ratio: must lie in (0, 1], given {keep_ratio}. It is the share that stays: "
            "0.7 removes 30 %."
        )
    if not lr > 0:
        raise UserError(f"lr: must be above 0, given {lr}.")
    if num_mask_samples < 1:
        raise UserError(f"num_mask_samples: must be at least 1, given {num_mask_samples}.")


def check_lr_factors(lr_factors: dict[UnitKind, float], unit_kinds: list[UnitKind]) -> None:
    """Refuse factors of kinds that are not pruned, and negative ones.

    Raises:
        UserError: If there is one.
    """
    for kind, factor in lr_factors.items():
        if kind not in unit_kinds:
            raise UserError(f"lr_factors: {kind} is not among unit_kinds {unit_kinds}.")
        if not factor >= 0:
            raise UserError(f"lr_factors: the factor of {kind} must be 0 or more, given {factor}.")


def check_inference_mode(trainer: Trainer, shard: int) -> None:
    """Refuse to share a model between ranks under PyTorch's inference mode, which FSDP2 breaks in.

    Raises:
        UserError: If that is asked for.
    """
    if shard > 1 and trainer.validate_loop.inference_mode:
        raise UserError(
            f"trainer.inference_mode: must be false where {shard} ranks share the model "
            "(model.shard); nothing is slower for it."
        )
