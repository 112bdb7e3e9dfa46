"""A training that is killed in each step and resumed equals the one that is not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from pgprune_lightning.recovery.adapter_training import (
    AdapterTraining,
    StepLog,
    newest_checkpoint,
    train_adapter,
)
from pgprune_lightning.recovery.alpaca import Example
from pgprune_lightning.recovery.lora import LoraOptions, attach_adapter
from tests.tiny_models import random_tokens

OPTIONS = LoraOptions(
    rank=4, batch_size=4, micro_batch_size=2, epochs=3, lr=0.02, dropout=0.2, warmup=0.3
)

IDENTITY = {"run": "a"}


@pytest.fixture(autouse=True)
def _peft() -> None:
    pytest.importorskip("peft", reason="pip install -e '.[finetune]'")


def _examples() -> list[Example]:
    return [(row.tolist(), row.tolist()) for row in random_tokens(6, 12)]


def _training(model: PreTrainedModel, options: LoraOptions) -> AdapterTraining:
    torch.manual_seed(options.seed)
    return AdapterTraining(attach_adapter(model, options), _examples(), options, IDENTITY)


def _adapter(training: AdapterTraining) -> dict[str, Tensor]:
    return {name: value for name, value in training.named_parameters() if value.requires_grad}


class _Killed(BaseException):
    """Ends a process: nothing is saved."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_killed_in_each_step(
    tiny_model: Callable[..., PreTrainedModel], dtype: torch.dtype, tmp_path: Path
) -> None:
    losses: dict[int, float] = {}
    whole = _training(tiny_model("llama_gqa").to(dtype), OPTIONS)
    train_adapter(whole, StepLog(on_step=losses.__setitem__))
    assert len(losses) == whole.num_steps == 6

    found: dict[int, float] = {}
    for start in range(6):
        kill_in = start + 2

        def take(step: int, loss: float, kill_in: int = kill_in) -> None:
            found.setdefault(step, loss)
            if step == kill_in:
                raise _Killed

        newest = newest_checkpoint(tmp_path / "checkpoints", IDENTITY)
        assert (newest is None) == (start == 0)
        part = _training(tiny_model("llama_gqa").to(dtype), OPTIONS)
        torch.manual_seed(100 + start)  # another process draws otherwise
        if start == 0:
            torch.manual_seed(OPTIONS.seed)
            part = _training(tiny_model("llama_gqa").to(dtype), OPTIONS)
        path, step = newest or (None, 0)
        assert step == start
        ending = nullcontext() if start == 5 else pytest.raises(_Killed)
        with ending:
            train_adapter(part, StepLog(on_step=take), folder=tmp_path, every=1, checkpoint=path)
    assert found == losses
    expected = _adapter(whole)
    assert all(torch.equal(value, expected[name]) for name, value in _adapter(part).items())


def test_each_epoch_has_every_example_once_in_an_order_of_its_own(
    tiny_model: Callable[..., PreTrainedModel],
) -> None:
    training = _training(tiny_model("llama_gqa"), dataclasses.replace(OPTIONS, epochs=2))
    batches = [[tuple(ids) for ids, _ in batch] for batch in training.batches]
    assert [len(batch) for batch in batches] == [4, 2, 4, 2]
    first, second = batches[0] + batches[1], batches[2] + batches[3]
    assert sorted(first) == sorted(second) == sorted(tuple(ids) for ids, _ in _examples())
    assert first != second
