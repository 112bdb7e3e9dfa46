"""What decides the numbers of a cell, so that a finished one is found again and never mistaken."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any

from pgprune_lightning.comparison.experiment import (
    LEARNING_KINDS,
    Experiment,
    FinetuneOptions,
    MethodKind,
    leaves,
)
from pgprune_lightning.comparison.local_files import content_digests, model_digest
from pgprune_lightning.masking.model_source import resolve_model_source

NO_NUMBER_CHANGES = {
    *("config", "run_dir", "existing_run", "resume", "ckpt_path", "seed_everything", "wandb"),
    *("perplexity_validation", "mask_checkpoint", "baseline_tracker", "sparsity_tracker"),
    *("training_progress", "checkpoint", "outcome_report"),
    *("data.num_workers", "data.cache_dir"),
    *("trainer.logger", "trainer.log_every_n_steps", "trainer.enable_progress_bar"),
    *("trainer.enable_model_summary", "trainer.default_root_dir", "trainer.callbacks"),
    "trainer.profiler",
}
"""Options of `fit` that change no number of a cell."""

OF_TRAINING = {
    *("model.update", "model.objective", "model.estimator", "model.budget.progressive"),
    "data.validation",
}
"""Those that an untrained mask does not see."""

OF_TEXT = {"data.train", "data.seed", "data.block_length", "data.batch_size"}
"""Those that the dense model does not see besides."""

Identity = dict[str, Any]
"""Primitives, nested; equal identities have equal numbers."""


def cell_identity(
    experiment: Experiment,
    kind: MethodKind,
    config: dict[str, Any],
    seed: int,
    finetune: FinetuneOptions | None = None,
) -> Identity:
    """Everything that decides a cell's numbers.

    Args:
        experiment: Says what is measured.
        kind: What the method is.
        config: Resolved options of `fit`, primitives, nested.
        seed: Seed of the cell.
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
    """Only what is asked for: cells of experiments without are found again as they were."""
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


def digest_of(identity: Identity) -> str:
    """A hash of an identity: 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def first_difference(old: Identity, new: Identity) -> str:
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
