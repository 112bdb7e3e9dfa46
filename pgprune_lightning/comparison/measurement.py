"""Measures what a trial has made, and fine-tunes it first where the experiment asks for it."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pgprune_lightning.comparison.experiment import Experiment, FinetuneOptions, LatencyOptions
from pgprune_lightning.comparison.trial import Trial
from pgprune_lightning.data.data_module import TokenBlocksDataModule
from pgprune_lightning.data.token_blocks import TokenBlocks
from pgprune_lightning.errors import about
from pgprune_lightning.evaluation import (
    check_zero_shot_tasks,
    evaluate_perplexity,
    evaluate_zero_shot,
    measure_latency,
    text_blocks,
)
from pgprune_lightning.masking.token_loss import token_nll
from pgprune_lightning.recovery import check_finetuning, finetune_lora, read_alpaca


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
