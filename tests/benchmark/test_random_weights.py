"""Random weights make a model that runs, and never exist in another type."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM

from pgprune_lightning.benchmark.random_weights import random_model
from pgprune_lightning.masking.token_loss import token_nll

CPU = torch.device("cpu")


def config(**options: Any) -> Any:
    sizes = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return AutoConfig.for_model("llama", **sizes, **heads, **options)


class LargestFloat32(TorchDispatchMode):
    """Remembers the most elements of any float32 tensor with a memory of its own."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            is_there = isinstance(tensor, torch.Tensor) and tensor.device.type != "meta"
            if is_there and tensor.dtype == torch.float32:
                self.elements = max(self.elements, tensor.numel())
        return made


@pytest.mark.parametrize("tied", [False, True])
def test_the_loss_is_near_that_of_a_guess(tied: bool) -> None:
    model = random_model(config(tie_word_embeddings=tied), dtype=torch.bfloat16, device=CPU)
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert (embeddings.weight is head.weight) == tied
    loss = float(token_nll(model, torch.arange(60).view(2, 30)).mean())
    assert loss == pytest.approx(math.log(97), abs=0.3)


def test_positions_are_those_of_an_ordinary_model() -> None:
    model = random_model(config(), dtype=torch.float32, device=CPU)
    ordinary = AutoModelForCausalLM.from_config(config())
    ordinary.load_state_dict(model.state_dict())
    tokens = torch.arange(40).view(1, 40)
    assert model(tokens).logits.equal(ordinary.eval()(tokens).logits)


def test_weights_come_into_being_in_their_type() -> None:
    with LargestFloat32() as seen:
        model = random_model(config(), dtype=torch.bfloat16, device=CPU)
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert not any(weight.requires_grad or weight.is_meta for weight in model.parameters())
    assert seen.elements < 32 * 32, "a matrix of weights was there in float32"
