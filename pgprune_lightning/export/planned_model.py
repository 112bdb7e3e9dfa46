"""A plan beside the model it was learned on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from pgprune_lightning.errors import UserError
from pgprune_lightning.masking.decoder_family import decoder_layers
from pgprune_lightning.masking.fingerprint import fingerprint_like
from pgprune_lightning.masking.frozen_model import (
    load_model_config,
    model_on_meta,
    resolve_dtype,
)
from pgprune_lightning.masking.model_reuse import open_frozen_model
from pgprune_lightning.masking.model_source import ModelSource, resolve_model_source
from pgprune_lightning.masking.model_units import unit_layout_of
from pgprune_lightning.masking.tokenizer import load_tokenizer
from pgprune_lightning.plan import PruningPlan, find_plan


@dataclass(frozen=True)
class PlannedModel:
    """What a plan prunes, dense and frozen, and the plan.

    Args:
        plan: The plan.
        model: The dense model, whose weights are those that the plan was learned on.
        tokenizer: The model's.
        source: Where both were read from.
    """

    plan: PruningPlan
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    source: ModelSource


def open_planned_model(
    path: Path,
    *,
    device: torch.device,
    dtype: str = "auto",
    attention: str = "sdpa",
    base_model: str | None = None,
) -> PlannedModel:
    """Read a plan and load the model that it prunes.

    Args:
        path: A plan's folder, or a run's, of which it is the best.
        device: Where the weights go.
        dtype: Their type; see `resolve_dtype`.
        attention: Attention implementation of transformers.
        base_model: Where the dense model lies now; None: where it lay when the plan was learned.

    Raises:
        UserError: If there is no whole plan, or the model cannot be loaded or is another one.
    """
    plan = PruningPlan.load(find_plan(path))
    given = plan.base_model.source if base_model is None else base_model
    source = resolve_model_source(given)
    check_units(plan, load_model_config(source), given)
    tokenizer = load_tokenizer(given)
    model = open_frozen_model(
        source, dtype=resolve_dtype(dtype, device), device=device, attention=attention
    )
    plan.check_base_model(fingerprint_like(plan.base_model.fingerprint, source, model), given)
    return PlannedModel(plan, model, tokenizer, source)


def check_units(plan: PruningPlan, config: PreTrainedConfig, given: str) -> None:
    """Refuse a model that has other units than a plan, before its weights are read.

    Args:
        plan: The plan.
        config: The model's configuration.
        given: The model, as the user named it.

    Raises:
        UserError: If it has.
    """
    model, kinds = model_on_meta(config), plan.space.kinds
    count = plan.space.group(0, "mlp_channel").count if "mlp_channel" in kinds else 0
    channels = decoder_layers(model)[0].mlp.num_channels
    channels_per_unit = channels // count if count and channels % count == 0 else 1
    groups = unit_layout_of(model, kinds, channels_per_unit).groups
    if groups != plan.space.groups:
        raise UserError(
            f"plan: it is for the {plan.space.num_units:,} units ({', '.join(kinds)}) of "
            f"{plan.base_model.source!r}, which has {plan.space.num_layers} layers; {given!r} has "
            f"{groups[-1].end:,} in {groups[-1].layer + 1}. A plan fits the model that it was "
            "learned on."
        )
