"""What is timed is greedy generation with a cache, for dense models and for cut ones."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel

from pgprune_lightning.evaluation import TorchModel
from pgprune_lightning.masking import token_nll, unit_layout_of
from pgprune_lightning.slicing import cut_model
from tests.tiny_models import make_tiny_model, random_tokens


def _without_first_attention(model: PreTrainedModel) -> PreTrainedModel:
    space = unit_layout_of(model, ["kv_group", "mlp_channel"])
    mask_U = torch.rand(space.num_units, generator=torch.Generator().manual_seed(0)) < 0.5
    space.view(mask_U, 0, "kv_group").fill_(False)
    return cut_model(model, space, mask_U)


@pytest.mark.parametrize("is_cut", [False, True])
def test_decoding_continues_greedily(is_cut: bool) -> None:
    dense = make_tiny_model("llama_gqa")
    model = _without_first_attention(dense) if is_cut else dense
    evaluated = TorchModel(model)
    prompt_BT = random_tokens(rows=2, tokens=6)
    fed: list[torch.Tensor] = []
    handle = model.get_input_embeddings().register_forward_pre_hook(
        lambda _module, arguments: fed.append(arguments[0].clone())
    )
    for _ in range(2):  # a second prompt begins anew
        fed.clear()
        seconds = evaluated.timed_generation(prompt_BT, 5)
        assert min(seconds) > 0
        whole_BT = torch.cat(fed, dim=1)
        assert [tokens.shape[1] for tokens in fed] == [6, 1, 1, 1, 1, 1]
    handle.remove()
    logits_BTV = model(whole_BT, use_cache=False).logits
    assert torch.equal(whole_BT[:, 6:], logits_BTV[:, 5:-1].argmax(-1))


def test_facts_and_losses_are_the_models() -> None:
    model = make_tiny_model("llama_gqa", tie_word_embeddings=True).to(torch.bfloat16)
    evaluated = TorchModel(model)
    facts = evaluated.facts
    assert facts.parameters == model.num_parameters()
    assert facts.parameter_bytes == 2 * facts.parameters
    assert (facts.dtype, facts.vocabulary, facts.max_positions) == ("bfloat16", 97, 128)
    tokens_BT = random_tokens()
    assert torch.equal(evaluated.token_nll(tokens_BT), token_nll(model, tokens_BT))
