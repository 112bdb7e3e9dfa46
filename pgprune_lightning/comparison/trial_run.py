"""Runs one trial: makes the mask or the model, and has it measured."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, Trainer
from transformers import PreTrainedModel

import callbacks
from pgprune_lightning.checkout import research_module
from pgprune_lightning.comparison.experiment import Experiment, FinetuneOptions
from pgprune_lightning.comparison.measurement import check_text, measure, time_passes, tune
from pgprune_lightning.comparison.trial import Trial, TrialResult, module_class
from pgprune_lightning.data.data_module import TokenBlocksDataModule
from pgprune_lightning.evaluation import (
    provenance,
)
from pgprune_lightning.evaluation.pass_counter import PassCounter
from pgprune_lightning.evaluation.resources import ResourceMeter
from pgprune_lightning.masking.frozen_model import resolve_dtype
from pgprune_lightning.masking.model_reuse import open_frozen_model
from pgprune_lightning.masking.positions import max_positions
from pgprune_lightning.plan import PruningPlan
from pgprune_lightning.run import Run, execute_run, remove_callbacks
from pgprune_lightning.run_options import Command
from pgprune_lightning.slicing import cut_model
from pgprune_lightning.training import PolicyGradientPruning
from pgprune_lightning.training.checkpoints import CHECKPOINTS, took_steps

ANY_START = (
    "--model.initialization.metric=random",
    "--model.initialization.plan=null",
    "--model.initialization.scores=null",
)
"""Where the mask is not looked at: the start that takes nothing and suits every kind of unit."""


class MakingOfMask(Callback):
    """Measures what a mask takes: from the loaded model and the tokenised texts to the last step.

    A fit that goes on from a checkpoint counts what was before it, too.
    """

    def __init__(self) -> None:
        self.meter = ResourceMeter()
        self.counter = PassCounter()

    def state_dict(self) -> dict[str, Any]:
        """What has been taken so far."""
        seconds, peak = self.meter.lap()
        return {
            "seconds": seconds,
            "peak_memory_bytes": peak,
            "memory_before_bytes": self.meter.memory_before_bytes,
            "passes": self.counter.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.meter.seconds += state_dict["seconds"]
        self.meter.peak_memory_bytes = state_dict["peak_memory_bytes"]
        self.meter.memory_before_bytes = state_dict.get("memory_before_bytes")
        self.counter.load_state_dict(state_dict["passes"])

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Begin; the model is there, and the texts are tokenised."""
        del pl_module, stage
        self.meter.start(trainer.strategy.root_device)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """What follows is training."""
        del trainer, pl_module, batch, batch_idx
        self.counter.purpose = "training"

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        """What follows is validation."""
        del trainer, pl_module
        self.counter.purpose = "validation"

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """End, before other callbacks measure the outcome."""
        del trainer, pl_module
        self.stop()

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        """Leave the model, which other trials will use, as it was."""
        del trainer, pl_module, exception
        self.stop()

    def stop(self) -> None:
        """End, if that has not been done."""
        self.meter.stop()
        self.counter.detach()


class MeasuredRun(NamedTuple):
    """A run that has made a mask, and what that took.

    Args:
        module: Its module, with the model loaded.
        data: Its data module.
        trainer: Its Trainer.
        making: What the mask took.
    """

    module: PolicyGradientPruning
    data: TokenBlocksDataModule
    trainer: Trainer
    making: MakingOfMask

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return self.trainer.strategy.root_device


def measure_making(run: Run, *observers: Callback) -> MeasuredRun:
    """Put the measurement first among a run's callbacks, and load its model before that begins.

    The report is left out, whose numbers are not looked at.

    Args:
        run: The run, which has not begun.
        observers: Callbacks that take the place of all others.
    """
    making, trainer = MakingOfMask(), run.trainer
    remove_callbacks(trainer, Callback if observers else callbacks.OutcomeReport)
    trainer.callbacks[:0] = [making, *observers]  # type: ignore[attr-defined]
    device = trainer.strategy.root_device
    module = run.module
    model = open_frozen_model(  # the run will find it
        module.source,
        dtype=resolve_dtype(module.execution.dtype, device),
        device=device,
        attention=module.execution.attention,
    )
    making.counter.attach(model)
    # Its time and passes are a trial's result: the start is measured anew at each try.
    module.start_folder = None
    return MeasuredRun(*run, making)


