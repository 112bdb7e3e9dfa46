"""A model with layers of different widths does what every model of transformers does.

Shapes: B sequences, T tokens, U units.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from pgprune_lightning.export import ExportOptions
from pgprune_lightning.export.formats import FORMATS
from pgprune_lightning.masking import unit_layout_of
from tests.tiny_exports import prune
from tests.tiny_models import make_tiny_model, random_tokens

PROMPT_BT = random_tokens(tokens=12)


def write_uneven(folder: Path, name: str = "llama_gqa", **overrides: Any) -> PreTrainedModel:
    """Write a model without the first layer's attention and the last one's MLP."""
    model = make_tiny_model(name, **overrides)
    model.generation_config.max_new_tokens = 7
    space = unit_layout_of(model, ["kv_group", "mlp_channel"])
    mask_U = torch.rand(space.num_units, generator=torch.Generator().manual_seed(2)) < 0.7
    space.view(mask_U, 0, "kv_group").fill_(False)
    space.view(mask_U, 2, "kv_group")[-1] = True
    space.view(mask_U, 2, "mlp_channel").fill_(False)
    pruned = prune(model, space, mask_U)
    FORMATS["hf"].write(pruned, folder, ExportOptions(torch.float32))
    return pruned.cut


def load(folder: Path, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, **options).eval()


def continued(model: PreTrainedModel, **options: Any) -> Tensor:
    return model.generate(
        PROMPT_BT,
        attention_mask=torch.ones_like(PROMPT_BT),
        max_new_tokens=8,
        do_sample=False,
        pad_token_id=0,
        **options,
    )


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of such a model."""
    folder = tmp_path_factory.mktemp("uneven")
    write_uneven(folder)
    return folder


def test_the_folder_is_complete(uneven: Path) -> None:
    config = json.loads((uneven / "config.json").read_text())
    assert config["model_type"] == "pruned_llama"
    assert config["architectures"] == ["PrunedLlamaForCausalLM"]
    assert set(config["auto_map"]) == {"AutoConfig", "AutoModel", "AutoModelForCausalLM"}
    assert [widths[1] == 0 for widths in config["kept_widths"]] == [True, False, False]
    assert [widths[2] == 0 for widths in config["kept_widths"]] == [False, False, True]
    assert json.loads((uneven / "generation_config.json").read_text())["max_new_tokens"] == 7
    tokenizer = AutoTokenizer.from_pretrained(uneven)
    assert tokenizer("ab")["input_ids"] == [4]
    assert tokenizer.apply_chat_template([{"role": "user", "content": "w"}], tokenize=False) == "w"
    assert "pgprune" not in (uneven / "modeling_pruned.py").read_text()


def test_the_cache_changes_no_token(uneven: Path) -> None:
    model = load(uneven)
    assert torch.equal(continued(model, use_cache=True), continued(model, use_cache=False))


@pytest.mark.parametrize("device_map", ["auto", "cpu"])
def test_a_device_map_places_it(uneven: Path, device_map: str) -> None:
    placed = load(uneven, device_map=device_map)
    assert torch.equal(continued(placed), continued(load(uneven)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_it_loads_in_small_types(uneven: Path, dtype: torch.dtype) -> None:
    model = load(uneven, dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    with torch.no_grad():
        logits, exact = model(PROMPT_BT).logits, load(uneven)(PROMPT_BT).logits
    torch.testing.assert_close(logits.float(), exact, rtol=0, atol=0.1)


@torch.no_grad()
def test_saved_again_it_is_the_same_with_its_code(uneven: Path, tmp_path: Path) -> None:
    load(uneven).save_pretrained(tmp_path)
    for file in ("config.json", "modeling_pruned.py", "generation_config.json"):
        assert (tmp_path / file).read_bytes() == (uneven / file).read_bytes(), file
    assert torch.equal(load(tmp_path)(PROMPT_BT).logits, load(uneven)(PROMPT_BT).logits)


@torch.no_grad()
def test_the_backbone_loads_alone(uneven: Path) -> None:
    backbone = AutoModel.from_pretrained(uneven).eval()
    whole = load(uneven).model
    states = (model(PROMPT_BT).last_hidden_state for model in (backbone, whole))
    assert torch.equal(*states)


@torch.no_grad()
def test_adapters_attach_and_merge(uneven: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    options = peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    adapted = peft.get_peft_model(load(uneven), options)
    expected = adapted(PROMPT_BT).logits
    merged = adapted.merge_and_unload()
    assert (expected - load(uneven)(PROMPT_BT).logits).abs().max() > 1e-3
    merged.save_pretrained(tmp_path)
    torch.testing.assert_close(load(tmp_path)(PROMPT_BT).logits, expected, rtol=0, atol=1e-4)


def test_it_trains(uneven: Path) -> None:
    model = load(uneven).train()
    model(PROMPT_BT, labels=PROMPT_BT).loss.backward()
    without = [name for name, weight in model.named_parameters() if weight.grad is None]
    assert not without


@pytest.mark.parametrize("name", ["llama_mha", "qwen2_mixed", "gemma3", "opt"])
def test_a_fresh_process_without_this_package_loads_it(name: str, tmp_path: Path) -> None:
    """The weights, the cache and the tokenizer, with transformers and the folder alone."""
    cut = write_uneven(tmp_path / "model", name)
    with torch.no_grad():
        torch.save(cut(PROMPT_BT).logits, tmp_path / "logits.pt")
    program = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained("model", trust_remote_code=True).eval()
expected = torch.load("logits.pt", weights_only=True)
tokens = torch.load("tokens.pt", weights_only=True)
with torch.no_grad():
    assert torch.allclose(model(tokens).logits, expected, atol=1e-5)
first, second = (model.generate(tokens, max_new_tokens=4, do_sample=False, use_cache=use,
                                pad_token_id=0) for use in (True, False))
assert torch.equal(first, second)
assert AutoTokenizer.from_pretrained("model", trust_remote_code=True)("ab")["input_ids"] == [4]
assert not any(name.startswith("pgprune") for name in sys.modules)
"""
    torch.save(PROMPT_BT, tmp_path / "tokens.pt")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["HF_MODULES_CACHE"] = str(tmp_path / "modules")
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True)


def test_equal_widths_are_a_stock_class(tmp_path: Path) -> None:
    model = make_tiny_model("qwen2_mixed")
    space = unit_layout_of(model, ["layer"])
    pruned = prune(model, space, torch.tensor([False, True, True]))
    FORMATS["hf"].write(pruned, tmp_path, ExportOptions(torch.float32))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "qwen2"
    assert config["layer_types"] == model.config.layer_types[1:]
    assert not (tmp_path / "modeling_pruned.py").exists()
