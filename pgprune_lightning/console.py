"""The parser of all commands, and how errors and warnings are printed: in one line each."""

import argparse
import logging
import re
import sys
import warnings
from collections.abc import Container, Iterator
from typing import Any, NoReturn

import yaml
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from pgprune_lightning.credentials import without_secrets
from pgprune_lightning.errors import OptionError, UserError
from pgprune_lightning.masking.frozen_model import quiet_transformers
from pgprune_lightning.option_messages import INNER, about_group, explain, restrict_class_paths

LONGEST_ERROR = 2000
"""Characters of an error that are printed."""

ADVICE_THAT_DOES_NOT_HOLD = (
    ".*does not have many workers.*",
    ".*`IterableDataset` has `__len__` defined.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*isinstance.treespec, LeafSpec.*",
    ".*but have no logger configured.*",
    ".*all_gather is deprecated.*",  # Lightning calls it
    ".*when logging on epoch level in distributed setting.*",  # we log what is of all ranks
    ".*`is_gradient_checkpointing` is deprecated.*",  # PEFT asks for it
    ".*`srun` command is available on your system but is not used.*",
)


class OneLineErrorParser(LightningArgumentParser):
    """Raises a one-line error instead of printing all options."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        restrict_class_paths()
        super().__init__(*arguments, **{"allow_abbrev": False} | options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise what is wrong; for an option of a class, the error of the class encloses it."""
        del ex
        text = explain(self, message)
        if not self.exit_on_error:
            raise argparse.ArgumentError(None, f"{INNER}{text}{INNER}")
        raise OptionError(text, self.prog)

    def format_help(self, *arguments: Any) -> str:
        """Name classes as a config names them."""
        text: str = super().format_help(*arguments)
        return re.sub(r"<class\s+'(?:\w+\.)*(\w+)'>", r"\1", text)

    def instantiate(self, *arguments: Any, **options: Any) -> Namespace:
        """Make the objects; a `UserError` inside one is raised as it was."""
        try:
            made: Namespace = super().instantiate(*arguments, **options)
        except ValueError as error:
            refusal = _refusal_in(error)
            if refusal is None:
                raise
            raise refusal from refusal.__cause__
        return made

    def parse_string(self, content: str, *arguments: Any, **options: Any) -> Namespace:
        """Parse a configuration, and refuse a number for a group, which would be ignored."""
        for key, value in _groups_of(content, self.groups or {}):
            if key and isinstance(value, (bool, int, float, list)):
                raise OptionError(about_group(self, key, value), self.prog)
        return super().parse_string(content, *arguments, **options)


def _refusal_in(error: BaseException | None) -> UserError | None:
    """The `UserError` that caused an error, if there is one."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__
    return error


def _groups_of(content: str, groups: Container[str]) -> Iterator[tuple[str, Any]]:
    """The values that a configuration gives to groups of options, by dotted keys."""
    try:
        config = yaml.safe_load(content)
    except yaml.YAMLError:
        return  # the parser will say it
    waiting = [("", config)]
    while waiting:
        prefix, value = waiting.pop()
        inner = value.items() if isinstance(value, dict) else ()
        named = [(f"{prefix}.{key}".lstrip("."), item) for key, item in inner]
        waiting += [(key, item) for key, item in named if key in groups]
        yield prefix, value


def print_error(message: str) -> None:
    """Print an error as one line."""
    text = without_secrets(" ".join(message.split()))
    if len(text) > LONGEST_ERROR:  # such as a whole text that was given in place of a list
        half = LONGEST_ERROR // 2
        text = f"{text[:half]} ... {text[-half:]}"
    print(f"error: {text}", file=sys.stderr)


def quiet_libraries() -> None:
    """Silence advice of the libraries that does not apply here; print our warnings in one line."""
    quiet_transformers()
    for library in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(library).setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch.profilers").setLevel(logging.INFO)  # what it has measured
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
