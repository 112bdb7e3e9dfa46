"""Values of an experiment file, each checked, with the key in the message.

Every function takes what YAML has read and the key that it stands at, and raises a `UserError` if
it is something else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pgprune_lightning.errors import UserError, did_you_mean


def mapping(value: Any, where: str, allowed: Sequence[str] | None = None) -> dict[Any, Any]:
    """A mapping, with no other keys than those allowed; null is an empty one."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError(f"{where}: must be a mapping of names to values, given {value!r}.")
    unknown = [str(key) for key in value if allowed is not None and key not in allowed]
    if unknown:
        names = allowed or ()
        raise UserError(
            f"{where}: unknown key {', '.join(unknown)}; allowed are {', '.join(names)}."
            f"{did_you_mean(unknown[0], names)}"
        )
    return value


def choice(value: Any, allowed: Sequence[str], where: str) -> Any:
    """One of the values allowed."""
    if value not in allowed:
        hint = did_you_mean(str(value), allowed)
        raise UserError(f"{where}: must be one of {', '.join(allowed)}; given {value!r}.{hint}")
    return value


def text(value: Any, where: str) -> str:
    """A text that says something."""
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where}: must be a text, given {value!r}.")
    return value


def optional_text(value: Any, where: str) -> str | None:
    """A text or null."""
    return None if value is None else text(value, where)


def texts(value: Any, where: str) -> tuple[str, ...]:
    """A list of texts; null is an empty one."""
    if value is not None and not isinstance(value, list):
        raise UserError(f"{where}: must be a list of texts, given {value!r}.")
    return tuple(text(item, where) for item in value or [])


def integers(value: Any, where: str, lowest: int) -> tuple[int, ...]:
    """A list of different whole numbers, none below `lowest`; at least one."""
    numbers = list(value) if isinstance(value, (list, tuple)) else []
    fit = all(type(number) is int and number >= lowest for number in numbers)
    if not numbers or not fit or len(set(numbers)) != len(numbers):
        raise UserError(
            f"{where}: must be a list of different whole numbers of at least {lowest}, "
            f"given {value!r}."
        )
    return tuple(numbers)
