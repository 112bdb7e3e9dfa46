"""Batched execution: many masks in one forward pass, each on sequences of its own.

Everything is computed for every mask, as in dense-masked execution, but always by the same
operations: nothing is skipped, and the host reads no mask. So a GPU can replay the whole pass from
a CUDA graph, which is what small models want, whose kernels take longer to launch than to run.

Shapes: U units, B sequences, T tokens, H hidden, W columns of all projections together.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pgprune_lightning.masking.cuda_graph import CudaGraphFunction
from pgprune_lightning.masking.decoder_family import decoder_layers
from pgprune_lightning.masking.dense_masked import multiply_input, multiply_output
from pgprune_lightning.masking.token_loss import token_losses
from pgprune_lightning.policy.unit_layout import UnitGroup, UnitLayout


class BatchedExecution:
    """Reads the token losses of a frozen model under a mask for each sequence.

    Args:
        model: The frozen model.
        space: The units of that model.
        capture: Whether to replay CUDA graphs; None: on a CUDA device.
    """

    def __init__(
        self, model: PreTrainedModel, space: UnitLayout, *, capture: bool | None = None
    ) -> None:
        self.model = model
        self.space = space
        self._inputs: list[nn.Linear] = []
        self._outputs: list[tuple[nn.Module, UnitGroup]] = []
        units = [torch.zeros(0, dtype=torch.int64)]
        layers = decoder_layers(model)
        for group in space.groups:
            parts = layers[group.layer].sub_layers_of(group.kind)
            if group.count > 1:
                width = parts[0].output.in_features // group.count
                self._inputs.append(parts[0].output)
                units.append(torch.arange(group.start, group.end).repeat_interleave(width))
            for part in parts:
                # A bias stays until the group's last unit leaves.
                if group.count == 1 or part.output.bias is not None:
                    self._outputs.append((part.last, group))
        self._units_W = torch.cat(units).to(model.device)
        self._cuda_graph = CudaGraphFunction(
            self._losses, capture=model.device.type == "cuda" if capture is None else capture
        )

    @torch.no_grad()
    def token_losses(
        self, batch_BT: Tensor, masks_BU: Tensor, dense_BTH: Tensor | None = None
    ) -> Tensor:
        """Losses of each sequence under its mask; see `token_loss.token_losses`.

        Args:
            batch_BT: Token ids, (B, T), int64.
            masks_BU: Which units stay for each sequence, (B, U), bool, on the model's device.
            dense_BTH: States of the dense model on the same tokens, (B, T - 1, H), for
                the divergence from it.

        Returns:
            Nats per token, (B, T - 1), float32.
        """
        dense = () if dense_BTH is None else (dense_BTH,)
        return self._cuda_graph(batch_BT, masks_BU, *dense)

    def forget(self) -> None:
        """Give the graphs and their memory back."""
        self._cuda_graph.forget()

    def _losses(
        self, batch_BT: Tensor, masks_BU: Tensor, dense_BTH: Tensor | None = None
    ) -> Tensor:
        with self._masked_each(masks_BU) as model:
            return token_losses(model, batch_BT, dense_BTH)

    @contextmanager
    def _masked_each(self, masks_BU: Tensor) -> Iterator[PreTrainedModel]:
        """Put a mask on each sequence, (B, U) bool, by operations that depend on no mask."""
        dtype = self.model.dtype
        factors_BW = masks_BU.index_select(1, self._units_W).to(dtype)
        widths = [linear.in_features for linear in self._inputs]
        with ExitStack() as stack:
            for linear, part_BW in zip(self._inputs, factors_BW.split(widths, dim=1), strict=True):
                stack.callback(multiply_input(linear, part_BW[:, None]).remove)
            for module, group in self._outputs:
                kept_BG = self.space.view(masks_BU, group.layer, group.kind)
                alive_BTW = kept_BG.any(dim=1)[:, None, None].to(dtype)
                stack.callback(multiply_output(module, alive_BTW).remove)
            yield self.model
