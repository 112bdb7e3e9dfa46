"""What the program says of a wrong option: what may be written there, and what was meant.

jsonargparse names the types of Python; its errors are told apart by their text, and what may be
written follows from the option's type.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionConfigFile

from pgprune_lightning.class_paths import PLUGINS, open_packages
from pgprune_lightning.errors import did_you_mean
from pgprune_lightning.option_types import (
    classes_of,
    element_of,
    fits,
    known_classes,
    literals_of,
    wanted,
)

_FEW = 8
INNER = "\N{INVISIBLE SEPARATOR}"
"""Around what is said of an option of a class, inside the error of the option that names it."""

_UNKNOWN = re.compile(r"unrecognized arguments: (.+)", re.DOTALL)
_UNKNOWN_KEY = re.compile(
    r"(?:Group '([^']+)' does not accept option|Option) '([^']+)'.*", re.DOTALL
)
_VALUE = re.compile(r'Parser key "([^"]+)"(?: element \d+)?:\s*(.*)', re.DOTALL)
_MISSING = re.compile(r"the following arguments are required: (.+)")
_LINKED = re.compile(r'Linked "([^"]+)" must be given via "([^"]+)"')
_LINK_REFUSED = re.compile(r"argument (\S+) --> ([\w.]+): ")
_NO_VALUE = re.compile(r"argument (?:\S+/)?(\S+): expected (?:one|at least one) argument")
_NO_MAPPING = re.compile(r"Unexpected config: (.*)", re.DOTALL)

_INNER = re.compile(f"{INNER}(.*?){INNER}", re.DOTALL)
_DENIED = re.compile(r"Importing '([^']+)' is not allowed")
_CLASS_NAMED = re.compile(
    r"class_path[= ]'([^']+)'|import path string: (\S+)|Import path (\S+) does not"
    r"|but (\S+) is (?:abstract|a protocol)|Expected '([^']+)' to be"
)
_GIVEN = re.compile(r".*(?:Got value|Given value): (.*)", re.DOTALL)
_NO_CONFIG = re.compile(r"Unable to load config '(.*?)'", re.DOTALL)


def explain(parser: argparse.ArgumentParser, message: str) -> str:
    """Say in one sentence what is wrong with an option, and what to write.

    Args:
        parser: What refused it.
        message: The error of jsonargparse or argparse.

    Returns:
        The sentence; the message itself, on one line, where it is of another kind.
    """
    if found := _UNKNOWN.fullmatch(message):
        return _unknown_arguments(parser, found[1].split())
    if found := _UNKNOWN_KEY.fullmatch(message):
        return _no_option(parser, ".".join(filter(None, found.groups())))
    if found := _VALUE.fullmatch(message):
        return _wrong_value(parser, found[1], found[2])
    if found := _MISSING.fullmatch(message):
        return _missing(parser, found[1].split(", "))
    if found := _LINKED.search(message):
        return f"{found[1]}: is set by {found[2]}; give that."
    if found := _LINK_REFUSED.match(message):
        return f"{found[2]}: is set by {found[1]}; check what is given there, and leave it out."
    if found := _NO_VALUE.match(message):
        return f"{found[1]}: needs a value."
    if found := _NO_MAPPING.match(message):
        given = f"given {_plain(found[1])}" if found[1].strip() else "it is empty"
        return f"a config must be a mapping of options to values; {given}."
    return _plain(message)


def about_group(parser: argparse.ArgumentParser, key: str, given: Any) -> str:
    """Say that an option is a group of others, and no value."""
    inner = [name for name in _names(parser) if name.startswith(f"{key}.")]
    shown = ", ".join(inner[:_FEW]) + (", ..." if len(inner) > _FEW else ".")
    # A file without a folder is taken for the path of a class.
    hint = f" Write ./{given}." if Path(str(given)).is_file() else ""
    return (
        f"{key}: is a group of options, or a YAML file of them; given {given}.{hint} "
        f"The options: {shown}"
    )


def _plain(message: str) -> str:
    """Free a message of the parser's words for keys and classes."""
    text = re.sub(r'Parser key "([\w.]+)"', r"\1", message)
    return " ".join(re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text).split())


# Options that there are not.


def _unknown_arguments(parser: argparse.ArgumentParser, words: list[str]) -> str:
    for word in words:
        if word.startswith("-"):
            return _no_option(parser, word.partition("=")[0])
    return f"{' '.join(words)}: belongs to no option. Options begin with --."


def _no_option(parser: argparse.ArgumentParser, word: str) -> str:
    dashes = "--" if word.startswith("--") else ""
    names = [dashes + name for name in _names(parser)]
    hint = (
        _by_beginning(word, names)
        or _by_last_part(word, names)
        or did_you_mean(word, [*names, "class_path", "init_args"])
        or _by_first_part(word, names)
        or _all_of(parser)
    )
    return f"there is no option {word}.{hint}"


def _by_beginning(word: str, names: list[str]) -> str:
    """`--checkpoint.every` is `--checkpoint.every_n_train_steps`."""
    found = [name for name in names if name.startswith(word)]
    return f" Did you mean {found[0]}?" if len(found) == 1 else ""