CheckData = Callable[[TokenBlocksDataModule], None]
"""Refuses data with which a trial could not be measured, before anything is computed."""


def run_start(arguments: list[str], run_dir: Path, seed: int, check: CheckData) -> MeasuredRun:
    """Set everything up as `fit` would, take the first mask and no step.

    Args:
        arguments: The trial's configuration.
        run_dir: Where nothing is written.
        seed: Seed of the order of the text, and of a random start.
        check: Called first.
    """
    own = [f"--run_dir={run_dir}", f"--seed_everything={seed}", "--trainer.limit_val_batches=0"]
    return _execute([*arguments, *own], "validate", PolicyGradientPruning, check)


def run_fit(
    arguments: list[str],
    run_dir: Path,
    seed: int,
    module_class: type[PolicyGradientPruning],
    check: CheckData,
) -> MeasuredRun:
    """Run a whole `fit`, from its last checkpoint on where an earlier try has left one.

    A try that took no step is started again in its own folder; one whose checkpoints are gone is
    moved aside.

    Args:
        arguments: The trial's configuration.
        run_dir: Folder of the run.
        seed: Seed of the run.
        module_class: What learns.
        check: Called first.
    """
    own = [f"--run_dir={run_dir}", f"--seed_everything={seed}", "--existing_run=move_aside"]
    if any((run_dir / CHECKPOINTS).glob("*.ckpt")) or not took_steps(run_dir):
        own.append("--resume=auto")
    return _execute([*arguments, *own], "fit", module_class, check)


def _execute(
    arguments: list[str],
    command: Command,
    module_class: type[PolicyGradientPruning],
    check: CheckData,
) -> MeasuredRun:
    measured: list[MeasuredRun] = []

    def prepare(run: Run) -> None:
        check(run.data)
        measured.append(measure_making(run))

    execute_run(arguments, command, module_class, prepare)
    return measured[0]


PLAN_FOLDER = "plan"
RUN_FOLDER = "run"


@dataclass(frozen=True)
class _Pruned:
    """What a method has made.

    Args:
        made: The run that it was made by.
        meter: What that took.
        opened: Gives the pruned model, masked or cut, for the length of a `with` block.
        cut: Gives the model of the pruned model's size; where nothing is pruned, the dense one.
        parameters: How many the pruned model has.
        plan: The pruning plan, if the method makes a mask.
        details: More that the result is to say.
    """

    made: MeasuredRun
    meter: ResourceMeter
    opened: AbstractContextManager[PreTrainedModel]
    cut: Callable[[], PreTrainedModel]
    parameters: int
    plan: PruningPlan | None = None
    details: dict[str, Any] = field(default_factory=dict)


def compute_trial(trial: Trial, experiment: Experiment) -> TrialResult:
    """Make what a trial is about, measure it, and keep its plan.

    Args:
        trial: The trial.
        experiment: Says what is measured.

    Returns:
        Primitives: what `measure` gives; `parameters`, `parameters_share`, `seconds`,
        `peak_memory_bytes`, `memory_before_bytes`; `passes`, of 8 x 128 tokens, by what they were
        for, but for SliceGPT, which runs the model layer by layer; and what they belong to.

    Raises:
        UserError: If something has to be changed by the user.
    """
    pruned = _MAKERS[trial.kind](trial, partial(check_text, experiment=experiment))
    if pruned.plan is not None:
        pruned.plan.save(trial.folder / PLAN_FOLDER)
    made = pruned.made
    masked_model = made.module.masked_model
    measured = _measured(pruned, trial.finetune, experiment)
    dense_parameters = masked_model.space.total_parameters
    return {
        "setting": trial.setting,
        "method": trial.method,
        "kind": trial.kind,
        "seed": trial.seed,
        **measured,
        "parameters": pruned.parameters,
        "parameters_share": pruned.parameters / dense_parameters,
        "seconds": pruned.meter.seconds,
        "peak_memory_bytes": pruned.meter.peak_memory_bytes,
        "memory_before_bytes": pruned.meter.memory_before_bytes,
        "text": made.data.test[0].title,
        "base_model": masked_model.base_model.source,
        "max_positions": max_positions(masked_model.config),
        **pruned.details,
        "provenance": provenance(made.device),
    }


