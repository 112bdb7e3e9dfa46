"""Checking the options of every cell by the parser of `fit`, before any model is loaded."""

from __future__ import annotations

import json
from typing import Any

from pgprune_lightning.comparison.experiment import Experiment
from pgprune_lightning.comparison.repeated_cli import fit_parser
from pgprune_lightning.errors import UserError
from pgprune_lightning.pruning_cli import PruningCLI

OWN_OPTIONS = ("config", "run_dir", "existing_run", "ckpt_path", "seed_everything")
"""Options of `fit` that a comparison sets itself."""


def cell_arguments(experiment: Experiment, setting: str, method: str) -> list[str]:
    """What a cell gives to `fit`, `validate` or `test`: the recipe, and its options over that.

    Each layer of options is a configuration of its own, so that they are joined in the way in
    which the command line joins configurations.
    """
    configs = [str(path) for path in experiment.recipe]
    configs += [json.dumps(layer) for layer in experiment.layers(setting, method)]
    return [argument for config in configs for argument in ("--config", config)]


def check_options(experiment: Experiment) -> None:
    """Parse every cell's configuration.

    Raises:
        UserError: If `fit` does not take a cell's options; it names the setting and the method.
    """
    parser = fit_parser()
    for setting, method in experiment.pairs():
        try:
            _check_own(experiment, setting, method)
            arguments = cell_arguments(experiment, setting, method)
            config = parser.parse_args(["fit", *arguments]).fit
            PruningCLI.check(config)
            _check_config(config)
        except UserError as error:
            raise UserError(f"settings.{setting}, methods.{method}: {error}") from error


def _check_own(experiment: Experiment, setting: str, method: str) -> None:
    for layer in experiment.layers(setting, method):
        for name in OWN_OPTIONS:
            if name in layer:
                raise UserError(
                    f"{name}: the comparison chooses it; seeds and --output are its options."
                )


def _check_config(config: Any) -> None:
    if not config.data.test:
        raise UserError("data.test: the masks are compared on the first text of it; name one.")
    if config.trainer.devices not in (1, "1") or config.trainer.num_nodes != 1:
        raise UserError(
            f"trainer.devices: a comparison runs on one device, given {config.trainer.devices}. "
            "Prune on several by `fit`, then compare plans by model.initialization.plan."
        )
