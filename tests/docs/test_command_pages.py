"""The page of a command and its `--help` name the same options."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from pgprune_lightning.cli import OWN_COMMANDS, RESEARCH_COMMANDS
from tests.documentation import (
    COMMAND_PAGES,
    PAGES,
    ROOT,
    code_spans,
    commands,
    name_of,
    options_in,
    options_of,
    parser_of,
    takes,
)

ROW_WITH_DEFAULT = re.compile(r"^\| `(--[\w.-]+)` \| `([^`]+)` \|", re.MULTILINE)
OWN_PAGES = {"fit": "fit", **{name: name for name in (*OWN_COMMANDS, *RESEARCH_COMMANDS)}}
PAGE_OF = {**OWN_PAGES, "validate": "validate_test", "test": "validate_test"}


def options_on(page: Path) -> set[str]:
    """Options that a page gives as its own, and not as those of another command."""
    own = [span for span in code_spans(page.read_text()) if span.startswith("--")]
    return {option for span in own for option in options_in(span)}


def page_of(command: str) -> Path:
    return COMMAND_PAGES / f"{PAGE_OF[command]}.md"


@pytest.mark.parametrize("command", PAGE_OF)
def test_a_command_has_a_page_that_the_index_leads_to(command: str) -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    assert page_of(command).is_file(), f"write docs/commands/{PAGE_OF[command]}.md"
    assert f"(commands/{PAGE_OF[command]}.md)" in index, "add a row to docs/README.md"


@pytest.mark.parametrize("command", OWN_PAGES)
def test_every_option_stands_on_the_page(command: str) -> None:
    on_page = options_on(page_of(command))
    missing = {
        option
        for option in options_of(command)
        # The Trainer's are Lightning's to explain; a validation text is as a training text.
        if not option.startswith("--trainer.")
        and not option.endswith(".help")
        and option.replace("--data.validation.", "--data.train.") not in on_page
    }
    assert not missing, f"add to docs/commands/{PAGE_OF[command]}.md: {sorted(missing)}"


@pytest.mark.parametrize("command", PAGE_OF)
def test_every_option_on_the_page_exists(command: str) -> None:
    unknown = {option for option in options_on(page_of(command)) if not takes(command, option)}
    assert not unknown, f"{command} has no {sorted(unknown)}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_options_named_with_their_command_exist(page: Path) -> None:
    """Such as `fit --resume auto`, in any sentence."""
    unknown = [
        span
        for span in code_spans(page.read_text())
        if span.split()[0] in commands()
        for option in options_in(span)
        if option != "--help" and not takes(span.split()[0], option)
    ]
    assert not unknown


def says(given: str, default: Any) -> bool:
    """Whether what a page gives is a default: of a class its name, of a list words or YAML."""
    if isinstance(default, dict) and "class_path" in default:
        return bool(given == default["class_path"].rpartition(".")[2])
    plain = list(default) if isinstance(default, tuple) else getattr(default, "value", default)
    words = " ".join(map(str, plain)) if isinstance(plain, list) else str(plain)
    return given == words or bool(yaml.safe_load(given) == plain)


@pytest.mark.parametrize("command", OWN_PAGES)
def test_the_defaults_on_the_page_are_those_of_the_command(command: str) -> None:
    """Those in code: prose, such as "the model's", says what happens where there is none."""
    defaults = {
        option: action.default
        for action in parser_of(command)._actions
        for option in action.option_strings
    }
    wrong = {
        option: defaults[option]
        for option, given in ROW_WITH_DEFAULT.findall(page_of(command).read_text())
        if option in defaults and not says(given, defaults[option])
    }
    assert not wrong, f"the defaults in docs/commands/{PAGE_OF[command]}.md are wrong: {wrong}"
