"""What a cell gives to the parser of `fit`, and what a comparison cannot do with it."""

from __future__ import annotations

import json
from typing import Any

from pgprune_lightning.comparison.experiment import Experiment
from pgprune_lightning.errors import UserError

OWN_OPTIONS = ("config", "run_dir", "existing_run", "resume", "ckpt_path", "seed_everything")
"""Options of `fit` that a comparison sets itself."""


def cell_arguments(experiment: Experiment, setting: str, method: str) -> list[str]:
    """What a cell gives to `fit`, `validate` or `test`: the recipe, and its options over that.

    Each layer of options is a configuration of its own, so that they are joined in the way in
    which the command line joins configurations.

    Raises:
        UserError: If an option is one that the comparison sets itself.
    """
    layers = experiment.layers(setting, method)
    for name in OWN_OPTIONS:
        if any(name in layer for layer in layers):
            raise UserError(
                f"{name}: the comparison chooses it; seeds and --output are its options."
            )
    recipe = (*experiment.recipe, *experiment.methods[method].recipe)
    configs = [*map(str, recipe), *map(json.dumps, layers)]
    return [argument for config in configs for argument in ("--config", config)]


def check_config(config: Any) -> None:
    """Refuse what `fit` takes and a comparison does not.

    Args:
        config: Parsed options of a cell.

    Raises:
        UserError: If there is such an option.
    """
    if not config.data.test:
        raise UserError("data.test: the masks are compared on the first text of it; name one.")
    if config.trainer.devices not in (1, "1") or config.trainer.num_nodes != 1:
        raise UserError(
            f"trainer.devices: a comparison runs on one device, given {config.trainer.devices}. "
            "Prune on several by `fit`, then compare plans by model.initialization.plan."
        )
