"""Batched execution equals dense-masked execution, sequence by sequence, on the same buffers again.

Shapes: U units, B sequences, T tokens, H hidden.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from pgprune_lightning.masking import BatchedExecution, DenseMaskedExecution, unit_layout_of
from pgprune_lightning.masking.token_loss import predicting_states, token_losses
from tests.tiny_models import masks_of, random_tokens, traces_of_masking


def dense_states(model: PreTrainedModel, tokens_BT: Tensor) -> Tensor:
    return predicting_states(model, tokens_BT).view(len(tokens_BT), tokens_BT.shape[1] - 1, -1)


@pytest.mark.parametrize("by_dense", [False, True])
def test_batched_equals_dense_masked(
    family_model: PreTrainedModel, units: dict[str, Any], by_dense: bool
) -> None:
    """The masks empty each group in some sequence; the second call finds the first's buffers."""
    space = unit_layout_of(family_model, **units)
    masks_BU = torch.stack([mask_U for _, mask_U in masks_of(space)])
    dense_masked = DenseMaskedExecution(family_model, space)
    batched = BatchedExecution(family_model, space, capture=False)
    for seed, order in enumerate([masks_BU, masks_BU.flip(0)]):
        tokens_BT = random_tokens(rows=len(order), seed=seed)
        dense_BTH = dense_states(family_model, tokens_BT) if by_dense else None
        found_BT = batched.token_losses(tokens_BT, order, dense_BTH)
        with dense_masked.masked_each(order) as masked:
            expected_BT = token_losses(masked, tokens_BT, dense_BTH)
        torch.testing.assert_close(found_BT, expected_BT, rtol=0, atol=1e-5)
    assert traces_of_masking(family_model) == []


WAITING = (
    "_local_scalar_dense",  # item(), float(), bool(), if
    "is_nonzero",
    "equal",
    "nonzero",
    "masked_select",
    "unique",
    "bincount",
    "lift_fresh",  # torch.tensor(number), which an accelerator gets by a copy
)


class HostReads(TorchDispatchMode):
    """Lists the operations after which the host waits, on an accelerator, for what they give."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).removeprefix("aten.").partition(".")[0]
        by_mask = name.startswith("index") and any(
            isinstance(index, torch.Tensor) and index.dtype == torch.bool
            for argument in args
            if isinstance(argument, (list, tuple))
            for index in argument
        )
        if by_mask or name.startswith(WAITING):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def test_reads_are_counted() -> None:
    values = torch.tensor([1.0, 2.0])
    with HostReads() as reads:
        if values[0] > 0:
            float(values.sum())
        values[values > 1]
        values.new_tensor(3.0)
    assert reads.names == ["_local_scalar_dense", "_local_scalar_dense", "index", "lift_fresh"]


def test_the_host_reads_nothing(family_model: PreTrainedModel, units: dict[str, Any]) -> None:
    """As a CUDA graph asks, in every family: not the masks, not the tokens, not their positions."""
    space = unit_layout_of(family_model, **units)
    masks_BU = torch.stack([mask_U for _, mask_U in masks_of(space)])
    tokens_BT = random_tokens(rows=len(masks_BU))
    batched = BatchedExecution(family_model, space)
    with HostReads() as reads:
        batched.token_losses(tokens_BT, masks_BU)
    assert reads.names == []


def test_an_error_leaves_the_model_untouched(tiny_model: Callable[..., PreTrainedModel]) -> None:
    model = tiny_model("llama_gqa")
    space = unit_layout_of(model, ["mlp_channel"])
    ones_BU = torch.ones(2, space.num_units, dtype=torch.bool)
    with pytest.raises(IndexError):
        BatchedExecution(model, space).token_losses(random_tokens() + 10**6, ones_BU)
    assert traces_of_masking(model) == []


@pytest.mark.gpu
@pytest.mark.parametrize("by_dense", [False, True])
def test_a_graph_equals_the_calls_it_was_captured_from(
    family_model: PreTrainedModel, units: dict[str, Any], by_dense: bool
) -> None:
    model = copy.deepcopy(family_model).to("cuda")
    space = unit_layout_of(model, **units)
    masks_BU = torch.stack([mask_U for _, mask_U in masks_of(space)]).cuda()
    called, replayed = (BatchedExecution(model, space, capture=c) for c in (False, True))
    for seed, order in enumerate([masks_BU, masks_BU.flip(0)]):
        tokens_BT = random_tokens(rows=len(order), seed=seed).cuda()
        dense_BTH = dense_states(model, tokens_BT) if by_dense else None
        found_BT = replayed.token_losses(tokens_BT, order, dense_BTH)
        expected_BT = called.token_losses(tokens_BT, order, dense_BTH)
        torch.testing.assert_close(found_BT, expected_BT, rtol=0, atol=1e-5)
    graphs = [recording.graph for recording in replayed._cuda_graph._recordings.values()]
    assert None not in graphs, "it was captured, and did not fall back"
