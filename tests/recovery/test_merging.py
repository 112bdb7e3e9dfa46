"""Adapters leave pruned units as they are: a padded model learns what the cut one does.

Shapes: U units.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from pgprune_lightning.export.padded import padded_model
from pgprune_lightning.masking import unit_layout_of
from pgprune_lightning.recovery.adapter_training import AdapterTraining, StepLog, train_adapter
from pgprune_lightning.recovery.lora import (
    LoraOptions,
    attach_adapter,
    keep_pruned,
    merge,
    probe_logits,
    zero_columns,
)
from pgprune_lightning.slicing import cut_model
from tests.tiny_models import make_tiny_model, random_tokens

ALL_SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
OPTIONS = LoraOptions(rank=4, batch_size=4, epochs=4, lr=0.05, target_modules=ALL_SEVEN)


@pytest.fixture(autouse=True)
def _peft() -> None:
    pytest.importorskip("peft", reason="pip install -e '.[finetune]'")


@pytest.mark.parametrize("name", ["llama_biased", "qwen3", "mistral", "qwen2_mixed"])
def test_pruned_units_stay_zero(name: str) -> None:
    dense = make_tiny_model(name)
    space = unit_layout_of(dense, ["kv_group", "mlp_channel"])
    mask_U = torch.rand(space.num_units, generator=torch.Generator().manual_seed(0)) < 0.5
    for layer in (1, 2):
        space.view(mask_U, layer, "kv_group").copy_(torch.tensor([True, False]))
    space.view(mask_U, 0, "kv_group").fill_(False)
    space.view(mask_U, 1, "mlp_channel").fill_(False)
    padded = padded_model(dense, space, mask_U)
    before = copy.deepcopy(padded.state_dict())

    zeroed = zero_columns(padded, OPTIONS.target_modules)
    torch.manual_seed(0)
    adapted = attach_adapter(padded, OPTIONS)
    keep_pruned(adapted, zeroed)
    examples = [(row.tolist(), row.tolist()) for row in random_tokens(4, 12)]
    losses: list[float] = []
    log = StepLog(on_step=lambda _, loss: losses.append(loss))
    train_adapter(AdapterTraining(adapted, examples, OPTIONS), log)
    assert losses[-1] < losses[0]
    apart = probe_logits(adapted)
    merged = merge(adapted)
    assert merged.rounding < 1e-3
    assert torch.allclose(merged.logits_BTV, apart, atol=1e-3)

    after: Any = merged.model.state_dict()
    learned = 0
    for key, value in before.items():
        assert torch.equal(after[key] == 0, value == 0), key
        learned += not torch.equal(after[key], value)
    assert learned == 7 * 3 - 4 - 3, "all but those of the empty sub-layers"
    cut = cut_model(merged.model, space, mask_U)
    assert torch.allclose(probe_logits(cut), merged.logits_BTV, atol=1e-4)


def test_a_model_without_zeros_has_nothing_to_keep() -> None:
    assert not zero_columns(make_tiny_model("llama_gqa"), ALL_SEVEN)
