"""What lies in the local files that a cell reads: a changed file makes another cell."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pgprune_lightning.comparison.experiment import Experiment, FinetuneOptions
from pgprune_lightning.data.text_source import SourceUnavailable, TextSource
from pgprune_lightning.errors import about
from pgprune_lightning.masking.model_source import ModelSource, resolve_model_source
from pgprune_lightning.plan import PLAN_FILE, find_plan

_BYTES_AT_EACH_END = 2**16


def model_digest(source: ModelSource) -> str:
    """Identify a model without reading all of it: sizes, and both ends of each of its files."""
    if not source.is_local:
        return f"{source.location}@{source.revision}"
    folder = Path(source.location)
    names = [source.gguf_file] if source.gguf_file else sorted(p.name for p in folder.iterdir())
    digest = hashlib.sha256()
    for name in names:
        path = folder / name
        if not path.is_file():
            continue
        with path.open("rb") as file:
            size = path.stat().st_size
            digest.update(f"{name} {size}".encode())
            digest.update(file.read(_BYTES_AT_EACH_END))
            file.seek(max(0, size - _BYTES_AT_EACH_END))
            digest.update(file.read())
    return digest.hexdigest()


def content_digests(
    options: Mapping[str, Any], experiment: Experiment, finetune: FinetuneOptions | None
) -> dict[str, str]:
    """Hash the files that the options of a cell name, other than its model's.

    Args:
        options: Those options of `fit` that decide the cell's numbers, nested.
        experiment: Names the folder of zero-shot tasks.
        finetune: Names the records that the pruned model is tuned on; None: it is not.

    Returns:
        16 hexadecimal digits for each name of an option, such as `data.train`; what comes from the
        hub, or is not there, has none.
    """
    files = {
        **{f"data.{name}": _text_files(text) for name, text in _texts(options["data"])},
        **_start_files(options["model"].get("initialization", {})),
        "zero_shot": _task_files(experiment),
    }
    if finetune is not None:
        with about("finetune.records"):
            files["finetune.records"] = _text_files({"path": finetune.records})
    found = {name: [path for path in paths if path.is_file()] for name, paths in files.items()}
    digests = {name: _digest(paths) for name, paths in found.items() if paths}
    tokenizer = options["data"].get("tokenizer")
    if tokenizer not in (None, options["model"]["base_model"]):
        digests["data.tokenizer"] = model_digest(resolve_model_source(tokenizer))[:16]
    return digests


def _texts(data: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    texts = [(name, data[name]) for name in ("train", "validation") if name in data]
    return texts + [("test", text) for text in data["test"]]


def _text_files(text: Mapping[str, Any]) -> tuple[Path, ...]:
    try:
        return TextSource(**text).local_files() or ()
    except SourceUnavailable:
        return ()


def _start_files(start: Mapping[str, Any]) -> dict[str, tuple[Path, ...]]:
    files: dict[str, tuple[Path, ...]] = {}
    if start.get("scores"):
        files["model.initialization.scores"] = (Path(start["scores"]),)
    if start.get("plan"):
        # It names the checksum of its tensors.
        files["model.initialization.plan"] = (find_plan(Path(start["plan"])) / PLAN_FILE,)
    return files


def _task_files(experiment: Experiment) -> tuple[Path, ...]:
    folder = experiment.local_zero_shot_folder
    tasks = experiment.zero_shot if folder is not None else ()
    return tuple(Path(folder or "", f"{task}.jsonl") for task in tasks)


def _digest(paths: Iterable[Path]) -> str:
    whole = hashlib.sha256()
    for path in paths:
        state = path.stat()
        whole.update(f"{path.name} ".encode())
        whole.update(_file_digest(path, state.st_mtime_ns, state.st_size))
    return whole.hexdigest()[:16]


@cache
def _file_digest(path: Path, mtime_ns: int, size: int) -> bytes:
    """Hash a file, once for all cells that read it; by content, because copies get new times."""
    del mtime_ns, size
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
