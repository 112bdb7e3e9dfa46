"""A training that is saved and restored after each step is the one that is not."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from pgprune_lightning.finetuning.adapter_training import AdapterTraining, Example
from pgprune_lightning.finetuning.lora import attach_adapter
from pgprune_lightning.finetuning.options import LoraOptions
from tests.tiny_models import random_tokens

OPTIONS = LoraOptions(
    rank=4, batch_size=4, micro_batch_size=2, epochs=3, lr=0.02, dropout=0.2, warmup=0.3
)


@pytest.fixture(autouse=True)
def _peft() -> None:
    pytest.importorskip("peft", reason="pip install -e '.[finetune]'")


def _examples() -> list[Example]:
    return [(row.tolist(), row.tolist()) for row in random_tokens(6, 12)]


def _training(model: PreTrainedModel, options: LoraOptions) -> AdapterTraining:
    torch.manual_seed(options.seed)
    return AdapterTraining(attach_adapter(model, options), _examples(), options)


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    """As it comes back from the disk."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


def _adapter(training: AdapterTraining) -> dict[str, Tensor]:
    adapter: dict[str, Tensor] = _copied(training.state_dict())["adapter"]
    return adapter


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_restored_after_each_step(
    tiny_model: Callable[..., PreTrainedModel], dtype: torch.dtype
) -> None:
    whole = _training(tiny_model("llama_gqa").to(dtype), OPTIONS)
    losses = list(whole.steps())
    assert len(losses) == whole.num_steps == whole.step == 6

    state, found = _copied(_training(tiny_model("llama_gqa").to(dtype), OPTIONS).state_dict()), []
    for step in range(6):
        torch.manual_seed(100 + step)  # what another process would begin with
        part = _training(tiny_model("llama_gqa").to(dtype), OPTIONS)
        part.load_state_dict(state)
        assert part.step == step
        found.append(next(part.steps()))
        state = _copied(part.state_dict())
    assert found == losses
    expected = _adapter(whole)
    assert state["adapter"].keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in state["adapter"].items())


def test_each_epoch_has_every_example_once_in_an_order_of_its_own(
    tiny_model: Callable[..., PreTrainedModel],
) -> None:
    training = _training(tiny_model("llama_gqa"), dataclasses.replace(OPTIONS, epochs=2))
    batches = [[tuple(ids) for ids, _ in batch] for batch in training._batches]
    assert [len(batch) for batch in batches] == [4, 2, 4, 2]
    first, second = batches[0] + batches[1], batches[2] + batches[3]
    assert sorted(first) == sorted(second) == sorted(tuple(ids) for ids, _ in _examples())
    assert first != second
