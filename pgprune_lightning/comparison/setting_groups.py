"""Settings that belong together: `LLaMA-7B 0.7` and `LLaMA-7B 0.6` are one model's."""

from __future__ import annotations

from typing import Any

Settings = dict[str, dict[str, Any]]


def grouped(settings: Settings) -> dict[str, Settings]:
    """Split settings by the name before their number.

    Args:
        settings: Results by label.

    Returns:
        Settings by group, with the numbers as labels, where each label is a name, a space and a
        number, and the names are at least two; else all of them in a group without a name.
    """
    groups: dict[str, Settings] = {}
    for label, setting in settings.items():
        name, _, number = label.rpartition(" ")
        if not name or not _is_number(number):
            return {"": settings}
        groups.setdefault(name, {})[number] = setting
    return groups if len(groups) > 1 else {"": settings}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
