"""A fingerprint follows the weights, and nothing but the weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from pgprune_lightning.masking.fingerprint import SAMPLES_PER_TENSOR, model_fingerprint


@pytest.mark.parametrize("name", ["llama_gqa", "llama_mha"], ids=["untied", "tied"])
def test_saved_and_loaded_in_any_type_is_the_same_model(
    tiny_model: Callable[..., PreTrainedModel], tmp_path: Path, name: str
) -> None:
    model = tiny_model(name)
    model.save_pretrained(tmp_path)
    for dtype in (torch.float32, torch.bfloat16):
        loaded = type(model).from_pretrained(tmp_path, dtype=dtype)
        assert model_fingerprint(loaded) == model_fingerprint(model)


@torch.no_grad()
def test_every_tensor_counts(family_model: PreTrainedModel) -> None:
    original = model_fingerprint(family_model)
    seen = {original}
    for name, parameter in family_model.named_parameters():
        before = parameter.clone()
        parameter.mul_(1.02)
        seen.add(model_fingerprint(family_model))
        parameter.copy_(before)
        assert model_fingerprint(family_model) == original, name
    assert len(seen) == 1 + len(list(family_model.parameters()))


@torch.no_grad()
def test_wide_rows_are_read_in_many_columns() -> None:
    """A stride that divides the row length would read one column of 4,096."""
    model = torch.nn.Linear(4096, 1024, bias=False)
    before = model_fingerprint(model)
    model.weight[:, 8:] += 1
    assert model_fingerprint(model) != before
    assert model.weight.numel() > SAMPLES_PER_TENSOR


def test_shapes_count() -> None:
    tall, wide = torch.nn.Linear(2, 3, bias=False), torch.nn.Linear(3, 2, bias=False)
    torch.nn.init.zeros_(tall.weight)
    torch.nn.init.zeros_(wide.weight)
    assert model_fingerprint(tall) != model_fingerprint(wide)


def test_plans_of_earlier_releases_still_fit() -> None:
    """The digest of fixed weights, written down: no process, machine or release may change it."""
    model = torch.nn.Linear(100, 40)
    model.weight.data = torch.arange(4000.0).view(40, 100)
    model.bias.data = torch.arange(40.0)
    expected = "50eace767281941c010c473940f5e2198d67e1ceb5e6d6adb6ee7cc813984ee9"
    assert model_fingerprint(model) == expected
