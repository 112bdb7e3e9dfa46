"""A model is loaded whole and frozen, or one error says what is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedModel

from pgprune_lightning.errors import UserError
from pgprune_lightning.masking import token_nll
from pgprune_lightning.masking.decoder_family import decoder_layers
from pgprune_lightning.masking.frozen_model import (
    load_frozen_model,
    load_model_config,
    model_on_meta,
    resolve_dtype,
)
from pgprune_lightning.masking.model_source import resolve_model_source
from pgprune_lightning.masking.tokenizer import load_tokenizer
from tests.tiny_models import random_tokens

CPU = torch.device("cpu")
WEIGHTS = "model.safetensors"


def load(path: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    return load_frozen_model(resolve_model_source(str(path)), dtype=dtype, device=CPU)


@pytest.fixture
def folder(tiny_model: Callable[..., PreTrainedModel], tmp_path: Path) -> Path:
    tiny_model("llama_gqa").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_loads_what_was_saved(folder: Path, tiny_model: Callable[..., PreTrainedModel]) -> None:
    model = load(folder)
    expected = tiny_model("llama_gqa").state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert load(folder, torch.bfloat16).lm_head.weight.dtype == torch.bfloat16


def test_capped_attention_logits_want_eager(
    tmp_path: Path, tiny_model: Callable[..., PreTrainedModel]
) -> None:
    tiny_model("gemma2").save_pretrained(tmp_path)
    assert load(tmp_path).config._attn_implementation == "eager"


def test_nothing_of_it_can_learn(folder: Path) -> None:
    model = load(folder)
    with torch.enable_grad():
        token_nll(model, random_tokens())
    assert not any(module.training for module in model.modules())
    for name, parameter in model.named_parameters():
        assert not parameter.requires_grad, name
        assert parameter.grad is None, name


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float32"])
def test_types_by_name(name: str) -> None:
    assert resolve_dtype(name, CPU) == getattr(torch, name)


def test_unknown_type_names_the_known_ones() -> None:
    with pytest.raises(UserError, match="'bf16' is not one of auto, bfloat16, float16, float32"):
        resolve_dtype("bf16", CPU)


@pytest.mark.parametrize("is_native", [True, False])
def test_auto_is_bfloat16_where_it_is_fast(
    monkeypatch: pytest.MonkeyPatch, is_native: bool
) -> None:
    capabilities = {"avx2": True, "avx512_bf16": is_native}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert resolve_dtype("auto", CPU) == (torch.bfloat16 if is_native else torch.float32)


def test_unknown_family_is_refused_before_its_weights(tmp_path: Path) -> None:
    GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=9)).save_pretrained(
        tmp_path
    )
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(UserError, match=r"'gpt2' cannot be pruned.*Llama, Mistral, Qwen2, Qwen3"):
        load_model_config(resolve_model_source(str(tmp_path)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "never_heard_of"}, "never_heard_of.*pruned: Llama, Mistral, Qwen2, Qwen3"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers 1000000000, which must be from 1 to"),
        ({"num_hidden_layers": 0}, "num_hidden_layers 0, which must be from 1 to 10000"),
        ({"hidden_size": -1}, "hidden_size -1, which must be from 1 to"),
        ({"vocab_size": 10**18}, "vocab_size 1000000000000000000, which must be"),
        ({"model_type": "own", "auto_map": {"AutoConfig": "a.B"}}, "type 'own' with code of its"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "are quantised.*made from"),
        ({"model_type": "gemma3", "text_config": {}}, "text-only checkpoint.*'gemma3_text'"),
        ({"num_attention_heads": 5}, "not a multiple of the number of attention heads"),
    ],
)
def test_impossible_configuration(folder: Path, change: dict[str, object], message: str) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message):
        load_model_config(resolve_model_source(str(folder)))


def test_configuration_that_is_no_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"could not be loaded.*not a valid JSON"):
        load_model_config(resolve_model_source(str(folder)))


def test_hub_model_without_a_network() -> None:
    source = resolve_model_source("some-one/some-model")
    with pytest.raises(UserError, match=r"'some-one/some-model'.*Check the name, your network"):
        load_model_config(source)
    with pytest.raises(UserError, match=r"weights of 'some-one/some-model'"):
        load_frozen_model(source, dtype=torch.float32, device=CPU)


@pytest.mark.parametrize("kept_share", [0.5, 0.001, 0.0])
def test_truncated_weights(folder: Path, kept_share: float) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: int(len(content) * kept_share)])
    with pytest.raises(UserError, match=r"weights of .* could not be loaded.*file is whole"):
        load(folder)


def test_a_missing_file_of_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    with pytest.raises(UserError, match=r"weights of .* could not be loaded"):
        load(folder)


def test_a_missing_tensor_is_not_made_up(folder: Path) -> None:
    """Transformers only warns, and fills in random numbers."""
    tensors = load_file(folder / WEIGHTS)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 of its weights.*layers\.1\.mlp\.up_proj\.weight"):
        load(folder)


def test_tied_weights_are_not_missing(
    tiny_model: Callable[..., PreTrainedModel], tmp_path: Path
) -> None:
    tiny_model("llama_mha").save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / WEIGHTS)
    model = load(tmp_path)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_gguf_becomes_an_ordinary_model(tiny_gguf: Path, tmp_path: Path) -> None:
    source = resolve_model_source(str(tiny_gguf))
    model = load_frozen_model(source, dtype=torch.float32, device=CPU)
    shape_only = model_on_meta(load_model_config(source))
    assert {n: p.shape for n, p in model.named_parameters()} == {
        n: p.shape for n, p in shape_only.named_parameters()
    }
    model.save_pretrained(tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert torch.equal(token_nll(again, random_tokens()), token_nll(model, random_tokens()))


@pytest.mark.parametrize("kept_bytes", [40_000, 300, 10, 0])
def test_truncated_gguf(tiny_gguf: Path, kept_bytes: int) -> None:
    content = tiny_gguf.read_bytes()
    assert len(content) > 40_000
    tiny_gguf.write_bytes(content[:kept_bytes])
    with pytest.raises(UserError, match=r"weights of .*tiny\.gguf' could not be loaded"):
        load(tiny_gguf)


@pytest.mark.slow
def test_a_real_gguf(smollm2_gguf: Path, tmp_path: Path) -> None:
    model = load(smollm2_gguf, torch.bfloat16)
    assert all(type(layer.mlp.output) is nn.Linear for layer in decoder_layers(model))
    assert getattr(model.config, "quantization_config", None) is None
    model.save_pretrained(tmp_path)
    again = load(tmp_path, torch.bfloat16)
    text = "Once upon a time there was a little girl who lived in a small house near the forest."
    tokens_BT = load_tokenizer(str(smollm2_gguf))(text, return_tensors="pt").input_ids
    nll_BT = token_nll(model, tokens_BT)
    assert nll_BT.mean() < 4  # a model that was read wrongly is at log(49152) = 10.8
    assert torch.equal(token_nll(again, tokens_BT), nll_BT)


@pytest.mark.parametrize(
    ("device", "asked_for"),
    [("cuda:1", {"device_map": {"": torch.device("cuda:1")}}), ("cpu", {})],
)
def test_weights_are_read_straight_to_where_they_go(
    folder: Path, monkeypatch: pytest.MonkeyPatch, device: str, asked_for: dict[str, object]
) -> None:
    asked: dict[str, object] = {}

    def stop(*_: object, **options: object) -> None:
        asked.update(options)
        raise RuntimeError("far enough")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", stop)
    source = resolve_model_source(str(folder))
    with pytest.raises(UserError, match="far enough"):
        load_frozen_model(source, dtype=torch.float32, device=torch.device(device))
    assert {name: asked[name] for name in asked if name == "device_map"} == asked_for
