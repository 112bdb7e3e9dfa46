"""Models are found by what the user names, before anything of them is loaded."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import pytest

from pgprune_lightning.errors import UserError
from pgprune_lightning.model_table import row as row_module
from pgprune_lightning.model_table.row import find_rows, gguf_architecture
from tests.tiny_commands import TinyCommand


def _gguf(path: Path, architecture: str, key: str = "general.architecture") -> Path:
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1)
    pair = struct.pack("<Q", len(key)) + key.encode() + struct.pack("<IQ", 8, len(architecture))
    path.write_bytes(head + pair + architecture.encode())
    return path


def test_dense_models_plans_runs_and_exports(
    tiny_command: TinyCommand, tiny_model_folder: Path, tmp_path: Path
) -> None:
    assert tiny_command("fit").status == 0
    exported = tmp_path / "exported"
    shutil.copytree(tiny_model_folder, exported)
    (exported / "export.json").write_text("{}")
    run, plan = tiny_command.run_dir, tiny_command.run_dir / "plans" / "initial"
    rows = find_rows([str(tiny_model_folder), f"a run={run}", str(plan), str(exported)], None)
    assert [row.kind for row in rows] == ["dense", "plan", "plan", "exported"]
    assert [row.name for row in rows] == [tiny_model_folder.name, "a run", "initial", "exported"]
    assert rows[1].plan_folder == run / "plans" / "best"
    assert rows[1].source.location == str(tiny_model_folder)
    weights = (tiny_model_folder / "model.safetensors").stat().st_size
    assert [row.disk_bytes for row in rows] == [weights, None, None, weights]
    moved = find_rows([str(run)], str(exported))
    assert moved[0].source.location == str(exported)


def test_the_hub_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_module, "find_spec", lambda _name: object())
    llama = _gguf(tmp_path / "llama.gguf", "llama")
    folder = tmp_path / "export"
    folder.mkdir()
    deci = _gguf(folder / "model.gguf", "deci")
    (folder / "export.json").write_text(json.dumps({"format": "gguf"}))
    rows = find_rows(
        ["org/Model-7B@v1", str(llama), f"fast=llama.cpp:{llama}", f"cut={deci}", str(folder)],
        None,
    )
    kinds = ["dense", "dense", "llama.cpp", "llama.cpp", "llama.cpp"]
    assert [row.kind for row in rows] == kinds
    assert [row.name for row in rows] == ["Model-7B@v1", "llama", "fast", "cut", "export"]
    assert rows[0].disk_bytes is None
    assert rows[4].file == deci
    assert rows[4].disk_bytes == deci.stat().st_size


def test_a_path_with_an_equals_sign_is_a_path(tiny_model_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "step=3"
    shutil.copytree(tiny_model_folder, folder)
    assert find_rows([str(folder)], None)[0].name == "step=3"
    assert find_rows([f"last={folder}"], None)[0].name == "last"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["{folder}"], "holds no model .config.json, or one .gguf file., no plan"),
        (["{folder}/none"], "there is no folder or file"),
        (["{folder}/none.gguf"], "there is no GGUF file"),
        (["{model}", "{model}"], "two models are called .* NAME=MODEL"),
        (["x={model}", "x=org/y"], "two models are called 'x'"),
        (["llama.cpp:{model}"], "no .gguf file"),
        (["cut={deci}"], "--model cut=.*llama-cpp-python is not installed; pip install"),
        (["package:none/x.gguf"], "not installed"),
    ],
)
def test_what_is_not_there_is_named(
    given: list[str],
    message: str,
    tiny_model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(row_module, "find_spec", lambda _name: None)
    folder = tmp_path / "empty"
    folder.mkdir()
    places = {"folder": folder, "model": tiny_model_folder}
    places["deci"] = _gguf(tmp_path / "cut.gguf", "deci")
    with pytest.raises(UserError, match=message):
        find_rows([text.format(**places) for text in given], None)


def test_a_damaged_plan_is_named(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(UserError, match=r"--model x=.*plan.json cannot be read"):
        find_rows([f"x={tmp_path}"], None)


def test_the_architecture_of_a_gguf_file(tmp_path: Path, smollm2_gguf: Path) -> None:
    assert gguf_architecture(smollm2_gguf) == "llama"
    assert gguf_architecture(_gguf(tmp_path / "a.gguf", "deci")) == "deci"
    assert gguf_architecture(_gguf(tmp_path / "b.gguf", "deci", key="general.name")) is None
    for content in (b"", b"GGUF", b"PK" * 40, b"GGUF" + b"\xff" * 40):
        (tmp_path / "c.gguf").write_bytes(content)
        assert gguf_architecture(tmp_path / "c.gguf") is None
