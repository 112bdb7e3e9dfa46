"""Messages about wrong options: the values that an option takes, and the name that was meant.

jsonargparse names the types of Python. Its errors are told apart by their text here, and what may
be written follows from the option's type.
"""

from __future__ import annotations

import argparse
import inspect
import os
import re
import sys
from abc import ABC
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from jsonargparse import ActionConfigFile, set_parsing_settings

from pgprune_lightning.errors import UserError, did_you_mean

INNER = "\N{INVISIBLE SEPARATOR}"
"""Encloses the message about an option of a class inside the error of the option that names it."""
PLUGINS = "PGPRUNE_PLUGINS"
"""The environment variable that names further packages of classes, separated by commas."""

_PACKAGES = ("callbacks", "lightning", "pgprune_lightning")
_FEW = 8  # options or classes that are listed

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


def restrict_class_paths() -> None:
    """Let a config name classes of this program, of Lightning and of the user's packages alone.

    A class path is imported before its type is known, and importing is running code.

    Raises:
        UserError: The environment variable names something else than packages.
    """
    try:
        set_parsing_settings(
            import_path_denylist=["*"],
            import_path_allowlist=list(_open_packages()),
            instantiate_subclass_spec_in_any=False,
        )
    except ValueError as error:
        raise UserError(
            f"{PLUGINS}: must be names of packages, separated by commas, such as my_package; given "
            f"{os.environ[PLUGINS]!r}."
        ) from error


def _open_packages() -> tuple[str, ...]:
    named = (name.strip() for name in os.environ.get(PLUGINS, "").split(","))
    studies = [name for name in ("research",) if name in sys.modules]  # no part of the wheel
    return (*_PACKAGES, *studies, *(name for name in named if name))


