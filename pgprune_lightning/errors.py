"""What the program tells a person who can act on it: errors, and warnings."""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from functools import cache

EXIT_USER_ERROR = 2
"""The exit status of such an error."""


class UserError(ValueError):
    """Something in the input, the data or the machine must be changed by the user.

    The message says what was given, what is allowed and what to do. The command line prints it
    without a traceback and exits with a non-zero status; any other exception is a defect of ours.
    """


class OptionError(UserError):
    """An option is not there, or does not take its value.

    Args:
        message: As of every `UserError`.
        program: The command that lists all options with `--help`; empty: it is not known.
    """

    def __init__(self, message: str, program: str = "") -> None:
        super().__init__(message)
        self.program = program


@contextmanager
def about(subject: str) -> Iterator[None]:
    """Put what an error is about in front of its message.

    Args:
        subject: An option, such as `data.train`.

    Raises:
        UserError: The error that is raised inside, of the same class.
    """
    try:
        yield
    except UserError as error:
        raise type(error)(f"{subject}: {error}") from error


@cache
def warn_once(message: str) -> None:
    """Warn of something, once in a process however often it is met."""
    warnings.warn(message, stacklevel=2)


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """The name that is closest to a mistyped one, as a sentence; empty if none is close."""
    by_spelling = {name.replace("_", "-").lower(): name for name in names}
    close = get_close_matches(word.replace("_", "-").lower(), by_spelling, n=1)
    return f" Did you mean {by_spelling[close[0]]}?" if close else ""
