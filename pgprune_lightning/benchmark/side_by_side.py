"""One benchmark: a model, several keep ratios, the reference and ours in turn.

Shapes: U units, B sequences, T tokens, S mask samples.
"""

from __future__ import annotations

import copy
import itertools
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from pgprune_lightning.benchmark.arithmetic import kept_flops, matmul_peak
from pgprune_lightning.benchmark.learning import Learning
from pgprune_lightning.benchmark.pruning_step import PruningStep
from pgprune_lightning.benchmark.reference_step import ReferenceStep
from pgprune_lightning.benchmark.timing import Limits, Step, seconds_of, summary, time_in_turn
from pgprune_lightning.benchmark.workload import Workload
from pgprune_lightning.evaluation.resources import ResourceMeter, memory_in_use
from pgprune_lightning.masking.decoder_family import decoder_layers
from pgprune_lightning.masking.model_units import unit_layout_of
from pgprune_lightning.training.execution_choice import ExecutionChoice, ExecutionName

STEPS_OF_A_RUN = 15_000
"""The paper's, for 128 tokens and N_s = 2."""

POLICY_REPETITIONS = 5


class Benchmark:
    """Times steps on one model.

    Args:
        model: The frozen model. Compact execution lays some of its weights out anew, so that the
            reference gets a copy of those as they were.
        workload: The sizes.
        limits: When timing ends, for each keep ratio.
        execution: How ours executes masks, as `model.execution.mode` of fit.
        learning: How ours learns. The reference is the paper's algorithm whatever this is.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        workload: Workload,
        limits: Limits,
        execution: ExecutionName,
        learning: Learning,
    ) -> None:
        self._model, self._as_loaded = model, _with_own_outputs(model)
        self._workload, self._limits, self._device = workload, limits, model.device
        self._space = unit_layout_of(model, workload.unit_kinds, workload.channels_per_unit)
        self._batch_BT = workload.batch(model.config.vocab_size, model.device)
        self._execution, self._learning = execution, learning
        self._peak = matmul_peak(model.dtype, model.device)
        self._bytes_before = memory_in_use(model.device)

    def describe(self) -> dict[str, Any]:
        """What is the same at every keep ratio, as primitives."""
        return {
            "parameters": self._space.total_parameters,
            "units": self._space.num_units,
            "dtype": str(self._model.dtype).removeprefix("torch."),
            "matmul_peak_flops_per_second": self._peak,
        }

    def at(self, keep_ratio: float) -> dict[str, Any]:
        """Time the steps at a keep ratio; see docs/commands/bench.md for the keys."""
        feasible_set = self._workload.feasible_set(self._space, keep_ratio)
        start_U = torch.full((self._space.num_units,), keep_ratio, dtype=torch.float64)
        start_U = feasible_set.project(start_U.to(self._device))
        sizes = (self._space, feasible_set, start_U, self._workload, self._batch_BT)
        execution = ExecutionChoice(self._model, self._space, self._execution)
        choosing = PruningStep(execution, *sizes, self._learning)
        for number in itertools.takewhile(lambda _: execution.picked is None, itertools.count()):
            choosing(number)
        ours = PruningStep(execution, *sizes, self._learning)
        memory = self._peak_memory(ours)
        reference = ReferenceStep(self._as_loaded, *sizes)
        ways: dict[str, Step] = {"reference": reference, "ours": ours}
        times = time_in_turn(ways, self._limits, self._device)
        flops = kept_flops(self._model, self._space, start_U, self._workload)
        seconds = statistics.median(times["ours"])
        policy_seconds = _policy_seconds(ours, self._device)
        tokens = self._workload.tokens * self._workload.num_mask_samples
        return {
            "keep_ratio": keep_ratio,
            "reference": summary(times["reference"], tokens),
            "ours": summary(times["ours"], tokens),
            "ratio": statistics.median(times["reference"]) / seconds,
            "execution": execution.picked,
            "peak_memory_over_weights_bytes": memory,
            "kept_flops_per_step": flops,
            "flops_share_of_peak": flops / seconds / self._peak,
            "policy_seconds": policy_seconds,
            "policy_share_of_step": policy_seconds / seconds,
            "projected_seconds_15000_steps": STEPS_OF_A_RUN * seconds,
        }

    def _peak_memory(self, step: PruningStep) -> int | None:
        """Greatest memory during a step over what the weights take, in bytes."""
        meter = ResourceMeter()
        meter.start(self._device)
        step(0)
        meter.stop()
        if meter.peak_memory_bytes is None or self._bytes_before is None:
            return None
        return max(0, meter.peak_memory_bytes - self._bytes_before)


def run_benchmark(
    benchmark: Benchmark, keep_ratios: Sequence[float], tell: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Time every keep ratio.

    Args:
        benchmark: The model and the sizes.
        keep_ratios: Shares that stay.
        tell: Is given the result of each as soon as it is there.

    Returns:
        Primitives: the description, the first keep ratio's result, and, of several, all of them as
        `keep_ratios`.
    """
    results = []
    for keep_ratio in keep_ratios:
        results.append(benchmark.at(keep_ratio))
        tell(results[-1])
    several = {"keep_ratios": results} if len(results) > 1 else {}
    return benchmark.describe() | results[0] | several


def _with_own_outputs(model: PreTrainedModel) -> PreTrainedModel:
    """A model that shares all weights but those that compact execution lays out anew."""
    own = {
        id(parameter)
        for layer in decoder_layers(model)
        for linear in (layer.attention.output, layer.mlp.output)
        for parameter in linear.parameters()
    }
    shared = {id(weight): weight for weight in model.parameters() if id(weight) not in own}
    return copy.deepcopy(model, memo=dict(shared))


def _policy_seconds(step: PruningStep, device: torch.device) -> float:
    """Median seconds of a step without its forward passes: sample, estimate, step and project."""
    num_masks = len(step.sample(0))
    losses_S = torch.linspace(3.0, 3.1, num_masks, dtype=torch.float64).to(device)

    def without_losses(number: int) -> None:
        step.update(losses_S, step.sample(number))

    without_losses(0)
    timed = partial(seconds_of, without_losses, device=device)
    return statistics.median(timed(number) for number in range(POLICY_REPETITIONS))
