"""What the masked_model answers for many masks is what it answers for each of them alone.

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
from pgprune_lightning.training.masked_model import MaskedModel, Objective
from tests.tiny_models import (
    NUM_TOKENS,
    VOCABULARY,
    claim_tied,
    make_tiny_model,
    random_tokens,
)
from tests.tiny_runs import TinyRun, write_tiny_model

OBJECTIVES: tuple[Objective, ...] = ("cross_entropy", "kl_to_dense")


@pytest.fixture(params=["compact", "dense_masked", "batched"])
def masked_model(tiny_run: TinyRun, request: pytest.FixtureRequest) -> MaskedModel:
    source = resolve_model_source(str(tiny_run.model))
    made = MaskedModel(source, ["kv_group", "mlp_channel"], 1)
    made.load(
        dtype="float32",
        device=torch.device("cpu"),
        attention="sdpa",
        execution=request.param,
    )
    return made


def masks_of(masked_model: MaskedModel, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, masked_model.space.num_units, generator=generator) < 0.6


def expected_losses(
    masked_model: MaskedModel, batch_BT: Tensor, mask_U: Tensor, objective: Objective
) -> Tensor:
    """Mean loss of each sequence, from all logits."""
    with torch.no_grad(), masked_model.masked(mask_U) as masked:
        masked_BTV = masked(batch_BT).logits[:, :-1].double().log_softmax(-1)
    if objective == "cross_entropy":
        return -masked_BTV.gather(-1, batch_BT[:, 1:, None]).squeeze(-1).mean(-1)
    with torch.no_grad():
        dense_BTV = masked_model.model(batch_BT).logits[:, :-1].double().log_softmax(-1)
    return (dense_BTV.exp() * (dense_BTV - masked_BTV)).sum(-1).mean(-1)


def test_the_files_say_how_many_parameters_there_are(tmp_path: Path) -> None:
    """The configuration counts one matrix for two where it ties what the files hold apart."""
    folder = claim_tied(write_tiny_model(tmp_path))
    masked_model = MaskedModel(resolve_model_source(str(folder)), ["layer"], 1)
    before, of_head = masked_model.space, VOCABULARY * 32
    masked_model.load(dtype="float32", device=torch.device("cpu"), attention="sdpa")
    dense = make_tiny_model("llama_gqa").num_parameters()
    assert before.total_parameters == dense - of_head
    assert masked_model.base_model.parameters == masked_model.space.total_parameters == dense
    assert masked_model.space.groups == before.groups
    one_layer_U = torch.tensor([True, False, False])
    in_layer = before.total_parameters - before.kept_parameters(one_layer_U)
    assert masked_model.space.kept_parameters(one_layer_U) == dense - in_layer


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_each_mask_is_evaluated_on_the_whole_batch(
    masked_model: MaskedModel, objective: Objective
) -> None:
    batch_BT, masks_SU = random_tokens(rows=3), masks_of(masked_model, 4)
    losses_S = masked_model.losses_of_masks(batch_BT, masks_SU, objective)
    assert losses_S.dtype == torch.float64
    expected_S = torch.stack(
        [expected_losses(masked_model, batch_BT, mask_U, objective).mean() for mask_U in masks_SU]
    )
    torch.testing.assert_close(losses_S, expected_S, rtol=0, atol=1e-5)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_each_sequence_is_evaluated_under_its_own_mask(
    masked_model: MaskedModel, objective: Objective
) -> None:
    batch_BT, masks_BU = random_tokens(rows=3), masks_of(masked_model, 3)
    losses_B = masked_model.losses_of_sequences(batch_BT, masks_BU, objective)
    assert losses_B.dtype == torch.float64
    expected_B = torch.stack(
        [
            expected_losses(masked_model, batch_BT[row : row + 1], mask_U, objective)[0]
            for row, mask_U in enumerate(masks_BU)
        ]
    )
    torch.testing.assert_close(losses_B, expected_B, rtol=0, atol=1e-5)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_a_batch_in_parts_has_the_same_losses(
    masked_model: MaskedModel, monkeypatch: pytest.MonkeyPatch, rows: int, objective: Objective
) -> None:
    batch_BT, masks_BU = random_tokens(rows=5), masks_of(masked_model, 5)

    def losses() -> list[Tensor]:
        return [
            masked_model.token_nll(batch_BT, None),
            masked_model.token_nll(batch_BT, masks_BU[0]),
            masked_model.losses_of_masks(batch_BT, masks_BU[:2], objective),
            masked_model.losses_of_sequences(batch_BT, masks_BU, objective),
        ]

    whole = losses()
    bytes_per_sequence = NUM_TOKENS * bytes_per_token(masked_model.model.config, torch.float32)
    monkeypatch.setattr(activation_memory, "BYTES_PER_FORWARD", rows * bytes_per_sequence)
    forwards: list[int] = []
    handle = masked_model.model.model.register_forward_pre_hook(
        lambda _module, arguments: forwards.append(arguments[0].shape[0])
    )
    for in_parts, at_once in zip(losses(), whole, strict=True):
        torch.testing.assert_close(in_parts, at_once, rtol=0, atol=1e-5)
    handle.remove()
    assert max(forwards) == rows
    if masked_model.execution == "batched":
        # Both masks' sequences side by side, in as few passes as the bound allows.
        dense = 0 if objective == "cross_entropy" else 2
        assert len(forwards) == (3 + dense) * -(-5 // rows) + -(-10 // rows)
    # One pass, one, two and one, and the dense model's for the divergence of both of the last.
    assert sum(forwards) == 5 * (5 if objective == "cross_entropy" else 7)
