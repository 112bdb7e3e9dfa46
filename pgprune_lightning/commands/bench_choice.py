"""What `bench` times: as its options say, else as the recipe does, else by default."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from jsonargparse import ArgumentParser

from pgprune_lightning.benchmark import Workload
from pgprune_lightning.benchmark.learning import Learning
from pgprune_lightning.errors import UserError
from pgprune_lightning.run_options import resolve_config
from pgprune_lightning.training.execution_choice import ExecutionName


@dataclass(frozen=True)
class Choice:
    """What is timed.

    Args:
        source: The model, as a user writes it; empty for a published shape.
        workload: The sizes.
        keep_ratios: Shares of the units that stay.
        dtype: Name of the type of the weights.
        execution: How ours executes masks.
        attention: Attention implementation of transformers.
        learning: What a step does besides its forward passes.
    """

    source: str
    workload: Workload = field(default_factory=Workload)
    keep_ratios: tuple[float, ...] = (0.5,)
    dtype: str = "auto"
    execution: ExecutionName = "auto"
    attention: str = "sdpa"
    learning: Learning = field(default_factory=Learning)


def choose(given: Any) -> Choice:
    """Join what was given with the recipe.

    Args:
        given: The parsed options of `bench`.

    Raises:
        UserError: They name no model, or two.
    """
    if given.model is not None and given.shape is not None:
        raise UserError("--model and --shape: give one of them.")
    if given.config is not None:
        choice = _recipe(given.config)
    elif given.model is None and given.shape is None:
        raise UserError("bench: give --shape NAME, --model FOLDER_OR_ID or --config FILE.")
    else:
        choice = Choice("")
    names = ("batch_size", "block_length", "num_mask_samples")
    sizes = {name: given[name] for name in names if given[name] is not None}
    return replace(
        choice,
        source=given.model or choice.source,
        workload=replace(choice.workload, **sizes),
        keep_ratios=choice.keep_ratios if given.keep_ratio is None else tuple(given.keep_ratio),
        dtype=given.dtype or choice.dtype,
        execution=given.execution or choice.execution,
    )


def _recipe(files: Sequence[str]) -> Choice:
    configs = [part for file in files for part in ("--config", file)]
    recipe = resolve_config(configs)
    model = recipe.model
    workload = Workload(
        batch_size=recipe.data.batch_size,
        block_length=recipe.data.block_length,
        num_mask_samples=model.objective.num_mask_samples,
        unit_kinds=tuple(model.units.kinds),
        channels_per_unit=model.units.channels_per_unit,
        budget=model.budget.scope,
        lr=model["update"].lr,
    )
    return Choice(
        source=model.base_model,
        workload=workload,
        keep_ratios=(model.keep_ratio,),
        dtype=model.execution.dtype,
        execution=model.execution.mode,
        attention=model.execution.attention,
        learning=_learning(model),
    )


def _learning(model: Any) -> Learning:
    """Make policy, estimator and update of a recipe, and nothing else of it."""
    update = model["update"]  # not model.update, a method of its class
    parser = ArgumentParser()
    parser.add_class_arguments(Learning, "learning")
    options = {
        "policy": model.policy,
        "estimator": model.estimator,
        "update": update.optimizer,
        "lr_rule": update.lr_rule,
        "lr_factors": update.lr_factors,
        "mask_granularity": model.objective.mask_granularity,
        "objective": model.objective.loss,
    }
    parsed = parser.parse_object({"learning": options})
    learning: Learning = parser.instantiate(parsed).learning
    return learning
