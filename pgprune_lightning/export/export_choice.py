"""What an export will write, decided and checked before any weight is loaded.

Shapes: U units.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedConfig

from pgprune_lightning.errors import UserError
from pgprune_lightning.export.export_format import ExportFormat, ExportOptions
from pgprune_lightning.export.rethreshold import mask_at, plan_multiples
from pgprune_lightning.export.widths import LayerWidths, layer_widths
from pgprune_lightning.plan import PruningPlan


@dataclass(frozen=True)
class ExportChoice:
    """One mask of a plan that a format carries.

    Args:
        keep_ratio: Share of the budget that it was made for.
        mask_U: Which units stay, (U,), bool.
        widths: Of the layers that stay.
    """

    keep_ratio: float
    mask_U: Tensor
    widths: tuple[LayerWidths, ...]

    @property
    def folder_name(self) -> str:
        """Of its folder where several ratios are exported: `keep70`, `keep62.5`."""
        return f"keep{self.keep_ratio * 100:g}"


@dataclass(frozen=True)
class MaskOptions:
    """Which masks of a plan are exported.

    Args:
        keep_ratios: Shares that stay, in (0, 1]; empty: the plan's own.
        round_to: Multiple of the MLP channels of each layer; None: as the run had it.
        tensor_parallel: Devices that share each layer; None: as the run had it.
    """

    keep_ratios: Sequence[float] = ()
    round_to: int | None = None
    tensor_parallel: int | None = None


def choose_exports(
    plan: PruningPlan,
    config: PreTrainedConfig,
    export_format: ExportFormat,
    masks: MaskOptions,
    options: ExportOptions,
) -> list[ExportChoice]:
    """Make the masks, and refuse those that the format or the multiples cannot have.

    Args:
        plan: The plan.
        config: The dense model's.
        export_format: What is written.
        masks: Which masks are wanted.
        options: What the user chose of the files.

    Returns:
        One export for each keep ratio, in the order given.

    Raises:
        UserError: A budget is impossible, nothing would be left, or a layer breaks a rule.
    """
    multiples = plan_multiples(plan, config, masks.round_to, masks.tensor_parallel)
    own = plan_multiples(plan, config, None, None)
    choices = []
    for keep_ratio in masks.keep_ratios or (plan.budget["keep_ratio"],):
        is_own = keep_ratio == plan.budget["keep_ratio"] and multiples == own
        mask_U = plan.mask_U if is_own else mask_at(plan, keep_ratio, multiples)
        mask_U = export_format.choose_mask(plan, mask_U, multiples)
        widths = layer_widths(config, plan.space, mask_U)
        _check_widths(widths, keep_ratio, masks)
        export_format.check(config, widths, options)
        choices.append(ExportChoice(keep_ratio, mask_U, widths))
    return choices


def _check_widths(widths: tuple[LayerWidths, ...], keep_ratio: float, masks: MaskOptions) -> None:
    if not widths:
        raise UserError(
            f"export: a keep ratio of {keep_ratio:g} leaves no layer. Give a larger one."
        )
    # Of layers that no mask touches, too: protected ones, or those of kinds that are not pruned.
    devices = masks.tensor_parallel or 1
    channels = math.lcm(masks.round_to or 1, devices)
    for layer in widths:
        if layer.kv_groups % devices:
            raise UserError(
                f"export: --tensor-parallel {devices}: layer {layer.layer} has {layer.kv_groups} "
                "KV groups, which the devices cannot share evenly, and they are not pruned. Give a "
                "divisor of them, or a plan that prunes kv_group in this layer."
            )
        if layer.mlp_channels % channels:
            raise UserError(
                f"export: --round-to, --tensor-parallel: layer {layer.layer} has "
                f"{layer.mlp_channels} MLP channels, no multiple of {channels}, and they are not "
                "pruned. Give a divisor of them, or a plan that prunes mlp_channel in this layer."
            )