def _by_last_part(word: str, names: list[str]) -> str:
    """`--lr` is `--model.update.lr`."""
    last = _last(word)
    found = [name for name in names if _last(name) == last and "." in name]
    return f" Did you mean {' or '.join(found)}?" if 0 < len(found) <= 3 else ""


def _last(name: str) -> str:
    return name.lstrip("-").rpartition(".")[2].replace("-", "_")


def _by_first_part(word: str, names: list[str]) -> str:
    """`--option.trainer.max_steps` begins with `--options`."""
    group, dot, _ = word.partition(".")
    return did_you_mean(group, names) if dot else ""


def _all_of(parser: argparse.ArgumentParser) -> str:
    """The options of a class, which are few."""
    names = _names(parser)
    return f" Its options: {', '.join(names)}." if 0 < len(names) <= _FEW else ""


def _missing(parser: argparse.ArgumentParser, keys: list[str]) -> str:
    names = [_label(parser, key) for key in keys]
    by_file = " Give them by --config FILE." if any("." in name for name in names) else ""
    return f"{', '.join(names)}: missing.{by_file}"


# Values that an option does not take.


def _wrong_value(parser: argparse.ArgumentParser, key: str, reason: str) -> str:
    action = _action(parser, key)
    label = _label(parser, key)
    typehint = getattr(action, "_typehint", None)
    if inner := _INNER.search(reason):
        named = _class_named(reason)
        return f"{label}{f' ({_last(named)})' if named else ''}: {inner[1]}"
    denied = _DENIED.search(reason)
    if typehint is None:
        group = _NO_CONFIG.search(reason) or denied
        return about_group(parser, key, group[1]) if group else f"{label}: {_plain(reason)}"
    if denied:
        return _denied(label, denied[1])
    if classes_of(typehint):
        return _wrong_class(label, typehint, reason)
    return _wrong_plain_value(label, typehint, _given(reason), action)


def _denied(label: str, path: str) -> str:
    return (
        f"{label}: {path} is not imported: it is not of {', '.join(open_packages())}. For classes "
        f"of your own, name their package in the environment variable {PLUGINS}."
    )


def _wrong_class(label: str, typehint: Any, reason: str) -> str:
    named = _class_named(reason)
    if named is None:
        return f"{label}: must be {wanted(typehint)}; given {_given(reason)}."
    if _last(named) in {base.__name__ for base in classes_of(typehint)}:
        return f"{label}: must be {wanted(typehint)}; given options of it alone. Name it before."
    hint = did_you_mean(_last(named), known_classes(classes_of(typehint)))
    return f"{label}: must be {wanted(typehint)}; given {named}.{hint}"


def _class_named(reason: str) -> str | None:
    found = _CLASS_NAMED.search(reason)
    return next((group for group in found.groups() if group), None) if found else None


def _given(reason: str) -> str:
    found = _GIVEN.search(reason)
    return " ".join(found[1].split()) if found else "nothing that fits"


def _wrong_plain_value(label: str, typehint: Any, given: str, action: Any) -> str:
    wish = wanted(typehint, action.default)
    if given in ("True", "False") and literals_of(typehint):
        hint = " YAML takes on, off, yes and no for true and false; put it in quotes."
    elif given.startswith("{"):
        hint = " YAML wants a space behind a colon."
    elif action.nargs in ("+", "*"):
        parts = _parts(given, typehint)
        hint = f" Write {' '.join(parts)}." if len(parts) > 1 else ""
    else:
        parts = _parts(given, element_of(typehint))
        hint = f" Write [{', '.join(parts)}]." if parts else ""
    return f"{label}: must be {wish}; given {given}.{hint or _close(given, typehint)}"


def _close(given: str, typehint: Any) -> str:
    return did_you_mean(given, literals_of(typehint))


def _parts(given: str, element: Any) -> list[str]:
    """The elements of a list that was written as none, as YAML wants them; empty: it has none."""
    parts = [part.strip() for part in given.split(",")]
    if element is str:
        return [part if isinstance(_loaded(part), str) else f"'{part}'" for part in parts]
    return parts if all(fits(_loaded(part), element) for part in parts) else []


def _loaded(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


# The parser's options.


def _names(parser: argparse.ArgumentParser) -> list[str]:
    """Names of the options, without dashes."""
    return [
        name.removeprefix("--")
        for action in parser._actions
        for name in action.option_strings
        if name.startswith("--") and not name.endswith((".help", "+")) and name != "--help"
    ]


def _action(parser: argparse.ArgumentParser, key: str) -> argparse.Action | None:
    found = next((action for action in parser._actions if action.dest == key), None)
    link: Any = found
    return link.target[1] if hasattr(found, "target") else found


def _label(parser: argparse.ArgumentParser, key: str) -> str:
    """An option as its parser's users write it: as a key of a config, or with dashes."""
    action = _action(parser, key)
    for link in parser._actions:
        if link.dest == key and hasattr(link, "source"):
            return str(link.source[0][0])
    reads_config = any(isinstance(each, ActionConfigFile) for each in parser._actions)
    is_inner = not getattr(parser, "exit_on_error", True)
    is_key = reads_config or is_inner or "." in key
    if is_key or action is None or not action.option_strings:
        return key
    return action.option_strings[0]