def explain(parser: argparse.ArgumentParser, message: str) -> str:
    """Explain in one sentence what is wrong with an option, and what to write.

    Args:
        parser: The parser that refused it.
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
        labels = [_label(parser, key) for key in found[1].split(", ")]
        by_file = " Give them by --config FILE." if any("." in label for label in labels) else ""
        return f"{', '.join(labels)}: missing.{by_file}"
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
    path = Path(str(given))
    hint = ""
    if f"{key}.path" in inner and path.suffix not in ("", ".yaml", ".yml"):
        hint = f" Did you mean --{key}.path {given}?"
    elif path.is_file() and str(given) == path.name:  # without a folder, taken for a class
        hint = f" Write ./{given}."
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
    begun = [name for name in names if name.startswith(word)]
    same_end = [name for name in names if "." in name and _last(name) == _last(word)]
    if len(begun) == 1:  # --checkpoint.every: --checkpoint.every_n_train_steps
        hint = f" Did you mean {begun[0]}?"
    elif 0 < len(same_end) <= 3:  # --lr: --model.update.lr
        hint = f" Did you mean {' or '.join(same_end)}?"
    else:
        group, dot, _ = word.partition(".")  # --option.trainer.max_steps: --options
        few = f" Its options: {', '.join(names)}." if 0 < len(names) <= _FEW else ""
        hint = did_you_mean(word, [*names, "class_path", "init_args"])
        hint = hint or (did_you_mean(group, names) if dot else "") or few
    return f"there is no option {word}.{hint}"


def _last(name: str) -> str:
    return name.lstrip("-").rpartition(".")[2].replace("-", "_")


# Values that an option does not take.


def _wrong_value(parser: argparse.ArgumentParser, key: str, reason: str) -> str:
    action, label = _action(parser, key), _label(parser, key)
    typehint = getattr(action, "_typehint", None)
    denied = _DENIED.search(reason)
    if inner := _INNER.search(reason):
        named = _class_named(reason)
        return f"{label}{f' ({_last(named)})' if named else ''}: {inner[1]}"
    if typehint is None:
        group = _NO_CONFIG.search(reason) or denied
        return about_group(parser, key, group[1]) if group else f"{label}: {_plain(reason)}"
    if denied:
        return (
            f"{label}: {denied[1]} is not imported: it is not of {', '.join(_open_packages())}. "
            "For classes of your own, name their package in the environment variable "
            f"{PLUGINS}."
        )
    if _classes(typehint):
        return f"{label}: must be {_wanted(typehint)}; given {_wrong_class(typehint, reason)}"
    return f"{label}: must be {_wrong_plain_value(typehint, _given(reason), action)}"


def _wrong_class(typehint: Any, reason: str) -> str:
    named = _class_named(reason)
    if named is None:
        return f"{_given(reason)}."
    if _last(named) in {base.__name__ for base in _classes(typehint)}:
        return "options of it alone. Name it before."
    return f"{named}.{did_you_mean(_last(named), _known_classes(_classes(typehint)))}"


def _class_named(reason: str) -> str | None:
    found = _CLASS_NAMED.search(reason)
    return next((group for group in found.groups() if group), None) if found else None


def _given(reason: str) -> str:
    found = _GIVEN.search(reason)
    return " ".join(found[1].split()) if found else "nothing that fits"


def _wrong_plain_value(typehint: Any, given: str, action: Any) -> str:
    hint = ""
    if given in ("True", "False") and _literals(typehint):
        hint = " YAML takes on, off, yes and no for true and false; put it in quotes."
    elif given.startswith("{"):
        hint = " YAML wants a space behind a colon."
    elif action.nargs in ("+", "*"):
        parts = _parts(given, typehint)
        hint = f" Write {' '.join(parts)}." if len(parts) > 1 else ""
    elif parts := _parts(given, _element(typehint)):
        hint = f" Write [{', '.join(parts)}]."
    hint = hint or did_you_mean(given, _literals(typehint))
    return f"{_wanted(typehint, action.default)}; given {given}.{hint}"


def _parts(given: str, element: Any) -> list[str]:
    """The elements of a list that was written as none, as YAML wants them; empty: it has none."""
    parts = [part.strip() for part in given.split(",")]
    if element is str:
        return [part if isinstance(_loaded(part), str) else f"'{part}'" for part in parts]
    return parts if all(_fits(_loaded(part), element) for part in parts) else []


def _loaded(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _fits(value: Any, typehint: Any) -> bool:
    """Whether a plain value is one of a type; False for classes and containers."""
    if get_origin(typehint) is Literal:
        return value in get_args(typehint)
    if typehint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return typehint in (int, str) and type(value) is typehint


# The parser's options.


def _names(parser: argparse.ArgumentParser) -> list[str]:
    """Names of the options, without dashes."""
    return [
        name.removeprefix("--")
        for action in parser._actions
        for name in action.option_strings
        if name.startswith("--") and not name.endswith((".help", "+")) and name != "--help"
    ]


def _action(parser: argparse.ArgumentParser, key: str) -> Any:
    """The option of a key, or that which a link sets; None: there is none."""
    found: Any = next((action for action in parser._actions if action.dest == key), None)
    return found.target[1] if hasattr(found, "target") else found


def _label(parser: argparse.ArgumentParser, key: str) -> str:
    """An option as its parser's users write it: as a key of a config, or with dashes."""
    for link in parser._actions:
        if link.dest == key and hasattr(link, "source"):
            return str(link.source[0][0])
    action = _action(parser, key)
    reads_config = any(isinstance(each, ActionConfigFile) for each in parser._actions)
    is_key = reads_config or not getattr(parser, "exit_on_error", True) or "." in key
    return (
        key if is_key or action is None or not action.option_strings else action.option_strings[0]
    )


# What may be written for an option, from its type.

_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    NoneType: "null",
}
_PLURALS = {int: "whole numbers", float: "numbers", str: "names"}
_EXAMPLES = {bool: "true", int: "1", float: "0.5", NoneType: "null"}


def _wanted(typehint: Any, default: Any = None) -> str:
    """What a value of a type looks like: `a whole number`, `one of a, b`."""
    *most, last = dict.fromkeys(_wanted_one(each, default) for each in _alternatives(typehint))
    return f"{', '.join(most)}, or {last}" if most else last


