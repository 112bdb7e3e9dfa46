"""What the pages say to type: commands, options and files, read out of their Markdown."""

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from pgprune_lightning.cli import OWN_COMMANDS, RESEARCH_COMMANDS, command_module

ROOT = Path(__file__).resolve().parents[1]
COMMAND_PAGES = ROOT / "docs" / "commands"
PAGES = sorted(
    [
        *(ROOT / "docs").rglob("*.md"),
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "configs" / "experiments" / "README.md",
    ]
)
LIGHTNING_COMMANDS = ("fit", "validate", "test")
PROGRAM = "python -m pgprune_lightning "

_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`([^`]+)`")
_EVERY_PARSERS = ("--help", "--print_shtab")
_OPTION = re.compile(r"(?<!\S)--[a-z][\w.-]*")


def name_of(page: Path) -> str:
    """A page by its path in the checkout."""
    return page.relative_to(ROOT).as_posix()


def blocks(text: str, language: str) -> list[str]:
    """What stands between fences of a language."""
    return [body for name, body in _FENCED.findall(text) if name == language]


def code_spans(text: str) -> list[str]:
    """Code inside sentences and tables, each on one line."""
    return [" ".join(span.split()) for span in _INLINE.findall(_FENCED.sub("", text))]


def program_lines(text: str) -> Iterator[list[str]]:
    """What follows the program's name, as words: in fences, indented, or in a sentence."""
    unfenced = _FENCED.sub("", text)
    indented = [line for line in unfenced.splitlines() if line.startswith("    ")]
    code = "\n".join([*blocks(text, "sh"), *indented, *code_spans(text)])
    for line in re.sub(r"\\\n\s*", "", code).splitlines():
        if line.strip().startswith(PROGRAM):
            yield shlex.split(line.strip().removeprefix(PROGRAM), comments=True)


def options_in(span: str) -> list[str]:
    """The options that a piece of code names."""
    return [option.rstrip(".") for option in _OPTION.findall(span)]


@cache
def parser_of(command: str) -> Any:
    """The parser of a command."""
    if command in LIGHTNING_COMMANDS:
        from pgprune_lightning.run_options import run_parser

        return run_parser(command)
    return getattr(command_module(command), f"{command}_parser")()


def options_of(command: str) -> set[str]:
    """Every option that a command takes."""
    return {
        option
        for action in parser_of(command)._actions
        for option in action.option_strings
        if option.startswith("--") and not option.endswith("+") and option not in _EVERY_PARSERS
    }


def takes(command: str, option: str) -> bool:
    """Whether a command has an option, or a dictionary of which it is an entry."""
    options = options_of(command)
    head = option.split(".")[0]
    is_dictionary = command not in LIGHTNING_COMMANDS and head in options
    return option in options or is_dictionary


def commands() -> list[str]:
    """The commands that are there."""
    return [*LIGHTNING_COMMANDS, *OWN_COMMANDS, *RESEARCH_COMMANDS]
