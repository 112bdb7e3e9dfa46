"""Which runtimes accept an export, or which rule and layer stand in the way, and what would do.

Shapes: U units.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from pgprune_lightning.export.export_format import PrunedModel
from pgprune_lightning.export.planned_model import PlannedModel
from pgprune_lightning.export.runtimes import runtime_verdicts
from pgprune_lightning.export.widths import layer_widths
from pgprune_lightning.masking import unit_layout_of
from pgprune_lightning.plan import BaseModel, PruningPlan

FORMATS = ("hf", "uniform", "padded", "gguf", "decilm", "plan")


@pytest.fixture
def pruned_by(tiny_model: Callable[..., PreTrainedModel]) -> Callable[..., PrunedModel]:
    """Prunes a family by probabilities: `pruned_by("qwen3", ["layer"], keep_ratio=0.7)`."""

    def prune(
        family: str,
        unit_kinds: list[Any],
        keep_ratio: float,
        probabilities: Callable[[Tensor], Tensor] | None = None,
        **overrides: Any,
    ) -> PrunedModel:
        model = tiny_model(family, **overrides)
        space = unit_layout_of(model, unit_kinds)
        s_U = torch.rand(space.num_units, generator=torch.Generator().manual_seed(0)).double()
        s_U = s_U if probabilities is None else probabilities(s_U)
        mask_U = torch.zeros(space.num_units, dtype=torch.bool)
        for kind in space.kinds:
            units = space.units_of(kind)
            kept = s_U[units].argsort(descending=True)[: int(keep_ratio * len(units))]
            mask_U[units[kept]] = True
        budget = {"keep_ratio": keep_ratio, "scope": "per_kind", "protected_layers": []}
        base_model = BaseModel("nowhere", model.config.model_type, "0", 1)
        plan = PruningPlan(base_model, space, s_U, mask_U, budget, step=1)
        planned = PlannedModel(plan, model, None, None)  # type: ignore[arg-type]
        widths = layer_widths(model.config, space, mask_U)
        return PrunedModel(planned, mask_U, widths, keep_ratio)

    return prune


def accepted(pruned: PrunedModel, format_name: str) -> set[str]:
    verdicts = runtime_verdicts(pruned, format_name)
    assert all(entry["accepts"] is (entry["reason"] is None) for entry in verdicts.values())
    return {runtime for runtime, entry in verdicts.items() if entry["accepts"]}


def test_each_format_has_its_runtimes(pruned_by: Callable[..., PrunedModel]) -> None:
    pruned = pruned_by("llama_gqa", ["kv_group", "mlp_channel"], 0.7)
    hub = {"transformers", "transformers with trust_remote_code"}
    everything = hub | {"vLLM", "vLLM with --model-impl transformers"}
    assert accepted(pruned, "hf") == {"transformers with trust_remote_code"}
    assert accepted(pruned, "uniform") == accepted(pruned, "padded") == everything
    assert accepted(pruned, "gguf") == {"llama.cpp"}
    assert accepted(pruned, "decilm") == {"vLLM"}
    assert accepted(pruned, "plan") == set()


def test_another_format_is_named_where_it_would_do(pruned_by: Callable[..., PrunedModel]) -> None:
    pruned = pruned_by("llama_gqa", ["kv_group", "mlp_channel"], 0.7)
    reasons = {name: entry["reason"] for name, entry in runtime_verdicts(pruned, "hf").items()}
    assert reasons["llama.cpp"] == "it reads gguf, not hf; --format gguf would do"
    assert "layers 0 and " in reasons["transformers"]
    assert "no keep ratio below 1 would do, --format uniform may" in reasons["transformers"]
    other = runtime_verdicts(pruned_by("llama_gqa", ["mlp_channel"], 0.7), "gguf")
    assert other["transformers"]["reason"].endswith("not gguf; --format uniform would do")
    refused = runtime_verdicts(pruned_by("mistral_sliding", ["layer"], 0.7), "plan")
    assert refused["llama.cpp"]["reason"].startswith(
        "it reads gguf, not plan, and as gguf its graph"
    )


def test_the_nearest_keep_ratio_is_named(pruned_by: Callable[..., PrunedModel]) -> None:
    """Probabilities that order the channels of all layers alike, so that some ratios are even."""

    def by_channel(s_U: Tensor) -> Tensor:
        return 1 - torch.arange(24).repeat(len(s_U) // 24) / 24.0 - s_U * 1e-6

    # 24 channels in 3 layers: 0.7 keeps 50 of 72, and 0.75 keeps 54, which is 18 in each.
    pruned = pruned_by("qwen3", ["mlp_channel"], 0.7, by_channel, attention_bias=False)
    verdict = runtime_verdicts(pruned, "gguf")["llama.cpp"]
    assert not verdict["accepts"]
    assert "have different widths" in verdict["reason"]
    assert verdict["reason"].endswith("; a keep ratio of 0.75 would do")
    stock = runtime_verdicts(pruned, "hf")["transformers"]
    assert stock["reason"].endswith("; a keep ratio of 0.75 would do")


def test_vllm_runs_bundled_code_whose_heads_are_all_there(
    pruned_by: Callable[..., PrunedModel],
) -> None:
    runtime = "vLLM with --model-impl transformers"
    assert runtime in accepted(pruned_by("llama_gqa", ["mlp_channel"], 0.7), "hf")
    verdict = runtime_verdicts(pruned_by("llama_gqa", ["kv_group"], 0.9), "hf")[runtime]
    assert "has 2 query heads, and it gives every layer the model's 4" in verdict["reason"]


def test_every_pair_has_a_verdict(pruned_by: Callable[..., PrunedModel]) -> None:
    for family in ("llama_biased", "mistral_sliding", "qwen2", "qwen3"):
        pruned = pruned_by(family, ["attention", "mlp"], 0.7)
        for format_name in FORMATS:
            for entry in runtime_verdicts(pruned, format_name).values():
                assert entry["accepts"] or "\n" not in entry["reason"]
