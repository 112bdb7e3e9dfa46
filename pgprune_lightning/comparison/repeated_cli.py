"""The command line of `fit`, many times in one process, and with errors that can be caught."""

from __future__ import annotations

from typing import Any, ClassVar, NoReturn

from pgprune_lightning.console import OneLineErrorParser
from pgprune_lightning.errors import UserError
from pgprune_lightning.pruning_cli import PruningCLI, run_command


class RaisingParser(OneLineErrorParser):
    """Raises what it would print."""

    def refusal(self, text: str) -> UserError:
        """The error as one of the user's."""
        return UserError(text.removeprefix("config: "))


class RepeatedCLI(PruningCLI):
    """Makes a module's parser once for all runs of a process: that takes longer than parsing."""

    _parser_states: ClassVar[dict[Any, dict[str, Any]]] = {}

    def setup_parser(self, *arguments: Any, **keywords: Any) -> None:
        """Make the parser, or take the one that another run has made."""
        states = RepeatedCLI._parser_states
        if self.model_class not in states:
            before = set(vars(self))
            super().setup_parser(*arguments, **keywords)
            made = {name: value for name, value in vars(self).items() if name not in before}
            states[self.model_class] = made
        vars(self).update(states[self.model_class])


class _ParserIsMade(Exception):  # noqa: N818 - a signal, no error
    """Ends LightningCLI's work before it parses."""


class _ParserMaker(RepeatedCLI):
    """Makes the parser and nothing else."""

    def parse_arguments(self, parser: Any, args: Any) -> NoReturn:
        """Hand the parser over."""
        del args
        raise _ParserIsMade(parser)


def fit_parser() -> RaisingParser:
    """The parser of the command line, for as many configurations as there are."""
    try:
        run_command(["fit"], _ParserMaker, RaisingParser)
    except _ParserIsMade as made:
        parser: RaisingParser = made.args[0]
        return parser
    raise AssertionError("LightningCLI has not parsed")
