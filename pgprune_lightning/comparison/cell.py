"""The cells of an experiment, each checked as far as it can be without a model's weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import callbacks
from pgprune_lightning.checkout import research_module
from pgprune_lightning.comparison.cell_identity import Identity, cell_identity
from pgprune_lightning.comparison.experiment import (
    LEARNING_KINDS,
    Experiment,
    FinetuneOptions,
    MethodKind,
)
from pgprune_lightning.comparison.experiment_file import folder_name
from pgprune_lightning.comparison.option_check import cell_arguments, check_config
from pgprune_lightning.errors import UserError
from pgprune_lightning.initialization.initial_policy import METRICS
from pgprune_lightning.masking.frozen_model import load_model_config
from pgprune_lightning.masking.model_source import resolve_model_source
from pgprune_lightning.masking.positions import check_lengths
from pgprune_lightning.run import Command, build_run, plain, resolve_config
from pgprune_lightning.training import PolicyGradientPruning


@dataclass(frozen=True)
class Cell:
    """One method in one setting with one seed.

    Args:
        setting: Its column.
        method: Its row.
        kind: What the method is.
        seed: Its seed.
        arguments: Its configuration, as the command line takes it.
        identity: Everything that decides its numbers.
        folder: Where its results lie.
        finetune: How the pruned model is tuned before it is measured; None: it is not.
    """

    setting: str
    method: str
    kind: MethodKind
    seed: int
    arguments: tuple[str, ...]
    identity: Identity
    folder: Path
    finetune: FinetuneOptions | None = None

    @property
    def title(self) -> str:
        """How messages call it."""
        return f"{self.setting} / {self.method} / seed {self.seed}"


def module_class(kind: MethodKind) -> type[PolicyGradientPruning]:
    """What `fit` runs for a method, and whose options it takes."""
    if kind != "backpropagated":
        return PolicyGradientPruning
    pruning: type[PolicyGradientPruning] = research_module("backpropagation").BackpropagatedPruning
    return pruning


def cells_of(experiment: Experiment, output: Path) -> list[Cell]:
    """All cells, setting by setting, then method by method.

    Args:
        experiment: What is compared.
        output: Where results go.

    Raises:
        UserError: If a cell cannot be run; it names the setting and the method.
    """
    cells = []
    for setting, method in experiment.pairs():
        try:
            cells += _cells(experiment, setting, method, output)
        except UserError as error:
            wrong = str(error).removeprefix("config: ")
            raise UserError(f"settings.{setting}, methods.{method}: {wrong}") from error
    return cells


def _cells(experiment: Experiment, setting: str, method: str, output: Path) -> list[Cell]:
    kind = experiment.methods[method].kind
    arguments = cell_arguments(experiment, setting, method)
    config = _checked_config(kind, arguments)
    finetune = experiment.finetune_of(method)
    source = resolve_model_source(config["model"]["base_model"])
    check_lengths(load_model_config(source), _lengths(experiment, finetune))
    folder = output / "cells" / folder_name(setting) / folder_name(method)
    seeds = experiment.seeds if _is_random(kind, config) else experiment.seeds[:1]
    return [
        Cell(
            setting=setting,
            method=method,
            kind=kind,
            seed=seed,
            arguments=tuple(arguments),
            identity=cell_identity(experiment, kind, _seeded(config, seed), seed, finetune),
            folder=folder / f"seed{seed}",
            finetune=finetune,
        )
        for seed in seeds
    ]


def _lengths(experiment: Experiment, finetune: FinetuneOptions | None) -> dict[str, int]:
    """Tokens that a model reads at once to be measured and tuned, by option."""
    lengths = {"evaluation_lengths": max(experiment.evaluation_lengths)}
    if experiment.latency is not None:
        lengths["latency.sequence_length"] = experiment.latency.sequence_length
    if finetune is not None:
        lengths["finetune.max_length"] = finetune.lora.max_length
    return lengths


def _checked_config(kind: MethodKind, arguments: list[str]) -> dict[str, Any]:
    """The resolved options of a cell, with which everything before the model can be built."""
    command: Command = "fit" if kind in LEARNING_KINDS else "validate"
    options = resolve_config(arguments, command, module_class(kind))
    check_config(options)
    module, _, trainer = build_run(options, command, module_class(kind))
    if command == "fit":  # what is else found only when the run begins
        module.budgets.check_length(trainer.max_steps)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, callbacks.MaskCheckpoint):
                callback.setup(trainer, module, command)
    config: dict[str, Any] = plain(options.as_dict())
    return config


def _is_random(kind: MethodKind, config: dict[str, Any]) -> bool:
    start = config["model"]["initialization"]
    draws = METRICS[start["metric"]].draws and start["plan"] is None and start["scores"] is None
    return kind in LEARNING_KINDS or (kind == "metric" and draws)


def _seeded(config: dict[str, Any], seed: int) -> dict[str, Any]:
    """The options with a seed where `seed_everything` puts it."""
    groups = {name: config[name] | {"seed": seed} for name in ("model", "data")}
    return config | groups
