"""Options of the commands that run experiment files."""

# No `from __future__ import annotations`: the command line reads these types.
import shlex
from collections.abc import Sequence
from typing import Any

from pgprune_lightning.comparison.trial import ExistingTrials
from pgprune_lightning.console import OneLineErrorParser


def add_experiment_options(parser: OneLineErrorParser) -> None:
    """Add which trials are run, with which options, and what becomes of those that are there."""
    parser.add_argument(
        "--existing",
        type=ExistingTrials,
        default="reuse",
        help="Trials in the folder that were computed with other options: reuse the folder and "
        "move them aside, or stop with the difference.",
    )
    parser.add_argument(
        "--seeds",
        type=list[int] | None,
        default=None,
        help="Seeds in place of the file's, such as [0,1,2].",
    )
    parser.add_argument(
        "--settings",
        type=list[str] | None,
        default=None,
        help="Settings of the file that are run, such as ['0.7']; all, if not given.",
    )
    parser.add_argument(
        "--options",
        type=dict[str, Any] | None,
        default=None,
        help="Options of fit for every trial, over the file's: --options.trainer.max_steps 50.",
    )


def command_line(name: str, arguments: Sequence[str]) -> str:
    """What a user types to run a command again.

    Args:
        name: The command.
        arguments: What follows it.
    """
    return shlex.join(["python", "-m", "pgprune_lightning", name, *arguments])
