"""Plans of tiny models in memory, for the tests of exports.

Shapes: U units.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from pgprune_lightning.export import PrunedModel
    from pgprune_lightning.plan import PruningPlan
    from pgprune_lightning.policy import UnitLayout


def make_plan(
    space: UnitLayout, mask_U: Tensor | None = None, model_type: str = "llama", **budget: Any
) -> PruningPlan:
    """A plan with random probabilities, of half of the units if no mask is given."""
    from pgprune_lightning.plan import BaseModel, PruningPlan
    from pgprune_lightning.policy import FeasibleSet

    generator = torch.Generator().manual_seed(5)
    s_U = torch.rand(space.num_units, generator=generator, dtype=torch.float64)
    described = {"keep_ratio": 0.5, "scope": "per_kind", "protected_layers": []} | budget
    if mask_U is None:
        feasible_set = FeasibleSet(
            space,
            described["keep_ratio"],
            scope=described["scope"],
            protected_layers=described["protected_layers"],
        )
        mask_U = feasible_set.deterministic_mask(s_U)
    base_model = BaseModel("nowhere", model_type, "0" * 64, space.total_parameters)
    return PruningPlan(base_model, space, s_U, mask_U, described, step=3)


def tiny_tokenizer() -> PreTrainedTokenizerBase:
    """Byte-level BPE, which llama.cpp knows, with as many tokens as the tiny models."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = ["<unk>", "</s>", "a", "b", "ab", *(f"w{number}" for number in range(92))]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocabulary, [("a", "b")], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        eos_token="</s>",
        chat_template="{{ messages[0]['content'] }}",
    )


def prune(
    model: PreTrainedModel, space: UnitLayout, mask_U: Tensor | None = None, **budget: Any
) -> PrunedModel:
    """What an export is given: a dense model and a mask."""
    from pgprune_lightning.export import PlannedModel, PrunedModel, layer_widths
    from pgprune_lightning.masking.model_source import ModelSource

    plan = make_plan(space, mask_U, model.config.model_type, **budget)
    planned = PlannedModel(plan, model, tiny_tokenizer(), ModelSource("nowhere", "nowhere"))
    widths = layer_widths(model.config, space, plan.mask_U)
    return PrunedModel(planned, plan.mask_U, widths, plan.budget["keep_ratio"])
