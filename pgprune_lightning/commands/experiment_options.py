"""What commands that run experiment files share: options, and a run that may be stopped."""

# No `from __future__ import annotations`: the command line reads these types.
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pgprune_lightning.comparison.trial import ExistingTrials
from pgprune_lightning.console import OneLineErrorParser
from pgprune_lightning.errors import EXIT_USER_ERROR
from pgprune_lightning.folder_lock import exclusive_output
from pgprune_lightning.stop_signals import STATUS_OF, exit_at_stop_signals


def add_experiment_options(parser: OneLineErrorParser) -> None:
    """Add the options that choose trials, change them, and treat those that exist."""
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


def run_into(output: Path, run: Callable[[], bool]) -> int:
    """Run a command that fills a folder; if it is stopped, say what is kept and how to go on.

    Args:
        output: The folder, which no other process may write meanwhile.
        run: Does the work, and returns whether every trial is there.

    Returns:
        The exit status: 0, or 2 if a trial failed.
    """
    with exit_at_stop_signals(), exclusive_output(output, "--output"):
        try:
            return 0 if run() else EXIT_USER_ERROR
        except SystemExit as end:
            if end.code in STATUS_OF.values():
                sys.stderr.write(
                    f"\nStopped. {output} keeps the finished trials, and a trial that is learning "
                    "goes on from its last checkpoint. Start the same command again.\n"
                )
            raise


def command_line(name: str, arguments: Sequence[str]) -> str:
    """Write the line that runs a command again.

    Args:
        name: The command.
        arguments: Its arguments.
    """
    return shlex.join(["python", "-m", "pgprune_lightning", name, *arguments])