def _measured(
    pruned: _Pruned, finetune: FinetuneOptions | None, experiment: Experiment
) -> dict[str, Any]:
    data = pruned.made.data
    tuned: PreTrainedModel | None = None
    tuning: dict[str, Any] = {}
    if finetune is not None:
        dense = pruned.made.module.masked_model.model
        tuned, tuning = tune(pruned.cut(), dense, data.load_tokenizer(), finetune)
    with pruned.opened if tuned is None else nullcontext(tuned) as model:
        measured = measure(model, data, experiment)
    if experiment.latency is not None:
        measured |= time_passes(tuned or pruned.cut(), experiment.latency)
    return measured | tuning


def _dense(trial: Trial, check: CheckData) -> _Pruned:
    made = run_start([*trial.arguments, *ANY_START], trial.folder / RUN_FOLDER, trial.seed, check)
    made.making.stop()
    masked_model = made.module.masked_model
    meter = ResourceMeter()
    meter.start(made.device)
    meter.stop()
    return _Pruned(
        made,
        meter,
        opened=nullcontext(masked_model.model),
        cut=lambda: masked_model.model,
        parameters=masked_model.space.total_parameters,
        details={"passes": made.making.counter.passes},
    )


def _metric(trial: Trial, check: CheckData) -> _Pruned:
    made = run_start([*trial.arguments], trial.folder / RUN_FOLDER, trial.seed, check)
    plan = made.module.current_plan()
    made.making.stop()
    return _masked(made, plan, {})


def _learned(trial: Trial, check: CheckData) -> _Pruned:
    run_dir = trial.folder / RUN_FOLDER
    made = run_fit([*trial.arguments], run_dir, trial.seed, module_class(trial.kind), check)
    made.making.stop()
    plan = PruningPlan.load(run_dir / "plans" / "best")
    details = {
        "steps": made.trainer.global_step,
        "learned_at_step": plan.step,
        "validation_perplexity": plan.validation["perplexity"],
    }
    return _masked(made, plan, details)


def _masked(made: MeasuredRun, plan: PruningPlan, details: dict[str, Any]) -> _Pruned:
    masked_model = made.module.masked_model
    return _Pruned(
        made,
        made.making.meter,
        opened=masked_model.masked(plan.mask_U),
        cut=partial(cut_model, masked_model.model, plan.space, plan.mask_U),
        parameters=plan.kept_parameters,
        plan=plan,
        details=details
        | {"unit_kinds": list(plan.space.kinds), "passes": made.making.counter.passes},
    )


def _slicegpt(trial: Trial, check: CheckData) -> _Pruned:
    """Slice to as many parameters as a mask of the same budget keeps."""
    made = run_start([*trial.arguments, *ANY_START], trial.folder / RUN_FOLDER, trial.seed, check)
    made.making.stop()
    module, data = made.module, made.data
    text = data.calibration_batches(module.initialization.num_blocks, data.batch_size)
    meter = ResourceMeter()
    meter.start(made.device)
    batches = [batch_BT.to(made.device) for batch_BT in text]
    budget = module.space.kept_parameters(module.current_mask())
    sliced = research_module("slicegpt").slice_model(module.masked_model.model, batches, budget)
    meter.stop()
    details = {"width": sliced.width}
    return _Pruned(
        made,
        meter,
        opened=nullcontext(sliced.model),
        cut=lambda: sliced.model,
        parameters=sliced.num_parameters,
        details=details,
    )


_MAKERS = {
    "dense": _dense,
    "metric": _metric,
    "learned": _learned,
    "backpropagated": _learned,
    "slicegpt": _slicegpt,
}
