"""Which models have learned positions, and what becomes of blocks beyond them."""

from __future__ import annotations

import warnings

import pytest
from transformers import AutoConfig, BloomConfig, GPT2Config, GPTNeoConfig, PreTrainedConfig

from pgprune_lightning.errors import UserError, warn_once
from pgprune_lightning.masking.positions import check_lengths, has_learned_positions, max_positions
from tests.tiny_models import CONFIGS, make_tiny_model

SMALL = {"hidden_size": 8, "num_layers": 1, "num_heads": 2}


def _config(name: str) -> PreTrainedConfig:
    return make_tiny_model(name).config


@pytest.mark.parametrize("name", CONFIGS)
def test_the_families_with_learned_positions(name: str) -> None:
    assert has_learned_positions(_config(name)) == name.startswith("opt")


def test_other_models_with_learned_positions() -> None:
    assert has_learned_positions(GPT2Config(n_embd=8, n_layer=1, n_head=2))
    assert has_learned_positions(GPTNeoConfig(**SMALL, attention_types=[[["global"], 1]]))


def test_a_model_without_a_number_of_positions() -> None:
    config = BloomConfig(hidden_size=8, n_layer=1, n_head=2)
    assert max_positions(config) is None
    check_lengths(config, {"--lengths": 10**6})


def test_blocks_that_fit() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_lengths(_config("opt"), {"--lengths": 128, "--tokens": 3})
        check_lengths(_config("llama_gqa"), {"--lengths": 128})
        check_lengths(_config("opt"), {})


def test_blocks_beyond_learned_positions_are_refused() -> None:
    lengths = {"data.block_length": 128, "data.evaluation_block_length": 129, "--more": 200}
    with pytest.raises(UserError) as caught:
        check_lengths(_config("opt"), lengths)
    assert str(caught.value) == (
        "data.evaluation_block_length is 129 tokens, --more is 200 tokens, but the model (of type "
        "opt) has learned positions for 128 and none beyond them; give at most 128."
    )


def test_blocks_beyond_rotary_positions_are_warned_of_once() -> None:
    warn_once.cache_clear()
    config = _config("llama_gqa")
    with pytest.warns(UserWarning, match=r"^--lengths is 129 tokens, but the model \(of type l"):
        check_lengths(config, {"--lengths": 129})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_lengths(config, {"--lengths": 129})


def test_a_model_that_reads_pictures_too() -> None:
    config = AutoConfig.for_model("gemma3", text_config={"max_position_embeddings": 64})
    assert max_positions(config) == 64
