"""Imports point one way, and what is optional stays out of the way of `fit`."""

import subprocess
import sys
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).resolve().parents[1]

# Fails where one of our own modules imports an optional library while it is being imported. Other
# libraries may: torchmetrics takes matplotlib where it is installed.
_IMPORT_CLI_GUARDED = """
import builtins

optional = {"lm_eval", "matplotlib", "peft", "plotly"}
original = builtins.__import__

def guarded(name, globals=None, locals=None, fromlist=(), level=0):
    importer = (globals or {}).get("__name__") or ""
    ours = importer.partition(".")[0] in {"callbacks", "pgprune_lightning"}
    if ours and level == 0 and name.partition(".")[0] in optional:
        raise AssertionError(f"{importer} imports {name} at the top of the file")
    return original(name, globals, locals, fromlist, level)

builtins.__import__ = guarded
import pgprune_lightning.__main__
import pgprune_lightning.run
from pgprune_lightning.cli import OWN_COMMANDS, RESEARCH_COMMANDS, command_module

for command in (*OWN_COMMANDS, *RESEARCH_COMMANDS):
    command_module(command)
"""

_IMPORT_POLICY = """
import sys
import pgprune_lightning.policy

heavy = {"datasets", "jsonargparse", "lightning", "transformers"} & set(sys.modules)
assert not heavy, f"importing pgprune_lightning.policy loaded {sorted(heavy)}"
"""


def _run_python(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_contracts_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    exit_status = lint_imports(config_filename="pyproject.toml", no_cache=True, no_logo=True)
    assert exit_status == 0, "an import rule of pyproject.toml is broken: see the output above"


def test_every_room_has_its_place_in_the_layers() -> None:
    layers = (ROOT / "pyproject.toml").read_text().partition('type = "layers"')[2].partition("]")[0]
    rooms = {
        path.stem
        for path in (ROOT / "pgprune_lightning").iterdir()
        if path.suffix == ".py" or (path.is_dir() and any(path.glob("*.py")))
    } - {"__init__", "__main__"}
    missing = {room for room in rooms if f"pgprune_lightning.{room}" not in layers}
    assert not missing, f"add {sorted(missing)} to the layers in pyproject.toml"


def test_command_line_starts_without_optional_libraries() -> None:
    run = _run_python(_IMPORT_CLI_GUARDED)
    assert run.returncode == 0, run.stderr


def test_policy_loads_torch_alone() -> None:
    run = _run_python(_IMPORT_POLICY)
    assert run.returncode == 0, run.stderr


_PUBLIC_NAMES = """
import sys
import pgprune_lightning

heavy = {"jsonargparse", "lightning", "torch", "transformers"} & set(sys.modules)
assert not heavy, f"importing pgprune_lightning loaded {sorted(heavy)}"
for name in pgprune_lightning.__all__:
    getattr(pgprune_lightning, name)
from pgprune_lightning import *
from pgprune_lightning.run import build_run as same
assert build_run is same
"""


def test_public_names_are_imported_late() -> None:
    run = _run_python(_PUBLIC_NAMES)
    assert run.returncode == 0, run.stderr
