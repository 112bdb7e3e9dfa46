"""Passes are counted by their tokens and their purpose, whoever makes them."""

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from pgprune_lightning.evaluation.pass_counter import TOKENS_OF_A_PASS, PassCounter
from pgprune_lightning.masking import token_nll, unit_layout_of
from pgprune_lightning.masking.gates import gate_gradient, gated
from tests.tiny_models import random_tokens

NONE = {"initialization": 0.0, "training": 0.0, "validation": 0.0, "backward": 0.0}


def test_passes_are_counted_by_their_tokens(tiny_model: Callable[..., PreTrainedModel]) -> None:
    model = tiny_model("llama_gqa")
    space = unit_layout_of(model, ["kv_group"])
    batch_BT = random_tokens(rows=2, tokens=16)
    share = batch_BT.numel() / TOKENS_OF_A_PASS
    counter = PassCounter()
    token_nll(model, batch_BT)
    assert counter.passes == NONE
    counter.attach(model)
    token_nll(model, batch_BT)
    counter.purpose = "training"
    gates_1U = torch.ones(1, space.num_units, requires_grad=True)
    for _ in range(2):
        with gated(model, space, gates_1U):
            gate_gradient(model, batch_BT, gates_1U)
    counter.purpose = "validation"
    token_nll(model, batch_BT[:1])
    expected = {
        "initialization": share,
        "training": 2 * share,
        "validation": share / 2,
        "backward": 2 * share,
    }
    assert counter.passes == pytest.approx(expected)

    resumed = PassCounter()
    resumed.load_state_dict(counter.state_dict())
    resumed.load_state_dict(counter.state_dict())
    assert resumed.passes == pytest.approx({name: 2 * n for name, n in expected.items()})

    counter.detach()
    token_nll(model, batch_BT)
    assert counter.passes == pytest.approx(expected)
    assert not any(module._forward_hooks for module in model.modules())