def _wanted_one(typehint: Any, default: Any) -> str:
    origin, classes = get_origin(typehint), _classes(typehint)
    if origin is Literal:
        return f"one of {', '.join(map(str, get_args(typehint)))}"
    if _is_list(typehint) and classes:
        return "a list of such"
    if _is_list(typehint) or origin in (tuple, dict):
        shown = isinstance(default, (list, tuple)) and default
        example = f"[{', '.join(map(str, default))}]" if shown else _example(typehint)
        return f"{_container(typehint)}, such as {example}"
    if is_dataclass(typehint):
        return f"a mapping of its options ({', '.join(each.name for each in fields(typehint))})"
    if known := list(_known_classes(classes)):
        return f"one of {', '.join(known[:_FEW])}{', ...' if len(known) > _FEW else ''}"
    return _WORDS.get(typehint) or f"a {getattr(typehint, '__name__', typehint)}"


def _container(typehint: Any) -> str:
    inner, origin = get_args(typehint) or (str,), get_origin(typehint)
    choices = ", ".join(_literals(inner[0]))
    if origin is dict:
        return f"a mapping of some of {choices} to values" if choices else "a mapping"
    if choices:
        return f"a list of some of {choices}"
    return f"a list of {f'{len(inner)} ' * (origin is tuple)}{_PLURALS.get(inner[0], 'values')}"


def _example(typehint: Any) -> str:
    """A value of a type, as YAML writes it."""
    inner, origin = get_args(typehint), get_origin(typehint)
    if origin is Literal:
        return str(inner[0])
    if _is_list(typehint):
        element = inner[0] if inner else str
        return f"[{', '.join(_literals(element)[:2]) or _example(element)}]"
    if origin is tuple:
        return f"[{', '.join(map(_example, inner))}]"
    if origin is dict:
        return f"{{{_example(inner[0])}: {_example(inner[1])}}}"
    if is_dataclass(typehint):
        return f"{{{fields(typehint)[0].name}: ...}}"
    return _EXAMPLES.get(typehint, "NAME")


def _alternatives(typehint: Any) -> tuple[Any, ...]:
    """The members of a union, or the type alone; lists and `null` last."""
    is_union = get_origin(typehint) in (Union, UnionType)
    members = get_args(typehint) if is_union else (typehint,)
    return tuple(sorted(members, key=lambda each: (each is NoneType, _is_list(each))))


def _is_list(typehint: Any) -> bool:
    return (get_origin(typehint) or typehint) in (list, Iterable, Sequence)


def _element(typehint: Any) -> Any:
    """What a list of the type holds; None: it is no list."""
    lists = (each for each in _alternatives(typehint) if _is_list(each) and get_args(each))
    return next((get_args(each)[0] for each in lists), None)


def _literals(typehint: Any) -> tuple[str, ...]:
    """The words among which a type chooses, in lists and unions too."""
    if get_origin(typehint) is Literal:
        return tuple(str(each) for each in get_args(typehint))
    return tuple(word for each in get_args(typehint) for word in _literals(each))


def _classes(typehint: Any) -> list[type]:
    """The classes whose subclasses a type takes, in lists, in unions, or made by a call."""
    if get_origin(typehint) is Callable:
        return _classes(get_args(typehint)[-1])
    inner = [found for each in get_args(typehint) for found in _classes(each)]
    if inner or not inspect.isclass(typehint) or is_dataclass(typehint):
        return inner
    return [] if typehint.__module__.partition(".")[0] in sys.stdlib_module_names else [typehint]


def _known_classes(bases: Iterable[type]) -> dict[str, type]:
    """What can be chosen below some classes, by name; the program's own first."""
    found = {each.__name__: each for base in bases for each in _concrete(base)}
    return dict(sorted(found.items(), key=lambda item: (_is_foreign(item[1]), item[0])))


def _concrete(base: type) -> Iterator[type]:
    if not inspect.isabstract(base) and ABC not in base.__bases__ and _is_public(base):
        yield base
    subclasses: list[type] = base.__subclasses__()
    for subclass in subclasses:
        yield from _concrete(subclass)


def _is_public(each: type) -> bool:
    """Whether a user may name it: it is where it says, and, if ours, a package exports it."""
    package = each.__module__ if _is_foreign(each) else each.__module__.rpartition(".")[0]
    found = getattr(sys.modules.get(package), each.__name__, None)
    return found is each and not each.__name__.startswith("_")


def _is_foreign(each: type) -> bool:
    return each.__module__.partition(".")[0] not in ("callbacks", "pgprune_lightning")
