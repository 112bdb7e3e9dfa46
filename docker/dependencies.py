"""Prints what has to be installed before the project itself, a requirement a line.

Read by an image's build in a step of its own, so that a change of the source leaves that step's
layer as it was.
"""

import tomllib
from pathlib import Path

EXTRAS = ("finetune", "zero-shot")


def requirements(pyproject: Path) -> list[str]:
    """What builds the project, what it runs on, and users' extras: not the developers' tools."""
    content = tomllib.loads(pyproject.read_text())
    project = content["project"]
    extras = [line for extra in EXTRAS for line in project["optional-dependencies"][extra]]
    return [*content["build-system"]["requires"], *project["dependencies"], *extras]


if __name__ == "__main__":
    print("\n".join(requirements(Path("pyproject.toml"))))
