"""`study`: recipes compared at equal passes, and back-propagation at equal time."""

# No `from __future__ import annotations`: the command line reads these types.
from collections.abc import Sequence
from pathlib import Path

from pgprune_lightning.commands.experiment_options import add_experiment_options, command_line
from pgprune_lightning.comparison import load_experiment
from pgprune_lightning.console import OneLineErrorParser, quiet_libraries
from pgprune_lightning.errors import EXIT_USER_ERROR
from pgprune_lightning.folder_lock import exclusive_output
from research.estimator_study import Study, run_study

DESCRIPTION = (
    "Compares recipes, then gives back-propagation the time that one of them took, and writes "
    "summary.json: perplexity of every seed, passes, seconds and peak memory by recipe and keep "
    "ratio. What is finished is not computed again. Start with: pgprune study --recipes "
    "configs/experiments/estimators/tiny.yaml --output runs/tiny_study"
)


def main(arguments: Sequence[str]) -> int:
    """Run the command.

    Args:
        arguments: What follows `study`.

    Returns:
        The exit status: 0, or 2 if a cell failed.

    Raises:
        UserError: If the study cannot be run as it is.
    """
    quiet_libraries()
    given = study_parser().parse_args(list(arguments))
    chosen = {"options": given.options, "seeds": given.seeds, "settings": given.settings}
    recipes = load_experiment(Path(given.recipes), **chosen)
    timed = None
    if given.equal_time is not None:
        timed = load_experiment(Path(given.equal_time), **chosen)
    output, command = Path(given.output), command_line("study", arguments)
    study = Study(recipes, timed, given.as_long_as)
    with exclusive_output(output, "--output"):
        complete = run_study(study, output, given.existing, command)
    return 0 if complete else EXIT_USER_ERROR


def study_parser() -> OneLineErrorParser:
    """The command's own options."""
    parser = OneLineErrorParser(prog="pgprune study", description=DESCRIPTION)
    parser.add_argument(
        "--recipes", type=str, required=True, help="Experiment file whose rows are the recipes."
    )
    parser.add_argument(
        "--equal_time",
        type=str | None,
        default=None,
        help="Experiment file of back-propagation; each of its settings, named as those of the "
        "recipes, is given the seconds that the row as_long_as took there.",
    )
    parser.add_argument(
        "--as_long_as", type=str, default="fast", help="The row of the recipes with that time."
    )
    parser.add_argument(
        "--output", type=str, required=True, help="Folder of summary.json and all comparisons."
    )
    add_experiment_options(parser)
    return parser
