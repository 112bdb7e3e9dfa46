"""Runs one trial: makes the mask or the model, fine-tunes it if asked, and measures it."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, Trainer
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import callbacks
from pgprune_lightning.checkout import research_module
from pgprune_lightning.comparison.experiment import Experiment, FinetuneOptions, LatencyOptions
from pgprune_lightning.comparison.trial import Trial, TrialResult, module_class
from pgprune_lightning.data.data_module import TokenBlocksDataModule
from pgprune_lightning.data.token_blocks import TokenBlocks
from pgprune_lightning.errors import about
from pgprune_lightning.evaluation import (
    check_zero_shot_tasks,
    evaluate_perplexity,
    evaluate_zero_shot,
    measure_latency,
    provenance,
    text_blocks,
)
from pgprune_lightning.evaluation.pass_counter import PassCounter
from pgprune_lightning.evaluation.resources import ResourceMeter
from pgprune_lightning.masking.frozen_model import resolve_dtype
from pgprune_lightning.masking.model_reuse import open_frozen_model
from pgprune_lightning.masking.positions import max_positions
from pgprune_lightning.masking.token_loss import token_nll
from pgprune_lightning.plan import PruningPlan
from pgprune_lightning.recovery import check_finetuning, finetune_lora, read_alpaca
from pgprune_lightning.run import Command, Run, execute_run, remove_callbacks
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


def measure(
    model: PreTrainedModel, data: TokenBlocksDataModule, experiment: Experiment
) -> dict[str, Any]:
    """Measure a model as an experiment asks for it.

    Args:
        model: Dense, masked or cut.
        data: Whose first test text is read.
        experiment: Block lengths, tokens to read at each of them, zero-shot tasks.

    Returns:
        `perplexity_LENGTH` for each length, None where it overflows. Where there are tasks,
        `zero_shot`: accuracies in [0, 1] by task; `zero_shot_average`: their mean;
        `zero_shot_normalized`: the same by likelihood per character, None where a task has none.

    Raises:
        UserError: If the text is too short for a length, or a task cannot be run.
    """
    perplexities = {
        f"perplexity_{length}": _perplexity(model, data, length, experiment.evaluation_tokens)
        for length in experiment.evaluation_lengths
    }
    return perplexities | (_zero_shot(model, data, experiment) if experiment.zero_shot else {})


def check_text(data: TokenBlocksDataModule, experiment: Experiment) -> None:
    """Refuse a test text that is too short for one of the lengths at which it is to be read.

    Raises:
        UserError: If it is, or cannot be read.
    """
    for length in experiment.evaluation_lengths:
        _blocks(data, length, experiment.evaluation_tokens)


def time_passes(model: PreTrainedModel, options: LatencyOptions) -> dict[str, Any]:
    """Time a model whose units are really gone.

    Args:
        model: Dense, cut or sliced.
        options: What is timed.

    Returns:
        `latency`: `seconds` of a forward pass, `tokens_per_second`, `parameter_bytes`, and
        `peak_memory_bytes`, None where the device is not CUDA.
    """
    measured = asdict(measure_latency(model, **asdict(options)))
    names = ("seconds", "tokens_per_second", "parameter_bytes", "peak_memory_bytes")
    return {"latency": {name: measured[name] for name in names}}


def _zero_shot(
    model: PreTrainedModel, data: TokenBlocksDataModule, experiment: Experiment
) -> dict[str, Any]:
    scores = evaluate_zero_shot(
        model,
        data.load_tokenizer(),
        experiment.zero_shot,
        local_folder=experiment.local_zero_shot_folder,
        limit=experiment.zero_shot_limit,
    )
    accuracies = {task: score.accuracy for task, score in scores.items()}
    return {
        "zero_shot": accuracies,
        "zero_shot_average": statistics.fmean(accuracies.values()),
        "zero_shot_normalized": {name: s.normalized_accuracy for name, s in scores.items()},
    }


def _perplexity(
    model: PreTrainedModel, data: TokenBlocksDataModule, length: int, tokens: int | None
) -> float | None:
    # As many tokens a batch at every length: they decide the memory.
    batch = data.evaluation_batch_size * data.evaluation_block_length
    loader = DataLoader(_blocks(data, length, tokens), batch_size=max(1, batch // length))
    perplexity = evaluate_perplexity(partial(token_nll, model), loader, device=model.device)
    return perplexity if math.isfinite(perplexity) else None


def _blocks(data: TokenBlocksDataModule, length: int, tokens: int | None) -> TokenBlocks:
    source = data.test[0]
    if tokens is None and source.num_blocks is not None:
        tokens = source.num_blocks * data.evaluation_block_length
    with about("data.test[0]"):
        return text_blocks(
            source,
            data.load_tokenizer(),
            length,
            tokens=tokens,
            bos_per_block=bool(data.bos_per_block),
            cache_dir=data.cache_dir,
        )


def tune(
    model: PreTrainedModel,
    dense: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    options: FinetuneOptions,
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Train an adapter on a model and merge it.

    Args:
        model: A cut or sliced model, which is changed; or the dense one, which is copied.
        dense: The dense model: other trials need it as it is.
        tokenizer: The model's.
        options: Records and adapter.

    Returns:
        The tuned model; `finetuned`: its `records`, `steps`, `seconds`, and the last step's
        `loss` in nats per token of the answers.

    Raises:
        UserError: As `finetune_lora` and `read_alpaca`.

    Source: Paper, A.6; Tables A3 and A4.
    """
    losses: list[float] = []
    records = read_alpaca(options.records)
    start = time.perf_counter()
    tuned = finetune_lora(
        copy.deepcopy(dense) if model is dense else model,
        tokenizer,
        records,
        options.lora,
        description="fine-tuning",
        on_step=lambda _, loss: losses.append(loss),
    )
    # `loss` leaves the device every step, so that all steps have ended here.
    seconds = time.perf_counter() - start
    tuning = {"records": options.records, "steps": len(losses), "seconds": seconds}
    return tuned, {"finetuned": tuning | {"loss": losses[-1]}}


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


def check_extras(experiment: Experiment, trials: Sequence[Trial]) -> None:
    """Refuse what could not be measured, such as tasks without the library that runs them.

    Args:
        experiment: Says what is measured.
        trials: Those that are to be computed. With none there is nothing to refuse: a table can be
            made of finished trials where the libraries are not.

    Raises:
        UserError: If a library or data is missing, or an option is out of range.
    """
    if not trials:
        return
    check_zero_shot_tasks(experiment.zero_shot, experiment.local_zero_shot_folder)
    if experiment.finetune is not None and any(trial.finetune for trial in trials):
        check_finetuning(experiment.finetune.lora)
        with about("finetune.records"):
            read_alpaca(experiment.finetune.records)
