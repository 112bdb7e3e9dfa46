"""A record is read whole, or refused in one line: file, field, value, and what is allowed."""

from pathlib import Path
from typing import Any

import pytest

from pgprune_lightning.errors import UserError
from pgprune_lightning.record_file import (
    DEEPEST,
    Count,
    Name,
    PartOfRecord,
    Record,
    checked,
    read_object,
)


class _Inner(Record):
    count: Count


class _Whole(Record):
    name: Name
    inner: list[_Inner]
    share: float | None = None


class _Part(PartOfRecord):
    name: Name


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read: Expecting value"),
        (b"[1]", "holds no JSON object"),
        (b"\xff\xfe\x80", "cannot be read"),
        (b'{"a": 1, "a": 2}', "'a' is given twice"),
        (b'{"a": {"b": [1, {"c": NaN}]}}', r"a\.b\[1\]\.c must be a finite number, given NaN"),
        (b'{"a": -Infinity}', "a must be a finite number, given -Infinity"),
        (b'{"a": ' + b"1" * 5000 + b"}", "cannot be read: Exceeds the limit"),
        (b'{"a": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", "nested too deeply"),
        (b'{"a": ' + b"[" * DEEPEST + b"]" * DEEPEST + b"}", "nested too deeply"),
    ],
)
def test_what_is_no_object(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "record.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"^export: .*record\.json.*{message}"):
        read_object(path, "export")


def test_what_is_an_object(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text('{"a": [1, 2.5, null, true, "x"], "b": NaN}')
    assert str(read_object(path, "a", finite=False)["b"]) == "nan"
    deepest = '{"a": ' + "[" * (DEEPEST - 2) + "]" * (DEEPEST - 2) + "}"
    path.write_text(deepest)
    assert list(read_object(path, "a")) == ["a"]
    with pytest.raises(UserError, match=r"a: .*gone\.json cannot be read: No such file"):
        read_object(tmp_path / "gone.json", "a")


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        ({}, "name is missing"),
        ({"name": "a", "inner": [{}]}, "inner[0].count is missing"),
        ({"name": "a", "inner": [{"count": 1, "x": 2}]}, "inner[0].x is no field of it"),
        (
            {"name": "a", "inner": [{"count": -1}]},
            "inner[0].count must be greater than or equal to 0, given -1",
        ),
        (
            {"name": "a", "inner": [{"count": 1.5}]},
            "inner[0].count must be a valid integer, given 1.5",
        ),
        (
            {"name": "a", "inner": [{"count": True}]},
            "inner[0].count must be a valid integer, given true",
        ),
        ({"name": "", "inner": []}, 'name must have at least 1 character, given ""'),
        ({"name": "a", "inner": [7]}, "inner[0] must be an object, given 7"),
        (
            {"name": "a", "inner": [], "share": "0.5"},
            'share must be a valid number, given "0.5"',
        ),
        (
            {"name": ["x" * 100], "inner": []},
            f'name must be a valid string, given ["{"x" * 58} ...',
        ),
    ],
)
def test_a_field_that_is_not_right_is_named(record: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as refusal:
        checked(_Whole, record, Path("a/b.json"), "plan")
    assert str(refusal.value) == (
        f"plan: a/b.json is damaged: {sentence}. Use an intact copy, or make it again."
    )


def test_a_part_of_a_record_may_stand_beside_others() -> None:
    assert checked(_Part, {"name": "a", "other": 1}, Path("a"), "plan").name == "a"
    assert checked(_Whole, {"name": "a", "inner": []}, Path("a"), "plan").share is None
