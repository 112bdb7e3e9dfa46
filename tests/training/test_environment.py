"""What the environment answers for many masks is what it answers for each of them alone.

Shapes: S mask samples, U units, B sequences, T tokens.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from pgprune_lightning.masking import activation_memory
from pgprune_lightning.masking.activation_memory import bytes_per_token
from pgprune_lightning.masking.model_source import resolve_model_source
from pgprune_lightning.training.environment import FrozenEnvironment, Judge
from tests.tiny_models import (
    NUM_TOKENS,
    VOCABULARY,
    claim_tied,
    make_tiny_model,
    random_tokens,
)
from tests.tiny_runs import TinyRun, write_tiny_model

JUDGES: tuple[Judge, ...] = ("cross_entropy", "kl_to_dense")


@pytest.fixture(params=["gathered", "multiplied", "widened"])
def environment(tiny_run: TinyRun, request: pytest.FixtureRequest) -> FrozenEnvironment:
    source = resolve_model_source(str(tiny_run.model))
    made = FrozenEnvironment(source, ["kv_group", "mlp_channel"], 1)
    made.load(
        dtype="float32",
        device=torch.device("cpu"),
        attention="sdpa",
        execution=request.param,
    )
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


def test_the_files_say_how_many_parameters_there_are(tmp_path: Path) -> None:
    """The configuration counts one matrix for two where it ties what the files hold apart."""
    folder = claim_tied(write_tiny_model(tmp_path))
    environment = FrozenEnvironment(resolve_model_source(str(folder)), ["layer"], 1)
    before, of_head = environment.space, VOCABULARY * 32
    environment.load(dtype="float32", device=torch.device("cpu"), attention="sdpa")
    dense = make_tiny_model("llama_gqa").num_parameters()
    assert before.total_parameters == dense - of_head
    assert environment.base_model.parameters == environment.space.total_parameters == dense
    assert environment.space.groups == before.groups
    one_layer_U = torch.tensor([True, False, False])
    in_layer = before.total_parameters - before.kept_parameters(one_layer_U)
    assert environment.space.kept_parameters(one_layer_U) == dense - in_layer


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


@pytest.mark.parametrize("judge", JUDGES)
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_a_batch_in_parts_has_the_same_losses(
    environment: FrozenEnvironment, monkeypatch: pytest.MonkeyPatch, rows: int, judge: Judge
) -> None:
    batch_BT, masks_BU = random_tokens(rows=5), masks_of(environment, 5)

    def losses() -> list[Tensor]:
        return [
            environment.token_nll(batch_BT, None),
            environment.token_nll(batch_BT, masks_BU[0]),
            environment.losses_of_masks(batch_BT, masks_BU[:2], judge),
            environment.losses_of_sequences(batch_BT, masks_BU, judge),
        ]

    whole = losses()
    bytes_per_sequence = NUM_TOKENS * bytes_per_token(environment.model.config, torch.float32)
    monkeypatch.setattr(activation_memory, "BYTES_PER_FORWARD", rows * bytes_per_sequence)
    forwards: list[int] = []
    handle = environment.model.model.register_forward_pre_hook(
        lambda _module, arguments: forwards.append(arguments[0].shape[0])
    )
    for in_parts, at_once in zip(losses(), whole, strict=True):
        torch.testing.assert_close(in_parts, at_once, rtol=0, atol=1e-5)
    handle.remove()
    assert max(forwards) == rows
    if environment.execution == "widened":
        # Both masks' sequences side by side, in as few passes as the bound allows.
        dense = 0 if judge == "cross_entropy" else 2
        assert len(forwards) == (3 + dense) * -(-5 // rows) + -(-10 // rows)
    # One pass, one, two and one, and the dense model's for the divergence of both of the last.
    assert sum(forwards) == 5 * (5 if judge == "cross_entropy" else 7)
