"""The cache key of a trial: everything that decides its numbers.

A finished trial is reused only if its key is the same. Local files count by their contents.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from pgprune_lightning.comparison.experiment import (
    LEARNING_KINDS,
    Experiment,
    FinetuneOptions,
    MethodKind,
)
from pgprune_lightning.data.text_source import SourceUnavailable, TextSource
from pgprune_lightning.errors import about
from pgprune_lightning.evaluation.table import leaves
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
    """Hash the files that the options of a trial name, other than its model's.

    Args:
        options: Those options of `fit` that decide the trial's numbers, nested.
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
    """Hash a file, once for all trials that read it; by content, because copies get new times."""
    del mtime_ns, size
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


NO_NUMBER_CHANGES = {
    *("config", "run_dir", "existing_run", "resume", "ckpt_path", "seed_everything", "wandb"),
    *("perplexity_validation", "mask_checkpoint", "baseline_tracker", "sparsity_tracker"),
    *("training_progress", "checkpoint", "outcome_report"),
    *("data.num_workers", "data.cache_dir"),
    *("trainer.logger", "trainer.log_every_n_steps", "trainer.enable_progress_bar"),
    *("trainer.enable_model_summary", "trainer.default_root_dir", "trainer.callbacks"),
    "trainer.profiler",
}
"""Options of `fit` that change no number of a trial."""

OF_TRAINING = {
    *("model.update", "model.objective", "model.estimator", "model.budget.progressive"),
    "data.validation",
}
"""Those that an untrained mask does not see."""

OF_TEXT = {"data.train", "data.seed", "data.block_length", "data.batch_size"}
"""Those that the dense model does not see besides."""

CacheKey = dict[str, Any]
"""Primitives, nested; equal keys have equal numbers."""


def cache_key_of(
    experiment: Experiment,
    kind: MethodKind,
    config: dict[str, Any],
    seed: int,
    finetune: FinetuneOptions | None = None,
) -> CacheKey:
    """Everything that decides a trial's numbers.

    Args:
        experiment: Says what is measured.
        kind: What the method is.
        config: Resolved options of `fit`, primitives, nested.
        seed: Seed of the trial.
        finetune: How the pruned model is tuned; None: it is not.
    """
    options = _deciding_options(kind, config)
    contents = content_digests(options, experiment, finetune)
    return {
        "kind": kind,
        "seed": None if kind == "dense" else seed,
        "base_model": model_digest(resolve_model_source(config["model"]["base_model"])),
        "fit": options,
        "evaluation_lengths": list(experiment.evaluation_lengths),
        "evaluation_tokens": experiment.evaluation_tokens,
        "zero_shot": list(experiment.zero_shot),
        **_extras(experiment, finetune),
        **({"contents": contents} if contents else {}),
    }


def _extras(experiment: Experiment, finetune: FinetuneOptions | None) -> dict[str, Any]:
    """Only what is asked for: trials of experiments without are found again as they were."""
    extra: dict[str, Any] = {}
    if experiment.zero_shot:
        is_local = experiment.local_zero_shot_folder is not None
        extra["zero_shot_folder"] = experiment.zero_shot_folder if is_local else None
        extra["zero_shot_limit"] = experiment.zero_shot_limit
    if experiment.latency is not None:
        extra["latency"] = asdict(experiment.latency)
    if finetune is not None:
        lora = asdict(finetune.lora)
        if finetune.lora.target_modules is not None:
            lora["target_modules"] = list(finetune.lora.target_modules)  # as JSON gives it back
        extra["finetune"] = {"records": finetune.records, **lora}
    return extra


def digest_of(cache_key: CacheKey) -> str:
    """A hash of a cache key: 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(cache_key, sort_keys=True).encode()).hexdigest()


def first_difference(old: CacheKey, new: CacheKey) -> str:
    """The first entry that differs, as `name: OLD, now NEW`; empty if there is none."""
    before, after = dict(leaves(old)), dict(leaves(new))
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            name_of_option = name.removeprefix("fit.")
            return f"{name_of_option}: {before.get(name)!r}, now {after.get(name)!r}"
    return ""


def _deciding_options(kind: MethodKind, config: dict[str, Any]) -> dict[str, Any]:
    options = _without(config, NO_NUMBER_CHANGES)
    # The masks are compared on the first text alone.
    options["data"]["test"] = options["data"]["test"][:1]
    if kind in LEARNING_KINDS:
        return options
    options = _without(options, OF_TRAINING)
    options["trainer"] = {"accelerator": config["trainer"]["accelerator"]}
    if kind == "dense":
        model, execution = config["model"], config["model"]["execution"]
        read_as = {name: execution[name] for name in ("dtype", "attention")}
        options["model"] = {"base_model": model["base_model"], "execution": read_as}
        options = _without(options, OF_TEXT)
    return options


def _without(options: dict[str, Any], names: set[str], prefix: str = "") -> dict[str, Any]:
    """Leave out options, given by their dotted names."""
    return {
        name: _without(value, names, f"{prefix}{name}.") if isinstance(value, dict) else value
        for name, value in options.items()
        if f"{prefix}{name}" not in names
    }
