"""Compact execution of a mask: only what the mask keeps is computed.

Where a mask keeps a part of an attention or MLP, the kept rows of the projections into it and the
kept columns of the projection out of it are copied side by side inside the projection's own
forward, so that there is never more than one projection's copy. Sub-layers and layers without a
kept unit are skipped.

Shapes: U units, G units of a group, K kept units, W kept rows or columns, B sequences, T tokens,
H hidden.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from pgprune_lightning.masking.decoder_family import decoder_layers
from pgprune_lightning.masking.dense_masked import put_factors
from pgprune_lightning.masking.sharding import is_in_parts
from pgprune_lightning.masking.skipping import replaced_forward, skipped
from pgprune_lightning.masking.sub_layer import Attention, rows_of_units
from pgprune_lightning.policy.unit_layout import UnitGroup, UnitLayout


class CompactExecution:
    """Runs a frozen model under a mask by computing what it keeps.

    The weights of the output and down projections are laid out anew, in place, column by column:
    their shapes, values and names stay, only their strides are other. Columns are then gathered as
    fast as rows, and there is no second copy of the weights. Those of a model that ranks share stay
    as they are.

    Args:
        model: The frozen model.
        space: The units of that model.
        width_multiple: Kept widths are filled up to a multiple of this with dropped units whose
            columns are zeroed: matrix products like their rows aligned.
        most_gathered: Groups of which a greater share than this is kept, in [0, 1], are multiplied
            by their mask instead: there a copy of nearly everything costs what it saves.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        space: UnitLayout,
        *,
        width_multiple: int = 16,
        most_gathered: float = 0.97,
    ) -> None:
        self.model = model
        self.space = space
        self.layers = decoder_layers(model)
        self.width_multiple = width_multiple
        self.most_gathered = most_gathered
        self._is_masked = False
        for layer in self.layers:
            _store_columns_together(layer.attention.output)
            _store_columns_together(layer.mlp.output)

    @contextmanager
    def masked(self, mask_U: Tensor) -> Iterator[PreTrainedModel]:
        """Put a mask on the model for the length of a `with` block; such blocks do not nest.

        Args:
            mask_U: Which units stay, (U,), bool.

        Yields:
            The model; outside the block it is untouched again.
        """
        assert not self._is_masked, "a mask lies on the model already; put on what both keep"
        # One transfer instead of a synchronisation for every group.
        mask_on_host_U = mask_U.cpu()
        with ExitStack() as stack:
            gathered: list[tuple[UnitGroup, Tensor]] = []
            for group in self.space.groups:
                kept_G = self.space.view(mask_on_host_U, group.layer, group.kind)
                num_kept = int(kept_G.sum())
                layer = self.layers[group.layer]
                if num_kept == 0:
                    stack.enter_context(skipped(layer, group.kind))
                elif num_kept == group.count:
                    continue
                elif num_kept <= self.most_gathered * group.count:
                    gathered.append((group, kept_G))
                else:
                    for handle in put_factors(layer, group.kind, kept_G[None]):
                        stack.callback(handle.remove)
            for replacement in self._replacements(gathered):
                stack.enter_context(replacement)
            self._is_masked = True
            stack.callback(setattr, self, "_is_masked", False)
            yield self.model

    def _replacements(
        self, gathered: list[tuple[UnitGroup, Tensor]]
    ) -> Iterator[AbstractContextManager[None]]:
        """What puts other forwards in the place of the projections' in the groups to gather."""
        units = [self._filled_up(group, kept_G) for group, kept_G in gathered]
        for (group, kept_G), units_K in zip(gathered, self._on_device(units), strict=True):
            (part,) = self.layers[group.layer].sub_layers_of(group.kind)
            for projection in part.inputs:
                linear, rows_W = projection.linear, projection.rows_of(units_K, group.count)
                yield replaced_forward(linear, partial(_rows_forward, linear, rows_W))
            width = part.output.in_features // group.count
            columns_W, num_kept = rows_of_units(units_K, width), int(kept_G.sum()) * width
            yield replaced_forward(
                part.output, partial(_columns_forward, part.output, columns_W, num_kept)
            )
            if isinstance(part, Attention):
                yield part.narrowed(len(units_K))

    def _filled_up(self, group: UnitGroup, kept_G: Tensor) -> Tensor:
        """Indices of the kept units, then of as many dropped ones as the multiple asks for."""
        kept_K = kept_G.nonzero().flatten()
        (part,) = self.layers[group.layer].sub_layers_of(group.kind)
        width = part.output.in_features // group.count
        step = self.width_multiple // math.gcd(self.width_multiple, width)
        missing = -len(kept_K) % step
        if missing == 0:
            return kept_K
        return torch.cat([kept_K, (~kept_G).nonzero().flatten()[:missing]])

    def _on_device(self, units: list[Tensor]) -> list[Tensor]:
        """Bring index vectors to the model's device in one transfer that waits for nothing."""
        device = self.model.device
        if device.type != "cuda" or not units:
            return [units_K.to(device) for units_K in units]
        together = torch.cat(units).pin_memory().to(device, non_blocking=True)
        return list(together.split([len(units_K) for units_K in units]))


def _store_columns_together(linear: nn.Linear) -> None:
    weight = linear.weight
    # Of parts, each rank has some rows, and they are joined row by row.
    if not is_in_parts(weight) and not weight.t().is_contiguous():
        weight.data = weight.data.t().contiguous().t()


def _rows_forward(linear: nn.Linear, rows_W: Tensor, input_BTH: Tensor) -> Tensor:
    weight_WH, bias_W = linear.weight.index_select(0, rows_W), None
    if linear.bias is not None:
        bias_W = linear.bias.index_select(0, rows_W)
    return F.linear(input_BTH, weight_WH, bias_W)


def _columns_forward(
    linear: nn.Linear, columns_W: Tensor, num_kept: int, input_BTW: Tensor
) -> Tensor:
    weight_WH = linear.weight.t().index_select(0, columns_W)
    weight_WH[num_kept:] = 0  # what was filled up contributes nothing
    return F.linear(input_BTW, weight_WH.t(), linear.bias)
