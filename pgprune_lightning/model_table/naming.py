"""NAME=PLACE, as models and texts are given."""

from __future__ import annotations

import re
from pathlib import Path

_NAMED = re.compile(r"([^=/:]+)=(.+)")  # what has a slash or colon before the sign is a place


def split_name(given: str) -> tuple[str | None, str]:
    """Split a name that the user gives from what it names.

    Args:
        given: PLACE or NAME=PLACE; an existing path is a place, whatever signs it has.

    Returns:
        The name, None without one, and the place.
    """
    named = None if Path(given).exists() else _NAMED.fullmatch(given)
    return (named[1], named[2]) if named else (None, given)
