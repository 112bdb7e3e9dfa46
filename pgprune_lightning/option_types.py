"""What may be written for an option, in words, from the type of Python that it has."""

from __future__ import annotations

import inspect
import sys
from abc import ABC
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    NoneType: "null",
}
PLURALS = {int: "whole numbers", float: "numbers", str: "names"}
EXAMPLES = {bool: "true", int: "1", float: "0.5", NoneType: "null"}
SHOWN_CLASSES = 8
"""At most so many are listed; of Lightning's callbacks there are thirty."""


def wanted(typehint: Any, default: Any = None) -> str:
    """What a value of a type looks like: `a whole number`, `one of a, b`.

    Args:
        typehint: The type.
        default: A value of it, for an example.
    """
    kinds = dict.fromkeys(_wanted(each, default) for each in alternatives_of(typehint))
    *most, last = kinds
    return f"{', '.join(most)}, or {last}" if most else last


def _wanted(typehint: Any, default: Any) -> str:
    inner, origin = get_args(typehint), get_origin(typehint)
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if _is_list(typehint) and classes_of(typehint):
        return "a list of such"
    if _is_list(typehint) or origin in (tuple, dict):
        shown = plain_list(default) if isinstance(default, (list, tuple)) and default else ""
        return f"{_container(typehint)}, such as {shown or example(typehint)}"
    if is_dataclass(typehint):
        return f"a mapping of its options ({', '.join(each.name for each in fields(typehint))})"
    classes = list(known_classes(classes_of(typehint)))
    if classes:
        more = ", ..." if len(classes) > SHOWN_CLASSES else ""
        return f"one of {', '.join(classes[:SHOWN_CLASSES])}{more}"
    return NAMES.get(typehint) or f"a {getattr(typehint, '__name__', typehint)}"


def _container(typehint: Any) -> str:
    inner, origin = get_args(typehint), get_origin(typehint)
    if origin is dict:
        choices = literals_of(inner[0])
        return f"a mapping of some of {', '.join(choices)} to values" if choices else "a mapping"
    choices = literals_of(inner[0]) if inner else ()
    if choices:
        return f"a list of some of {', '.join(choices)}"
    length = f"{len(inner)} " if origin is tuple else ""
    return f"a list of {length}{PLURALS.get(inner[0] if inner else str, 'values')}"


def plain_list(values: Iterable[Any]) -> str:
    """A list as YAML writes it."""
    return f"[{', '.join(str(value) for value in values)}]"


def example(typehint: Any) -> str:
    """A value of a type, as YAML writes it."""
    inner, origin = get_args(typehint), get_origin(typehint)
    if origin is Literal:
        return str(inner[0])
    if _is_list(typehint):
        choices = literals_of(inner[0]) if inner else ()
        return f"[{', '.join(choices[:2]) or example(inner[0] if inner else str)}]"
    if origin is tuple:
        return f"[{', '.join(example(each) for each in inner)}]"
    if origin is dict:
        return f"{{{example(inner[0])}: {example(inner[1])}}}"
    if is_dataclass(typehint):
        return f"{{{fields(typehint)[0].name}: ...}}"
    return EXAMPLES.get(typehint, "NAME")


def fits(value: Any, typehint: Any) -> bool:
    """Whether a plain value is one of a type; no judgement of classes and containers."""
    if get_origin(typehint) is Literal:
        return value in get_args(typehint)
    if typehint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return typehint in (int, str) and type(value) is typehint


def alternatives_of(typehint: Any) -> tuple[Any, ...]:
    """The members of a union, or the type alone; `null` last."""
    is_union = get_origin(typehint) in (Union, UnionType)
    members = get_args(typehint) if is_union else (typehint,)
    return tuple(sorted(members, key=lambda each: (each is NoneType, _is_list(each))))


def element_of(typehint: Any) -> Any:
    """What a list of the type holds; None: it is no list."""
    for each in alternatives_of(typehint):
        if _is_list(each) and get_args(each):
            return get_args(each)[0]
    return None


def literals_of(typehint: Any) -> tuple[str, ...]:
    """The words among which a type chooses, in lists and unions too."""
    if get_origin(typehint) is Literal:
        return tuple(str(each) for each in get_args(typehint))
    return tuple(word for each in get_args(typehint) for word in literals_of(each))


def classes_of(typehint: Any) -> list[type]:
    """The classes whose subclasses a type takes, in lists, in unions, or made by a call."""
    if get_origin(typehint) is Callable:
        return classes_of(get_args(typehint)[-1])
    inner = [found for each in get_args(typehint) for found in classes_of(each)]
    if inner or not inspect.isclass(typehint) or is_dataclass(typehint):
        return inner
    return [] if typehint.__module__.partition(".")[0] in sys.stdlib_module_names else [typehint]


def known_classes(bases: Iterable[type]) -> dict[str, type]:
    """What can be chosen below some classes, by name; the program's own first."""
    found = {each.__name__: each for base in bases for each in _concrete(base)}
    return dict(sorted(found.items(), key=lambda item: (_is_foreign(item[1]), item[0])))


def _is_list(typehint: Any) -> bool:
    return (get_origin(typehint) or typehint) in (list, Iterable, Sequence)


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
