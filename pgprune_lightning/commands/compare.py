"""`compare`: one model, several methods, one table."""

# No `from __future__ import annotations`: the command line reads these types.
from collections.abc import Sequence
from pathlib import Path

from pgprune_lightning.commands.experiment_options import (
    add_experiment_options,
    command_line,
    run_into,
)
from pgprune_lightning.comparison import load_experiment
from pgprune_lightning.comparison.comparison_run import run_comparison
from pgprune_lightning.console import OneLineErrorParser, quiet_libraries

DESCRIPTION = (
    "Prunes one model by several methods on one calibration text, measures the results alike, and "
    "writes a table, pictures and compare.json. Trials that are finished are not computed again. "
    "Start with: pgprune compare --config configs/experiments/quickstart.yaml --output runs/methods"
)


def main(arguments: Sequence[str]) -> int:
    """Run the command.

    Args:
        arguments: What follows `compare`.

    Returns:
        The exit status: 0, or 2 if a trial failed.

    Raises:
        UserError: If the experiment cannot be run as it is.
    """
    quiet_libraries()
    given = compare_parser().parse_args(list(arguments))
    experiment = load_experiment(
        Path(given.config), options=given.options, seeds=given.seeds, settings=given.settings
    )
    output, command = Path(given.output), command_line("compare", arguments)
    return run_into(output, lambda: run_comparison(experiment, output, given.existing, command))


def compare_parser() -> OneLineErrorParser:
    """The command's own options."""
    parser = OneLineErrorParser(prog="pgprune compare", description=DESCRIPTION)
    parser.add_argument(
        "--config",
        type=str,
        required=True,
        help="Experiment file: methods, settings and seeds over a recipe of fit "
        "(docs/commands/compare.md).",
    )
    parser.add_argument(
        "--output",
        type=str,
        required=True,
        help="Folder of the results; trials that are already there are taken from it.",
    )
    add_experiment_options(parser)
    return parser
