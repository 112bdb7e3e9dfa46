"""A GGUF file computes what the cut model does, in llama.cpp.

Shapes: B sequences, T tokens, V vocabulary, U units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from pgprune_lightning.evaluation.llama_cpp import LlamaCppModel
from pgprune_lightning.export.export_format import Quantization
from pgprune_lightning.export.gguf import write_gguf
from pgprune_lightning.masking import unit_layout_of
from pgprune_lightning.masking.frozen_model import load_frozen_model
from pgprune_lightning.masking.model_source import resolve_model_source
from pgprune_lightning.policy import UnitLayout
from pgprune_lightning.slicing import cut_model
from tests.tiny_models import random_tokens

LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, many heads, tied": ("llama_mha", {}),
    "llama, biases": ("llama_biased", {}),
    "llama, linear positions": (
        "llama_gqa",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
    ),
    "llama 3 positions": ("llama_gqa", {"rope_parameters": LLAMA_3}),
    "mistral, narrow heads": ("mistral", {}),
}


@pytest.fixture(scope="module")
def stories(pgprune_data: Path) -> tuple[PreTrainedModel, Tokenizer, Tensor]:
    """A trained model, its tokenizer, and tokens of a story."""
    folder = pgprune_data / "stories260K"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = (pgprune_data / "tinystories" / "stories.txt").read_text()[:600]
    return model.requires_grad_(False), tokenizer, torch.tensor([tokenizer(text)["input_ids"][:96]])


def masks(space: UnitLayout) -> Iterator[tuple[str, Tensor]]:
    """Every gap of the graph `deci`, with uneven layers around it."""
    generator = torch.Generator().manual_seed(0)
    yield "all ones", torch.ones(space.num_units, dtype=torch.bool)
    uneven_U = torch.rand(space.num_units, generator=generator) < 0.6
    yield "uneven", uneven_U
    last = space.num_layers - 1
    for name, dropped in {
        "no attention": [(2, "kv_group")],
        "no MLP": [(1, "mlp_channel")],
        "no attention in the first": [(0, "kv_group")],
        "no MLP in the last": [(last, "mlp_channel")],
        "nothing in the last": [(last, "mlp_channel"), (last, "kv_group")],
        "no first, no attention after it": [
            (0, "kv_group"),
            (0, "mlp_channel"),
            (1, "kv_group"),
        ],
    }.items():
        mask_U = uneven_U.clone()
        for layer, kind in dropped:
            space.view(mask_U, layer, kind).fill_(False)  # type: ignore[arg-type]
        yield name, mask_U
    yield "nothing", torch.zeros(space.num_units, dtype=torch.bool)


@torch.no_grad()
def difference(
    cut: PreTrainedModel, file: Path, tokens_BT: Tensor, tokenizer: Tokenizer, **written: Any
) -> float:
    """Largest difference of logits between torch and llama.cpp, as a share of the largest."""
    quantization: Quantization = written.pop("quantization", "f32")
    write_gguf(cut, file, quantization, tokenizer=tokenizer, **written)
    model = LlamaCppModel(file, context_length=tokens_BT.shape[1], float32_cache=True)
    found_BTV, expected_BTV = model.logits(tokens_BT), cut(tokens_BT).logits
    model.close()
    assert found_BTV.shape == expected_BTV.shape
    return float((found_BTV - expected_BTV).abs().max() / expected_BTV.abs().max())


@pytest.mark.usefixtures("_llama_cpp")
def test_every_mask_runs(
    stories: tuple[PreTrainedModel, Tokenizer, Tensor], tmp_path: Path
) -> None:
    model, tokenizer, tokens_BT = stories
    space = unit_layout_of(model, ["kv_group", "mlp_channel"])
    for number, (name, mask_U) in enumerate(masks(space)):
        cut = cut_model(model, space, mask_U)
        assert difference(cut, tmp_path / f"{number}.gguf", tokens_BT, tokenizer) < 1e-5, name


@pytest.mark.usefixtures("_llama_cpp")
def test_dropped_layers_run(
    stories: tuple[PreTrainedModel, Tokenizer, Tensor], tmp_path: Path
) -> None:
    model, tokenizer, tokens_BT = stories
    space = unit_layout_of(model, ["layer"])
    cut = cut_model(model, space, torch.tensor([False, True, False, True, True]))
    assert difference(cut, tmp_path / "model.gguf", tokens_BT, tokenizer) < 1e-5


@pytest.mark.usefixtures("_llama_cpp")
@pytest.mark.parametrize(("quantization", "most"), [("f16", 3e-3), ("q8_0", 0.1)])
def test_packed_types_are_near(
    stories: tuple[PreTrainedModel, Tokenizer, Tensor],
    quantization: str,
    most: float,
    tmp_path: Path,
) -> None:
    model, tokenizer, tokens_BT = stories
    space = unit_layout_of(model, ["kv_group", "mlp_channel"])
    mask_U = torch.rand(space.num_units, generator=torch.Generator().manual_seed(0)) < 0.6
    cut, file = cut_model(model, space, mask_U), tmp_path / "model.gguf"
    assert difference(cut, file, tokens_BT, tokenizer, quantization=quantization) < most


def test_packed_types_are_smaller(
    stories: tuple[PreTrainedModel, Tokenizer, Tensor], tmp_path: Path
) -> None:
    model, tokenizer, _ = stories
    space = unit_layout_of(model, ["kv_group", "mlp_channel"])
    mask_U = torch.rand(space.num_units, generator=torch.Generator().manual_seed(0)) < 0.6
    cut, sizes = cut_model(model, space, mask_U), []
    for quantization in ("f32", "f16", "q8_0"):
        write_gguf(cut, tmp_path / quantization, quantization, tokenizer=tokenizer)
        sizes.append((tmp_path / quantization).stat().st_size)
    assert sizes[0] > 1.9 * sizes[1] > 1.9 * 1.5 * sizes[2]


@pytest.mark.usefixtures("_llama_cpp")
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_of_the_family_runs(
    tiny_model: Callable[..., PreTrainedModel],
    byte_level_tokenizer: Callable[..., Tokenizer],
    variant: str,
    tmp_path: Path,
) -> None:
    name, overrides = VARIANTS[variant]
    model = tiny_model(name, **overrides)
    space = unit_layout_of(model, ["kv_group", "mlp_channel"])
    mask_U = torch.rand(space.num_units, generator=torch.Generator().manual_seed(1)) < 0.7
    space.view(mask_U, 0, "kv_group").fill_(False)
    cut, tokenizer = cut_model(model, space, mask_U), byte_level_tokenizer(97)
    tokens_BT = random_tokens(rows=2, tokens=100)
    assert difference(cut, tmp_path / "model.gguf", tokens_BT, tokenizer) < 1e-5


@pytest.mark.usefixtures("_llama_cpp")
@pytest.mark.parametrize("name", ["qwen2", "qwen3"])
def test_other_graphs_run_even_layers(
    tiny_model: Callable[..., PreTrainedModel],
    byte_level_tokenizer: Callable[..., Tokenizer],
    name: str,
    tmp_path: Path,
) -> None:
    model = tiny_model(name, attention_bias=False) if name == "qwen3" else tiny_model(name)
    space = unit_layout_of(model, ["kv_group", "mlp_channel"])
    mask_U = torch.ones(space.num_units, dtype=torch.bool)
    for layer in range(3):
        space.view(mask_U, layer, "mlp_channel")[layer : layer + 9].fill_(False)
        if name == "qwen3":
            space.view(mask_U, layer, "kv_group")[layer % 2] = False
    cut, tokenizer = cut_model(model, space, mask_U), byte_level_tokenizer(97)
    assert difference(cut, tmp_path / "model.gguf", random_tokens(), tokenizer) < 1e-5


def test_another_reader_finds_the_weights(
    stories: tuple[PreTrainedModel, Tokenizer, Tensor], tmp_path: Path
) -> None:
    """Even layers are a plain Llama, which transformers reads as well."""
    model, tokenizer, tokens_BT = stories
    write_gguf(model, tmp_path / "model.gguf", "f32", tokenizer=tokenizer)
    source = resolve_model_source(str(tmp_path / "model.gguf"))
    read = load_frozen_model(source, dtype=torch.float32, device=torch.device("cpu"))
    for name, value in model.named_parameters():
        assert torch.equal(read.get_parameter(name), value), name
    with torch.no_grad():
        assert torch.equal(read(tokens_BT).logits, model(tokens_BT).logits)


@pytest.mark.slow
@pytest.mark.usefixtures("_llama_cpp")
def test_a_pretrained_model_runs(smollm2_gguf: Path, tmp_path: Path) -> None:
    """SmolLM2-135M at a keep ratio of 0.7, with the tokenizer of the file that it came from."""
    source = resolve_model_source(str(smollm2_gguf))
    model = load_frozen_model(source, dtype=torch.float32, device=torch.device("cpu"))
    space = unit_layout_of(model, ["kv_group", "mlp_channel"])
    mask_U = torch.rand(space.num_units, generator=torch.Generator().manual_seed(0)) < 0.7
    cut = cut_model(model, space, mask_U)
    tokens_BT = torch.randint(49152, (1, 64), generator=torch.Generator().manual_seed(1))
    for quantization, most in (("f32", 1e-4), ("f16", 0.1)):
        found = difference(
            cut,
            tmp_path / f"{quantization}.gguf",
            tokens_BT,
            None,  # type: ignore[arg-type]
            vocabulary_file=smollm2_gguf,
            quantization=quantization,
        )
        assert found < most, quantization
