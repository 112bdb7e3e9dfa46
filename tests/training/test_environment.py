"""What the environment answers for many masks is what it answers for each of them alone.

Shapes: S mask samples, U units, B sequences, T tokens.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pgprune_lightning.masking.model_source import resolve_model_source
from pgprune_lightning.training.environment import FrozenEnvironment, Judge
from tests.tiny_models import random_tokens
from tests.tiny_runs import TinyRun

JUDGES: tuple[Judge, ...] = ("cross_entropy", "kl_to_dense")


@pytest.fixture
def environment(tiny_run: TinyRun) -> FrozenEnvironment:
    source = resolve_model_source(str(tiny_run.model))
    made = FrozenEnvironment(source, ["kv_group", "mlp_channel"], 1)
    made.load(dtype="float32", device=torch.device("cpu"), attention="sdpa")
    return made


def masks_of(environment: FrozenEnvironment, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, environment.space.num_units, generator=generator) < 0.6


def expected_losses(
    environment: FrozenEnvironment, batch_BT: Tensor, mask_U: Tensor, judge: Judge
) -> Tensor:
    """Mean loss of each sequence, from all logits."""
    with torch.no_grad(), environment.masked(mask_U) as masked:
        masked_BTV = masked(batch_BT).logits[:, :-1].double().log_softmax(-1)
    if judge == "cross_entropy":
        return -masked_BTV.gather(-1, batch_BT[:, 1:, None]).squeeze(-1).mean(-1)
    with torch.no_grad():
        dense_BTV = environment.model(batch_BT).logits[:, :-1].double().log_softmax(-1)
    return (dense_BTV.exp() * (dense_BTV - masked_BTV)).sum(-1).mean(-1)


@pytest.mark.parametrize("judge", JUDGES)
def test_each_mask_is_judged_by_the_whole_batch(
    environment: FrozenEnvironment, judge: Judge
) -> None:
    batch_BT, masks_SU = random_tokens(rows=3), masks_of(environment, 4)
    losses_S = environment.losses_of_masks(batch_BT, masks_SU, judge)
    assert losses_S.dtype == torch.float64
    expected_S = torch.stack(
        [expected_losses(environment, batch_BT, mask_U, judge).mean() for mask_U in masks_SU]
    )
    torch.testing.assert_close(losses_S, expected_S, rtol=0, atol=1e-5)


@pytest.mark.parametrize("judge", JUDGES)
def test_each_sequence_is_judged_under_its_own_mask(
    environment: FrozenEnvironment, judge: Judge
) -> None:
    batch_BT, masks_BU = random_tokens(rows=3), masks_of(environment, 3)
    losses_B = environment.losses_of_sequences(batch_BT, masks_BU, judge)
    assert losses_B.dtype == torch.float64
    expected_B = torch.stack(
        [
            expected_losses(environment, batch_BT[row : row + 1], mask_U, judge)[0]
            for row, mask_U in enumerate(masks_BU)
        ]
    )
    torch.testing.assert_close(losses_B, expected_B, rtol=0, atol=1e-5)
