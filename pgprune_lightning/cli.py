"""The program: it runs a command, prints errors and returns the exit status.

The libraries take seconds to import, so the module of a command is imported when it runs: `--help`
and `--version` need none of them.
"""

import errno
import importlib
import sys
from collections.abc import Sequence
from types import ModuleType

from pgprune_lightning import __version__
from pgprune_lightning.checkout import research_module
from pgprune_lightning.credentials import refuse_secrets_in_arguments
from pgprune_lightning.errors import EXIT_USER_ERROR, OptionError, UserError, did_you_mean
from pgprune_lightning.stop_signals import EXIT_INTERRUPTED

TRAINER_COMMANDS = {
    "fit": "Learn which units of a model to keep, and write pruning plans.",
    "validate": "Measure a checkpoint's or plan's mask on the validation texts of a config.",
    "test": "Measure a checkpoint's or plan's mask on the test texts of a config.",
}
"""Commands of the Trainer; they share the options of `fit`."""

OWN_COMMANDS = {
    "report": "Write the results of runs and comparisons as one HTML page.",
    "export": "Write a plan's model in a format that others load.",
    "finetune": "Train adapters on an exported model, and merge them.",
    "evaluate": "Measure dense, pruned and exported models alike.",
    "compare": "Prune one model by several methods, and print one table.",
    "bench": "Time training steps, beside a reference implementation.",
}
"""Commands with their own options, one module each in `pgprune_lightning.commands`."""

RESEARCH_COMMANDS = {
    "study": "Compare recipes at equal passes, and back-propagation at equal time.",
    "variance": "Measure the variance of gradient estimators at one policy.",
}
"""Commands that only the repository has, one module each in `research/`."""

COMMANDS = TRAINER_COMMANDS | OWN_COMMANDS | RESEARCH_COMMANDS

DISK_ERRORS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE)
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program.

    Args:
        arguments: The arguments after the program's name; None: `sys.argv`.

    Returns:
        The exit status: 0, 2 for an error that the user can act on, 1 where another rank is lost,
        or 130 after Ctrl-C in a command that has nothing to save; `fit` and `finetune` answer it
        themselves.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    if given[:1] in (["--help"], ["-h"]):
        print(usage())
        return 0
    if given == ["--version"]:
        print(f"pgprune-lightning {__version__}")
        return 0
    try:
        return _run(given)
    except KeyboardInterrupt:
        _print_error("stopped by Ctrl-C.")
        return EXIT_INTERRUPTED


def usage() -> str:
    """Every command in a line."""
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:{width}}{does}" for name, does in COMMANDS.items()]
    return "\n".join(
        [
            "usage: pgprune COMMAND [OPTIONS]    or: python -m pgprune_lightning COMMAND [OPTIONS]",
            "",
            "Prunes large language models by policy gradients, with forward passes only.",
            "Start with: pgprune fit --config configs/quickstart.yaml",
            "",
            "commands:",
            *lines,
            "",
            "pgprune COMMAND --help lists a command's options. --version prints the version.",
        ]
    )


def _run(arguments: list[str]) -> int:
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    try:
        return _dispatch(arguments)
    except (UserError, MisconfigurationException) as error:
        program = error.program if isinstance(error, OptionError) else ""
        _print_error(f"{error} (all options: {program} --help)" if program else str(error))
        return EXIT_USER_ERROR
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        where = f"{error.filename}: " if error.filename else ""
        _print_error(
            f"the disk does not take what was to be written: {where}{error.strerror}. Make room, "
            "or make it writable, and go on with --resume auto."
        )
        return EXIT_USER_ERROR
    except RuntimeError as error:
        from pgprune_lightning.training import other_ranks

        if not other_ranks.is_rank_lost(error):
            raise
        _print_error(other_ranks.rank_lost_message(str(error)))
        return other_ranks.EXIT_RANK_LOST


def _dispatch(arguments: list[str]) -> int:
    refuse_secrets_in_arguments(arguments)
    command = arguments[0] if arguments else ""
    if command in OWN_COMMANDS or command in RESEARCH_COMMANDS:
        status: int = command_module(command).main(arguments[1:])
        return status
    if command not in TRAINER_COMMANDS:
        raise UserError(_unknown(command))
    from pgprune_lightning.run import execute_run

    execute_run(arguments[1:], command)  # type: ignore[arg-type]  # it is one of them
    return 0


def command_module(command: str) -> ModuleType:
    """Import the module of a command that has options of its own.

    Args:
        command: Its name.

    Raises:
        UserError: If it is one of the repository's, and this is none.
    """
    if command in RESEARCH_COMMANDS:
        return research_module(command)
    return importlib.import_module(f"pgprune_lightning.commands.{command}")


def _unknown(command: str) -> str:
    names = list(COMMANDS)
    if command.startswith("-"):
        return "no command is given. Give it first: pgprune fit --config FILE"
    if not command:
        return f"no command is given. Give one of {', '.join(names)} (pgprune --help)."
    hint = did_you_mean(command, names)
    return f"there is no command {command}.{hint} Commands: {', '.join(names)} (pgprune --help)."


def _print_error(message: str) -> None:
    from pgprune_lightning.console import print_error

    print_error(message)
