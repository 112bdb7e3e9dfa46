"""Measuring a pruned model: perplexity of the first test text, and zero-shot accuracy."""

from __future__ import annotations

import math
import statistics
from dataclasses import asdict
from functools import partial
from typing import Any

from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from pgprune_lightning.comparison.experiment import Experiment, LatencyOptions
from pgprune_lightning.data.data_module import TokenBlocksDataModule
from pgprune_lightning.data.token_blocks import TokenBlocks
from pgprune_lightning.errors import about
from pgprune_lightning.evaluation import (
    evaluate_perplexity,
    evaluate_zero_shot,
    measure_latency,
    text_blocks,
)
from pgprune_lightning.masking.token_loss import token_nll


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
