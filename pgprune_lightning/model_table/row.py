"""A row of the table: a model as the user names it, found before anything is loaded."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO, Literal

from pgprune_lightning.errors import UserError
from pgprune_lightning.export.export_record import EXPORT_FILE, weight_bytes
from pgprune_lightning.export.planned_model import check_units
from pgprune_lightning.masking.frozen_model import load_model_config
from pgprune_lightning.masking.model_source import ModelSource, resolve_model_source
from pgprune_lightning.model_table.naming import split_name
from pgprune_lightning.plan import PLAN_FILE, PruningPlan, find_plan

RowKind = Literal["dense", "plan", "exported", "llama.cpp"]
LLAMA_CPP = "llama.cpp:"
"""Before a GGUF file that llama.cpp runs in place of transformers."""
_ARCHITECTURE_KEY = b"general.architecture"
_STRING = 8  # type of a value in a GGUF file


@dataclass(frozen=True)
class Row:
    """A model that is measured.

    Args:
        name: Its name in the table.
        given: What the user wrote, without the name.
        kind: What it is: `dense` stands for every model as it lies on the hub or in a folder.
        source: What is loaded; of a plan, the dense model that is cut.
        plan: The plan; None for others.
        plan_folder: Where it lies.
    """

    name: str
    given: str
    kind: RowKind
    source: ModelSource
    plan: PruningPlan | None = None
    plan_folder: Path | None = None

    @property
    def file(self) -> Path:
        """The GGUF file."""
        assert self.source.gguf_file is not None
        return Path(self.source.location) / self.source.gguf_file

    @property
    def disk_bytes(self) -> int | None:
        """What the weights take on the disk; None where no file here holds them as they are."""
        folder = Path(self.source.location)
        if self.plan is not None or not self.source.is_local:
            return None
        if self.source.gguf_file is not None:
            return self.file.stat().st_size
        return weight_bytes(folder) or None


def find_rows(given: Sequence[str], base_model: str | None) -> list[Row]:
    """Find the models that a user names.

    Args:
        given: Each a model, or NAME=MODEL: a hub id, a folder, a `.gguf` file, `package:DIST/FILE`,
            a run or plan.
        base_model: Where the dense model of the plans lies now; None: where it lay.

    Raises:
        UserError: If one is not there or damaged, or two have one name.
    """
    rows = []
    for text in given:
        name, location = split_name(text)
        try:
            rows.append(_row(name or _short_name(location), location, base_model))
        except UserError as error:
            raise UserError(f"--model {text}: {error}") from error
    names = [row.name for row in rows]
    for name in names:
        if names.count(name) > 1:
            raise UserError(
                f"--model: two models are called {name!r}; give each a name: NAME=MODEL."
            )
    return rows


def _short_name(location: str) -> str:
    return re.split(r"[/:]", location.rstrip("/"))[-1].removesuffix(".gguf") or location


def _row(name: str, given: str, base_model: str | None) -> Row:
    location = given.removeprefix(LLAMA_CPP)
    folder = Path(os.path.expandvars(location)).expanduser()
    if folder.is_dir() and not (folder / "config.json").is_file():
        files = sorted(folder.glob("*.gguf"))
        if len(files) != 1:
            return _plan_row(name, given, folder, base_model)
        location = str(files[0])
    source = resolve_model_source(location)
    if source.gguf_file is not None and (
        given.startswith(LLAMA_CPP) or gguf_architecture(_file(source)) == "deci"
    ):
        _check_llama_cpp(given)
        return Row(name, given, "llama.cpp", source)
    if given.startswith(LLAMA_CPP):
        raise UserError(f"{given!r} is no .gguf file, and llama.cpp runs no other.")
    is_export = (Path(source.location) / EXPORT_FILE).is_file() and source.gguf_file is None
    return Row(name, given, "exported" if is_export else "dense", source)


def _plan_row(name: str, given: str, folder: Path, base_model: str | None) -> Row:
    try:
        plan_folder = find_plan(folder)
    except UserError:
        raise UserError(
            f"the folder {given!r} holds no model (config.json, or one .gguf file), no plan "
            f"({PLAN_FILE}) and no run with a plan (plans/best/{PLAN_FILE})."
        ) from None
    plan = PruningPlan.load(plan_folder)
    dense = base_model or plan.base_model.source
    source = resolve_model_source(dense)
    check_units(plan, load_model_config(source), dense)
    return Row(name, given, "plan", source, plan, plan_folder)


def _check_llama_cpp(given: str) -> None:
    if find_spec("llama_cpp") is None:
        raise UserError(
            f"{given!r} is run by llama.cpp, and llama-cpp-python is not installed; "
            "pip install llama-cpp-python"
        )


def _file(source: ModelSource) -> Path:
    return Path(source.location) / str(source.gguf_file)


def gguf_architecture(file: Path) -> str | None:
    """What kind of model a GGUF file holds, such as `llama`, from its first bytes.

    Returns:
        The architecture; None where it is not the first thing that the file says.
    """
    with file.open("rb") as stream:
        head = stream.read(4 + 4 + 8 + 8)
        if len(head) < 24 or head[:4] != b"GGUF" or _text(stream) != _ARCHITECTURE_KEY:
            return None
        if stream.read(4) != struct.pack("<I", _STRING):
            return None
        return _text(stream).decode(errors="replace")


def _text(stream: BinaryIO) -> bytes:
    length = stream.read(8)
    # Of a damaged file it may be any number.
    return stream.read(min(struct.unpack("<Q", length)[0], 64)) if len(length) == 8 else b""
