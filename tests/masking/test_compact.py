"""Computing what a mask keeps gives what multiplying by the mask gives, and leaves no trace.

Shapes: U units, B sequences, T tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from pgprune_lightning.masking import (
    CompactExecution,
    DenseMaskedExecution,
    token_nll,
    unit_layout_of,
)
from pgprune_lightning.masking.fingerprint import loaded_fingerprint
from pgprune_lightning.policy import UnitLayout
from pgprune_lightning.slicing import cut_model
from tests.tiny_models import make_tiny_model, masks_of, random_tokens, traces_of_masking

# One unit in the last place of the logits, which reach 4, is 2e-7 in float32, 0.016 in bfloat16.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 0.1}


@pytest.fixture
def model() -> PreTrainedModel:
    return make_tiny_model("llama_biased")


@pytest.fixture
def space(model: PreTrainedModel) -> UnitLayout:
    return unit_layout_of(model, ["kv_group", "mlp_channel"])


def logits_of(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model(random_tokens(), use_cache=False).logits.float()


def half_mask(space: UnitLayout, keep_ratio: float = 0.5) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    mask_U = torch.rand(space.num_units, generator=generator) < keep_ratio
    mask_U[space.group(1, "kv_group").start] = True  # part of layer 1's attention stays
    mask_U[space.group(1, "kv_group").start + 1] = False
    return mask_U


@pytest.mark.parametrize(
    ("dtype", "width_multiple", "most_gathered"),
    [(torch.float32, 1, 1.0), (torch.float32, 16, 0.6), (torch.bfloat16, 1, 1.0)],
)
def test_compact_equals_dense_masked_and_cut(
    family_model: PreTrainedModel,
    units: dict[str, Any],
    dtype: torch.dtype,
    width_multiple: int,
    most_gathered: float,
) -> None:
    """Also where the fuller groups are multiplied and the others gathered, in the same pass."""
    model = copy.deepcopy(family_model).to(dtype)
    space = unit_layout_of(model, **units)
    dense_masked = DenseMaskedExecution(model, space)
    compact = CompactExecution(
        model, space, width_multiple=width_multiple, most_gathered=most_gathered
    )
    for name, mask_U in masks_of(space):
        with compact.masked(mask_U) as masked:
            actual = logits_of(masked)
        with dense_masked.masked(mask_U) as masked:
            expected = {"dense_masked": logits_of(masked)}
        expected["cut"] = logits_of(cut_model(model, space, mask_U))
        for way, logits in expected.items():
            difference = float((actual - logits).abs().max())
            assert difference <= TOLERANCES[dtype], f"{name}, {way}: {difference}"


def test_nothing_is_left_on_the_model(family_model: PreTrainedModel, units: dict[str, Any]) -> None:
    space = unit_layout_of(family_model, **units)
    model = copy.deepcopy(family_model)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    execution = CompactExecution(model, space)
    before = token_nll(model, random_tokens())
    for name, mask_U in masks_of(space):
        with execution.masked(mask_U) as masked:
            assert bool(traces_of_masking(masked)) == (not mask_U.all()), name
            first = token_nll(masked, random_tokens())
            assert torch.equal(token_nll(masked, random_tokens()), first), name
        assert not traces_of_masking(model), name
    assert torch.equal(token_nll(model, random_tokens()), before)
    assert list(model.state_dict()) == list(weights)
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name]), name


def test_an_exception_in_the_block_leaves_nothing_behind(
    model: PreTrainedModel, space: UnitLayout
) -> None:
    execution = CompactExecution(model, space)
    with pytest.raises(RuntimeError, match="inside"), execution.masked(half_mask(space)):
        raise RuntimeError("inside")
    assert not traces_of_masking(model)
    with execution.masked(half_mask(space)):
        assert traces_of_masking(model)


def test_masks_do_not_nest(model: PreTrainedModel, space: UnitLayout) -> None:
    execution, mask_U = CompactExecution(model, space), half_mask(space)
    with (
        execution.masked(mask_U),
        pytest.raises(AssertionError, match="already"),
        execution.masked(mask_U),
    ):
        pass
    assert not traces_of_masking(model)


def test_a_mask_of_another_length_is_refused(model: PreTrainedModel, space: UnitLayout) -> None:
    execution = CompactExecution(model, space)
    too_short_U = torch.zeros(space.num_units - 1, dtype=torch.bool)
    with pytest.raises(AssertionError), execution.masked(too_short_U):
        pass
    with execution.masked(half_mask(space)):  # and the execution can be used again
        pass


def inner_widths(model: PreTrainedModel) -> list[int]:
    """What each layer's down projection reads, in one forward pass."""
    widths: list[int] = []
    handles = [
        layer.mlp.down_proj.register_forward_pre_hook(
            lambda _module, arguments: widths.append(arguments[0].shape[-1])
        )
        for layer in model.model.layers
    ]
    logits_of(model)
    for handle in handles:
        handle.remove()
    return widths


@pytest.mark.parametrize(
    ("kept", "multiple", "width"),
    [(1, 1, 1), (13, 1, 13), (13, 4, 16), (16, 4, 16), (17, 16, 24), (21, 1, 21), (22, 1, 24)],
    ids=["one", "as many", "filled up", "full", "all there are", "below the share", "above it"],
)
def test_as_much_is_computed_as_is_kept(
    model: PreTrainedModel, space: UnitLayout, kept: int, multiple: int, width: int
) -> None:
    """Of 24 channels; 0.9 of them are 21.6."""
    mask_U = torch.ones(space.num_units, dtype=torch.bool)
    mask_U[space.group(1, "mlp_channel").start + kept : space.group(1, "mlp_channel").end] = False
    execution = CompactExecution(model, space, width_multiple=multiple, most_gathered=0.9)
    with execution.masked(mask_U) as masked:
        assert inner_widths(masked) == [24, width, 24]


def test_the_layout_is_nobody_elses_business(
    model: PreTrainedModel, space: UnitLayout, tmp_path: Path
) -> None:
    """Names, values, shapes, the hash, saved files and cut models are those of the loaded model."""
    plain, mask_U = copy.deepcopy(model), half_mask(space)
    CompactExecution(model, space)
    down: nn.Linear = model.model.layers[0].mlp.down_proj
    assert down.weight.stride() == (1, down.out_features)
    assert loaded_fingerprint(model) == loaded_fingerprint(plain)
    assert_same_tensors(model, plain)
    assert_same_tensors(cut_model(model, space, mask_U), cut_model(plain, space, mask_U))
    model.save_pretrained(tmp_path)
    assert_same_tensors(AutoModelForCausalLM.from_pretrained(tmp_path), plain)


def assert_same_tensors(actual: nn.Module, expected: nn.Module) -> None:
    found = actual.state_dict()
    assert list(found) == list(expected.state_dict())
    for name, value in expected.state_dict().items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("name", ["llama_gqa", "mistral_sliding", "qwen3"])
def test_text_is_continued_under_a_mask(
    tiny_model: Callable[..., PreTrainedModel], name: str
) -> None:
    """With the key-value cache, whose entries are then as many heads as are kept."""
    model = tiny_model(name)
    space = unit_layout_of(model, ["kv_group", "mlp_channel"])
    prompt_BT = random_tokens(rows=1, tokens=6)
    texts = []
    for execution in (DenseMaskedExecution(model, space), CompactExecution(model, space)):
        with torch.no_grad(), execution.masked(half_mask(space)) as masked:
            texts.append(masked.generate(prompt_BT, max_new_tokens=12, do_sample=False))
    assert texts[0].shape == (1, 18)
    assert torch.equal(*texts)
