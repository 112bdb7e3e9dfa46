"""What vLLM reads computes what the cut model does; vLLM itself needs an accelerator.

Shapes: B sequences, T tokens, V vocabulary, U units.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from pgprune_lightning.errors import UserError
from pgprune_lightning.export.decilm import DeciLM
from pgprune_lightning.export.export_format import ExportOptions, PrunedModel
from pgprune_lightning.masking import unit_layout_of
from tests.tiny_exports import prune
from tests.tiny_models import masks_of, random_tokens

CPU = torch.device("cpu")
FLOAT32 = ExportOptions(torch.float32)
LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


def pruned_by(model: PreTrainedModel, mask_U: Tensor, **units: Any) -> PrunedModel:
    """A model with a mask over units of some kinds."""
    return prune(model, unit_layout_of(model, **units), mask_U)


@torch.no_grad()
def difference(pruned: PrunedModel, folder: Path) -> float:
    """Largest difference of logits, as a share of the largest."""
    tokens_BT = random_tokens()
    found_BTV = DeciLM().reload(folder, pruned, CPU)(tokens_BT)
    expected_BTV = pruned.cut(tokens_BT).logits
    return float((found_BTV - expected_BTV).abs().max() / expected_BTV.abs().max())


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("llama_mha", {}),
        ("llama_gqa", {"rope_parameters": LLAMA_3}),
        ("llama_biased", {}),
        ("mistral", {}),
        ("qwen2", {}),
    ],
)
def test_every_mask_is_exact(
    tiny_model: Callable[..., PreTrainedModel],
    units: dict[str, Any],
    name: str,
    overrides: dict[str, Any],
    tmp_path: Path,
) -> None:
    model = tiny_model(name, **overrides)
    space = unit_layout_of(model, **units)
    for number, (mask_name, mask_U) in enumerate(masks_of(space)):
        pruned, folder = pruned_by(model, mask_U, **units), tmp_path / str(number)
        DeciLM().check(model.config, pruned.widths, FLOAT32)
        folder.mkdir()
        DeciLM().write(pruned, folder, FLOAT32)
        assert difference(pruned, folder) < 1e-5, mask_name


def test_weights_that_are_changed_are_noticed(
    tiny_model: Callable[..., PreTrainedModel], tmp_path: Path
) -> None:
    model = tiny_model("llama_gqa")
    units = {"unit_kinds": ["kv_group", "mlp_channel"]}
    mask_U = torch.ones(unit_layout_of(model, **units).num_units, dtype=torch.bool)
    pruned = pruned_by(model, mask_U, **units)
    DeciLM().write(pruned, tmp_path, FLOAT32)
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.layers.1.self_attn.k_proj.weight"][3] += 0.1
    save_file(weights, tmp_path / "model.safetensors")
    assert difference(pruned, tmp_path) > 1e-4


def test_the_folder_is_smaller_and_says_what_vllm_asks(
    tiny_model: Callable[..., PreTrainedModel], tmp_path: Path
) -> None:
    model = tiny_model("llama_mha")
    units = {"unit_kinds": ["kv_group", "mlp_channel"]}
    space = unit_layout_of(model, **units)
    mask_U = torch.ones(space.num_units, dtype=torch.bool)
    space.view(mask_U, 0, "kv_group")[1:].fill_(False)
    space.view(mask_U, 1, "kv_group").fill_(False)
    space.view(mask_U, 2, "mlp_channel").fill_(False)
    space.view(mask_U, 2, "kv_group")[:2].fill_(False)
    DeciLM().write(pruned_by(model, mask_U, **units), tmp_path, FLOAT32)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["DeciLMForCausalLM"]
    assert (config["model_type"], config["head_dim"], config["dtype"]) == (
        "nemotron-nas",
        8,
        "float32",
    )
    assert config["num_attention_heads"] == 2
    assert config["block_configs"] == [
        {
            "attention": {"no_op": False, "n_heads_in_group": 2},
            "ffn": {"no_op": False, "intermediate_size": 24},
        },
        {
            "attention": {"no_op": True, "n_heads_in_group": None},
            "ffn": {"no_op": False, "intermediate_size": 24},
        },
        {
            "attention": {"no_op": False, "n_heads_in_group": 1},
            "ffn": {"no_op": True, "intermediate_size": None},
        },
    ]
    weights = load_file(tmp_path / "model.safetensors")
    assert weights["model.layers.0.self_attn.k_proj.weight"].shape == (8, 32)
    assert not weights["model.layers.0.self_attn.o_proj.weight"][:, 8:].any()
    assert "model.layers.1.input_layernorm.weight" not in weights
    assert "lm_head.weight" not in weights


def test_the_configuration_needs_transformers_alone(
    tiny_model: Callable[..., PreTrainedModel], tmp_path: Path
) -> None:
    model = tiny_model("llama_gqa")
    units = {"unit_kinds": ["kv_group", "mlp_channel"]}
    mask_U = torch.ones(unit_layout_of(model, **units).num_units, dtype=torch.bool)
    DeciLM().write(pruned_by(model, mask_U, **units), tmp_path, FLOAT32)
    program = """
import copy, pickle, sys
from transformers import AutoConfig
config = AutoConfig.from_pretrained(sys.argv[1], trust_remote_code=True)
for block in (config.block_configs[2], copy.deepcopy(config).block_configs[2]):
    assert block.attention.n_heads_in_group == 2 and not block.attention.no_op
    assert block.ffn.intermediate_size == 24 and not hasattr(block.ffn, "ffn_mult")
assert pickle.loads(pickle.dumps(config)).block_configs == config.block_configs
assert type(config).from_dict(config.to_dict()).to_dict() == config.to_dict()
assert not any(name.startswith("pgprune") for name in sys.modules)
print(config.model_type, config.num_attention_heads, config.rope_parameters["rope_theta"])
"""
    finished = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.split() == ["nemotron-nas", "4", "10000.0"]


def test_others_are_refused(tiny_model: Callable[..., PreTrainedModel]) -> None:
    with pytest.raises(UserError, match=r"cannot run this model: .*'qwen3'.*--format uniform"):
        DeciLM().check(tiny_model("qwen3").config, (), FLOAT32)
