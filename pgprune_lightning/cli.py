"""The program: its commands, and what becomes of their errors."""

import errno
import sys
from collections.abc import Sequence

from lightning.fabric.utilities.exceptions import MisconfigurationException

from pgprune_lightning.commands import (
    bench,
    compare,
    evaluate,
    export,
    finetune,
    report,
    study,
    variance,
)
from pgprune_lightning.console import EXIT_USER_ERROR, print_error
from pgprune_lightning.errors import UserError
from pgprune_lightning.pruning_cli import run_command
from pgprune_lightning.stop_signals import EXIT_INTERRUPTED

OWN_COMMANDS = {
    "bench": bench.main,
    "compare": compare.main,
    "evaluate": evaluate.main,
    "export": export.main,
    "finetune": finetune.main,
    "report": report.main,
    "study": study.main,
    "variance": variance.main,
}
"""Those whose options are not `fit`'s."""
DISK_ERRORS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE)
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program.

    Args:
        arguments: What follows the program's name; None: `sys.argv`.

    Returns:
        The exit status: 0, 2 for an error that the user can act on, or 130 after Ctrl-C in a
        command that has nothing to save; `fit` and `finetune` answer it themselves.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        return _dispatch(given)
    except (UserError, MisconfigurationException) as error:
        print_error(str(error))
        return EXIT_USER_ERROR
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print_error(
            f"the disk does not take what was to be written: {where}{error.strerror}. Make room, "
            "or make it writable, and go on with --resume auto."
        )
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print_error("stopped by Ctrl-C.")
        return EXIT_INTERRUPTED


def _dispatch(arguments: list[str]) -> int:
    if arguments and arguments[0] in OWN_COMMANDS:
        return OWN_COMMANDS[arguments[0]](arguments[1:])
    run_command(arguments)
    return 0
