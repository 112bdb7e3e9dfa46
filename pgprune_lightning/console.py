"""How the program speaks: one line an error, one line a warning, and no advice that is not ours."""

import logging
import re
import sys
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from pgprune_lightning.credentials import without_secrets
from pgprune_lightning.errors import EXIT_USER_ERROR, UserError
from pgprune_lightning.masking.frozen_model import quiet_transformers

ADVICE_THAT_DOES_NOT_HOLD = (
    ".*does not have many workers.*",
    ".*`IterableDataset` has `__len__` defined.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*isinstance.treespec, LeafSpec.*",
    ".*but have no logger configured.*",
    ".*all_gather is deprecated.*",  # Lightning calls it
    ".*when logging on epoch level in distributed setting.*",  # we log what is of all ranks
    ".*args parameter is intended to run from within Python.*",
    ".*`is_gradient_checkpointing` is deprecated.*",  # PEFT asks for it
    ".*`srun` command is available on your system but is not used.*",
)


class OneLineErrorParser(LightningArgumentParser):
    """Says what is wrong in one line, without hundreds of lines of options before it."""

    complete: Callable[[Namespace], None] | None = None
    """Fills in what a configuration leaves open, before it is written out."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the error and end with status 2."""
        parser = getattr(ex, "subcommand_parser", None) or self
        program = parser.prog.replace(" [options]", "")
        print_error(f"{plain_message(message)} (all options: {program} --help)")
        sys.exit(EXIT_USER_ERROR)

    def dump(self, namespace: Namespace, *arguments: Any, **options: Any) -> str:
        """Write a configuration out, with what it leaves open filled in."""
        if self.complete is not None:
            namespace = namespace.clone()
            self.complete(namespace)
        text: str = super().dump(namespace, *arguments, **options)
        return text

    def instantiate(self, *arguments: Any, **options: Any) -> Namespace:
        """Make the objects; what one of them refuses is raised as it was, whatever is around it."""
        try:
            made: Namespace = super().instantiate(*arguments, **options)
        except ValueError as error:
            refusal = _refusal_in(error)
            if refusal is None:
                raise
            raise refusal from refusal.__cause__
        return made


def _refusal_in(error: BaseException | None) -> UserError | None:
    """What the user has to change, if that is the cause of an error."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__
    return error


def plain_message(message: str) -> str:
    """Free the parser's message of its words for keys and classes."""
    text = re.sub(r'Parser key "([\w.]+)"', r"\1", message)
    return re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text)


def print_error(message: str) -> None:
    """Print an error as one line."""
    print(f"error: {without_secrets(' '.join(message.split()))}", file=sys.stderr)


def quiet_libraries() -> None:
    """Drop the libraries' advice that does not hold here; say our own warnings in one line."""
    quiet_transformers()
    for library in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(library).setLevel(logging.WARNING)
    warnings.formatwarning = _format_warning
    for message in ADVICE_THAT_DOES_NOT_HOLD:
        warnings.filterwarnings("ignore", message=message)


def _format_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    del line
    if category is UserWarning:
        return f"warning: {without_secrets(str(message))}\n"
    return f"{filename}:{lineno}: {category.__name__}: {message}\n"
