"""Checking the options of every cell by the parser of `fit`, before any model is loaded."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

from pgprune_lightning.comparison.experiment import Experiment
from pgprune_lightning.console import OneLineErrorParser, plain_message
from pgprune_lightning.errors import UserError
from pgprune_lightning.pruning_cli import PruningCLI, run_command

OWN_OPTIONS = ("config", "run_dir", "existing_run", "ckpt_path", "seed_everything")
"""Options of `fit` that a comparison sets itself."""


class RaisingParser(OneLineErrorParser):
    """Raises what it would print."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the error as one of the user's."""
        raise UserError(re.sub(r"^config: ", "", plain_message(message))) from ex


class _ParserIsMade(Exception):  # noqa: N818 - a signal, no error
    """Ends LightningCLI's work before it parses."""


class _ParserMaker(PruningCLI):
    """Makes the parser and nothing else."""

    def parse_arguments(self, parser: Any, args: Any) -> NoReturn:
        """Hand the parser over."""
        del args
        raise _ParserIsMade(parser)


def fit_parser() -> RaisingParser:
    """The parser of the command line, for `fit` and as many configurations as there are."""
    try:
        run_command(["fit"], _ParserMaker, RaisingParser)
    except _ParserIsMade as made:
        parser: RaisingParser = made.args[0]
        return parser
    raise AssertionError("LightningCLI has not parsed")


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
