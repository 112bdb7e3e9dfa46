"""Computing one cell: make the mask or the model, then measure it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from transformers import PreTrainedModel

from pgprune_lightning.checkout import research_module
from pgprune_lightning.comparison.cell import Cell, module_class
from pgprune_lightning.comparison.cell_folder import CellResult
from pgprune_lightning.comparison.cell_run import ANY_START, MeasuredRun, run_fit, run_start
from pgprune_lightning.comparison.experiment import Experiment, FinetuneOptions
from pgprune_lightning.comparison.measurement import measure, time_passes
from pgprune_lightning.comparison.tuning import tune
from pgprune_lightning.evaluation import provenance
from pgprune_lightning.evaluation.resources import ResourceMeter
from pgprune_lightning.masking.positions import max_positions
from pgprune_lightning.plan import PruningPlan
from pgprune_lightning.slicing import cut_model

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


def compute_cell(cell: Cell, experiment: Experiment) -> CellResult:
    """Make what a cell is about, measure it, and keep its plan.

    Args:
        cell: The cell.
        experiment: Says what is measured.

    Returns:
        Primitives: what `measure` gives; `parameters`, `parameters_share`, `seconds`,
        `peak_memory_bytes`, `memory_before_bytes`; `passes`, of 8 x 128 tokens, by what they were
        for, but for SliceGPT, which runs the model layer by layer; and what they belong to.

    Raises:
        UserError: If something has to be changed by the user.
    """
    pruned = _MAKERS[cell.kind](cell)
    if pruned.plan is not None:
        pruned.plan.save(cell.folder / PLAN_FOLDER)
    made = pruned.made
    masked_model = made.module.masked_model
    measured = _measured(pruned, cell.finetune, experiment)
    dense_parameters = masked_model.space.total_parameters
    return {
        "setting": cell.setting,
        "method": cell.method,
        "kind": cell.kind,
        "seed": cell.seed,
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


def _dense(cell: Cell) -> _Pruned:
    made = run_start([*cell.arguments, *ANY_START], cell.folder / RUN_FOLDER, cell.seed)
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


def _metric(cell: Cell) -> _Pruned:
    made = run_start([*cell.arguments], cell.folder / RUN_FOLDER, cell.seed)
    plan = made.module.current_plan()
    made.making.stop()
    return _masked(made, plan, {})


def _learned(cell: Cell) -> _Pruned:
    run_dir = cell.folder / RUN_FOLDER
    made = run_fit([*cell.arguments], run_dir, cell.seed, module_class(cell.kind))
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


def _slicegpt(cell: Cell) -> _Pruned:
    """Slice to as many parameters as a mask of the same budget keeps."""
    made = run_start([*cell.arguments, *ANY_START], cell.folder / RUN_FOLDER, cell.seed)
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
