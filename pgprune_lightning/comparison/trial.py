"""One trial: a method in a setting with a seed, its options and its folder.

`options.json` is written when a trial begins and holds its cache key; `trial.json` is written last
and holds its numbers. A folder with only the first is continued.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import callbacks
from pgprune_lightning.atomic_directory import atomic_directory, claimed_directory
from pgprune_lightning.atomic_write import remove_temp_files, write_atomically
from pgprune_lightning.checkout import research_module
from pgprune_lightning.comparison.cache_key import (
    CacheKey,
    cache_key_of,
    digest_of,
    first_difference,
)
from pgprune_lightning.comparison.experiment import (
    LEARNING_KINDS,
    Experiment,
    FinetuneOptions,
    MethodKind,
)
from pgprune_lightning.comparison.experiment_file import folder_name
from pgprune_lightning.errors import UserError
from pgprune_lightning.initialization.initial_policy import METRICS
from pgprune_lightning.masking.frozen_model import load_model_config
from pgprune_lightning.masking.model_source import resolve_model_source
from pgprune_lightning.masking.positions import check_lengths
from pgprune_lightning.record_file import (
    Count,
    PartOfRecord,
    PositiveCount,
    Record,
    checked,
    read_object,
)
from pgprune_lightning.run import build_run
from pgprune_lightning.run_options import Command, plain, resolve_config
from pgprune_lightning.training import PolicyGradientPruning
from pgprune_lightning.training.run_folder import free_name


@dataclass(frozen=True)
class Trial:
    """One method in one setting with one seed.

    Args:
        setting: Its column.
        method: Its row.
        kind: What the method is.
        seed: Its seed.
        arguments: Its configuration, as the command line takes it.
        cache_key: Everything that decides its numbers.
        folder: Where its results lie.
        finetune: How the pruned model is tuned before it is measured; None: it is not.
    """

    setting: str
    method: str
    kind: MethodKind
    seed: int
    arguments: tuple[str, ...]
    cache_key: CacheKey
    folder: Path
    finetune: FinetuneOptions | None = None

    @property
    def title(self) -> str:
        """How messages call it."""
        return f"{self.setting} / {self.method} / seed {self.seed}"


def module_class(kind: MethodKind) -> type[PolicyGradientPruning]:
    """What `fit` runs for a method, and whose options it takes."""
    if kind != "backpropagated":
        return PolicyGradientPruning
    pruning: type[PolicyGradientPruning] = research_module("backpropagation").BackpropagatedPruning
    return pruning


def trials_of(experiment: Experiment, output: Path) -> list[Trial]:
    """All trials, setting by setting, then method by method.

    Args:
        experiment: What is compared.
        output: Where results go.

    Raises:
        UserError: If a trial cannot be run; it names the setting and the method.
    """
    trials = []
    for setting, method in experiment.pairs():
        try:
            trials += _trials(experiment, setting, method, output)
        except UserError as error:
            wrong = str(error).removeprefix("config: ")
            raise UserError(f"settings.{setting}, methods.{method}: {wrong}") from error
    return trials


def _trials(experiment: Experiment, setting: str, method: str, output: Path) -> list[Trial]:
    kind = experiment.methods[method].kind
    arguments = trial_arguments(experiment, setting, method)
    config = _checked_config(kind, arguments)
    finetune = experiment.finetune_of(method)
    source = resolve_model_source(config["model"]["base_model"])
    check_lengths(load_model_config(source), _lengths(experiment, finetune))
    folder = output / "trials" / folder_name(setting) / folder_name(method)
    seeds = experiment.seeds if _is_random(kind, config) else experiment.seeds[:1]
    return [
        Trial(
            setting=setting,
            method=method,
            kind=kind,
            seed=seed,
            arguments=tuple(arguments),
            cache_key=cache_key_of(experiment, kind, _seeded(config, seed), seed, finetune),
            folder=folder / f"seed{seed}",
            finetune=finetune,
        )
        for seed in seeds
    ]


def _lengths(experiment: Experiment, finetune: FinetuneOptions | None) -> dict[str, int]:
    """Tokens that a model reads at once to be measured and tuned, by option."""
    lengths = {"evaluation_lengths": max(experiment.evaluation_lengths)}
    if experiment.latency is not None:
        lengths["latency.sequence_length"] = experiment.latency.sequence_length
    if finetune is not None:
        lengths["finetune.max_length"] = finetune.lora.max_length
    return lengths


def _checked_config(kind: MethodKind, arguments: list[str]) -> dict[str, Any]:
    """The resolved options of a trial, with which everything before the model can be built."""
    command: Command = "fit" if kind in LEARNING_KINDS else "validate"
    options = resolve_config(arguments, command, module_class(kind))
    check_config(options)
    module, _, trainer = build_run(options, command, module_class(kind))
    if command == "fit":  # what is else found only when the run begins
        module.budgets.check_length(trainer.max_steps)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, callbacks.MaskCheckpoint):
                callback.setup(trainer, module, command)
    config: dict[str, Any] = plain(options.as_dict())
    return config


def _is_random(kind: MethodKind, config: dict[str, Any]) -> bool:
    start = config["model"]["initialization"]
    draws = METRICS[start["metric"]].draws and start["plan"] is None and start["scores"] is None
    return kind in LEARNING_KINDS or (kind == "metric" and draws)


def _seeded(config: dict[str, Any], seed: int) -> dict[str, Any]:
    """The options with a seed where `seed_everything` puts it."""
    groups = {name: config[name] | {"seed": seed} for name in ("model", "data")}
    return config | groups


OWN_OPTIONS = ("config", "run_dir", "existing_run", "resume", "ckpt_path", "seed_everything")
"""Options of `fit` that a comparison sets itself."""


def trial_arguments(experiment: Experiment, setting: str, method: str) -> list[str]:
    """What a trial gives to `fit`, `validate` or `test`: the recipe, and its options over that.

    Each layer of options is a configuration of its own, so that they are joined in the way in
    which the command line joins configurations.

    Raises:
        UserError: If an option is one that the comparison sets itself.
    """
    layers = experiment.layers(setting, method)
    for name in OWN_OPTIONS:
        if any(name in layer for layer in layers):
            raise UserError(
                f"{name}: the comparison chooses it; seeds and --output are its options."
            )
    recipe = (*experiment.recipe, *experiment.methods[method].recipe)
    configs = [*map(str, recipe), *map(json.dumps, layers)]
    return [argument for config in configs for argument in ("--config", config)]


def check_config(config: Any) -> None:
    """Refuse what `fit` takes and a comparison does not.

    Args:
        config: Parsed options of a trial.

    Raises:
        UserError: If there is such an option.
    """
    if not config.data.test:
        raise UserError("data.test: the masks are compared on the first text of it; name one.")
    if config.trainer.devices not in (1, "1") or config.trainer.num_nodes != 1:
        raise UserError(
            f"trainer.devices: a comparison runs on one device, given {config.trainer.devices}. "
            "Prune on several by `fit`, then compare plans by model.initialization.plan."
        )


ExistingTrials = Literal["reuse", "stop"]

OPTIONS_FILE = "options.json"
RESULT_FILE = "trial.json"

TrialResult = dict[str, Any]
"""What `trial.json` holds."""


def check_folders(trials: Sequence[Trial], existing: ExistingTrials) -> None:
    """Refuse trials of other options, before anything is computed.

    Args:
        trials: The trials that are wanted.
        existing: `stop`: refuse; `reuse`: they will be moved aside and computed anew.

    Raises:
        UserError: If there is one and it is to stop; it names the first difference.
    """
    for trial in trials if existing == "stop" else ():
        old = _read(trial.folder / OPTIONS_FILE)
        if old is not None and not _is_of(trial, old):
            difference = first_difference(old["cache_key"], trial.cache_key)
            raise UserError(
                f"{trial.folder} was computed with other options ({difference}). Choose another "
                "--output, or pass --existing reuse, which moves such trials aside."
            )


def finished_result(trial: Trial) -> TrialResult | None:
    """The numbers of a finished trial with the same options; None if there are none."""
    same = _is_of(trial, _read(trial.folder / OPTIONS_FILE))
    return _read(trial.folder / RESULT_FILE) if same else None


def begin(trial: Trial) -> None:
    """Make the folder of a trial that is to be computed; another's is moved aside.

    Raises:
        UserError: If it cannot be written.
    """
    remove_temp_files(trial.folder)
    is_empty = not any(trial.folder.glob("*"))  # as a process leaves it that is killed at once
    if not is_empty and not _is_of(trial, _read(trial.folder / OPTIONS_FILE)):
        trial.folder.rename(free_name(trial.folder))
    description = {"digest": digest_of(trial.cache_key), "cache_key": trial.cache_key}
    write_atomically(trial.folder / OPTIONS_FILE, json.dumps(description, indent=1).encode())


def finish(trial: Trial, result: TrialResult) -> None:
    """Write a trial's numbers, by which it counts as finished.

    Raises:
        UserError: If they cannot be written.
    """
    _write_result(trial.folder, result)


def copy_finished(source: Trial, trial: Trial) -> TrialResult:
    """Take over the folder of a finished trial with the same options, under this trial's name."""
    if trial.folder.exists():
        trial.folder.rename(free_name(trial.folder))
    result = _read(source.folder / RESULT_FILE)
    assert result is not None, source.folder
    renamed = result | {"setting": trial.setting, "method": trial.method}
    claimed = claimed_directory(trial.folder, "--output")
    with claimed, atomic_directory(trial.folder) as folder:
        shutil.copytree(source.folder, folder, dirs_exist_ok=True)
        _write_result(folder, renamed)
    return renamed


def _write_result(folder: Path, result: TrialResult) -> None:
    text = json.dumps(result, indent=1, allow_nan=False)
    write_atomically(folder / RESULT_FILE, text.encode())


def _is_of(trial: Trial, description: dict[str, Any] | None) -> bool:
    """Whether a folder's `options.json` is that of a trial."""
    return description is not None and description["digest"] == digest_of(trial.cache_key)


class _Options(Record):
    digest: str
    cache_key: dict[str, Any]


class _Provenance(PartOfRecord):
    commit: str | None
    device: str


class _Result(PartOfRecord):
    """What tables and pictures take for granted; other numbers may be there."""

    setting: str
    method: str
    kind: MethodKind
    seed: Count
    parameters: PositiveCount
    parameters_share: float
    seconds: float
    peak_memory_bytes: Count | None
    text: str
    base_model: str
    max_positions: Count | None
    provenance: _Provenance


def _read(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        of_options = path.name == OPTIONS_FILE
        data = read_object(path, "compare", finite=not of_options)  # an option may be infinite
        checked(_Options if of_options else _Result, data, path, "compare")
    except UserError as error:
        raise UserError(f"{error} To compute the trial anew, delete {path.parent}.") from error
    return data
