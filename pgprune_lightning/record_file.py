"""Reading back the JSON records that the program writes.

A record may have been edited, damaged, or written by another program. What reads one gets an object
whose fields have the types and ranges of a schema, or raises one line that names the file, the
field, its value and what is allowed.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from pgprune_lightning.errors import UserError

Count = Annotated[int, Field(ge=0, le=10**15)]
"""A number of steps, tokens, units or parameters; no model or run comes near the limit."""
PositiveCount = Annotated[int, Field(ge=1, le=10**15)]
Share = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(min_length=1)]

DEEPEST = 100
"""Levels of a record; what walks one calls itself for each, and Python's stack has an end."""
_SHOWN_CHARACTERS = 60

Schema = TypeVar("Schema", bound=BaseModel)


class Record(BaseModel):
    """A schema: types are not converted, no field may be unknown, numbers are finite."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class PartOfRecord(Record):
    """A schema of the fields that are needed; others may be there."""

    model_config = ConfigDict(extra="ignore")


def read_object(path: Path, name: str, *, finite: bool = True) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Args:
        path: The file.
        name: What an error begins with, such as an option or the kind of record.
        finite: Whether NaN and Infinity, which Python reads and JSON has not, are refused.

    Raises:
        UserError: If it cannot be read, is no JSON object, has a field twice or a number that is
            not finite, or is nested deeper than any record is.
    """
    try:
        record = json.loads(path.read_bytes(), object_pairs_hook=_without_repeats)
        if not isinstance(record, dict):
            raise ValueError("it holds no JSON object")
        _check_values(record, finite)
    except RecursionError:
        raise UserError(f"{name}: {path} cannot be read: it is nested too deeply.") from None
    except OSError as error:
        raise UserError(f"{name}: {path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise UserError(f"{name}: {path} cannot be read: {error}.") from error
    return record


def checked(schema: type[Schema], record: Any, path: Path, name: str, field: str = "") -> Schema:
    """Check a record, or a part of it, against a schema.

    Args:
        schema: What it must be.
        record: What was read.
        path: The file that it was read from.
        name: What an error begins with.
        field: Where in the record the part lies.

    Raises:
        UserError: If it is not; of several wrong fields it names the first.
    """
    try:
        return TypeAdapter(schema).validate_python(record)
    except ValidationError as error:
        sentence = _sentence(error.errors(include_url=False)[0], field)
        raise UserError(damaged(path, name, sentence)) from error


def damaged(path: Path, name: str, sentence: str) -> str:
    """The one line that says what is wrong with a record."""
    return f"{name}: {path} is damaged: {sentence}. Use an intact copy, or make it again."


def _sentence(error: ErrorDetails, field: str) -> str:
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in error["loc"])
    where = f"{field}{''.join(steps)}".removeprefix(".") or "the record"
    if error["type"] == "missing":
        return f"{where} is missing"
    if error["type"] == "extra_forbidden":
        return f"{where} is no field of it"
    allowed = re.sub(r"^\w+ should (be )?", lambda must: f"must {must[1] or ''}", error["msg"])
    allowed = re.sub(r"a valid dictionary( or instance of \w+)?", "an object", allowed)
    allowed = allowed.replace(" after validation", "")
    given = json.dumps(error["input"], default=str)
    if len(given) > _SHOWN_CHARACTERS:
        given = f"{given[:_SHOWN_CHARACTERS]} ..."
    return f"{where} {allowed}, given {given}"


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{repeated!r} is given twice")
    return record


def _check_values(record: Any, finite: bool) -> None:
    """Refuse what no field may hold, without a call for each level."""
    level: list[tuple[str, Any]] = [("", record)]
    for _ in range(DEEPEST):
        inner: list[tuple[str, Any]] = []
        for path, value in level:
            if isinstance(value, dict):
                inner += [(f"{path}.{name}", item) for name, item in value.items()]
            elif isinstance(value, list):
                inner += [(f"{path}[{index}]", item) for index, item in enumerate(value)]
            elif finite and isinstance(value, float) and not math.isfinite(value):
                name = path.removeprefix(".")
                raise ValueError(f"{name} must be a finite number, given {json.dumps(value)}")
        level = inner
    if level:
        raise RecursionError
