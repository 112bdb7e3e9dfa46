"""Low-rank adapters on a cut model, trained and then merged into it."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pgprune_lightning.errors import UserError
from pgprune_lightning.finetuning.adapter_training import AdapterTraining, Example
from pgprune_lightning.finetuning.alpaca import NOT_SCORED, AlpacaRecord, tokenize_record
from pgprune_lightning.finetuning.options import LoraOptions, check_finetuning
from pgprune_lightning.masking.tokenizer import check_tokens

QUERIES_AND_VALUES = (("q_proj", "v_proj"), ("qkv_proj",), ("query_key_value",))
"""Projections that make them, in one family after another."""


def finetune_lora(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[AlpacaRecord],
    options: LoraOptions,
    *,
    description: str | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> PreTrainedModel:
    """Train an adapter on the answers to instructions and merge it into the model.

    Args:
        model: The model that `slicing.cut_model` returned; layers may differ in width. It is the
            one that is changed, since a copy would need its memory again.
        tokenizer: The model's.
        records: What to learn from.
        options: The adapter and its training.
        description: Text before the progress bar; None for no bar.
        on_step: Called after each step with its number, from 1, and the batch's loss in nats per
            token of the answers.

    Returns:
        The model with its weights changed, frozen again.

    Raises:
        UserError: As `check_finetuning`; if no record has an answer within `max_length`, the model
            has none of the projections, or the loss is not finite.

    Source: Paper, A.6; Ma et al. 2023 (LLM-Pruner), for what it does not say.
    Differs: The loss is that of the answers, as LLM-Pruner's; A.6 says "w.r.t. the perplexity".
        Records are padded, not joined to blocks of the full length.
    """
    check_finetuning(options)
    examples = draw_examples(tokenizer, records, options, model.config.vocab_size)
    device = model.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(options.seed)
        adapted = attach_adapter(model, options)
        train_adapter(adapted, examples, options, description=description, on_step=on_step)
    merged: Any = adapted.merge_and_unload()
    assert isinstance(merged, PreTrainedModel)
    return merged


def attach_adapter(model: PreTrainedModel, options: LoraOptions) -> Any:
    """Put an adapter that does nothing yet on a model, and freeze all but it.

    Args:
        model: The model; its projections are wrapped in place.
        options: The adapter.

    Returns:
        The `peft.PeftModel`.

    Raises:
        UserError: If the model has none of the projections.
    """
    from peft import LoraConfig, get_peft_model

    names = target_modules_of(model, options)
    check_target_modules(model, names)
    configuration = LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=list(names),
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, configuration)


def target_modules_of(model: nn.Module, options: LoraOptions) -> Sequence[str]:
    """Names of the projections that get an adapter.

    Args:
        model: The model; its weights may be on the meta device.
        options: The adapter, which may leave them to the model.
    """
    if options.target_modules is not None:
        return options.target_modules
    found = _projections(model)
    fitting = (names for names in QUERIES_AND_VALUES if found & set(names))
    return next(fitting, QUERIES_AND_VALUES[0])


def check_target_modules(model: nn.Module, names: Sequence[str]) -> None:
    """Refuse projections of another family, or of sub-layers that are all cut away.

    Args:
        model: The model; its weights may be on the meta device.
        names: Of projections.

    Raises:
        UserError: If the model has none of them.
    """
    found = _projections(model)
    if not found & set(names):
        raise UserError(
            f"finetuning: the model has none of {', '.join(names)}; name "
            f"projections that it has as target_modules: {', '.join(found)}."
        )


def _projections(model: nn.Module) -> Set[str]:
    """Names of the model's projections, in their order."""
    return {
        name.rpartition(".")[2]: None
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name != "lm_head"
    }.keys()


def train_adapter(
    adapted: nn.Module,
    examples: Sequence[Example],
    options: LoraOptions,
    *,
    description: str | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> None:
    """Train what is not frozen of a model.

    Args:
        adapted: What `attach_adapter` returned.
        examples: Tokens and targets, each with at least one target.
        options: The training.
        description: Text before the progress bar; None for no bar.
        on_step: As for `finetune_lora`.

    Raises:
        UserError: If the loss is not finite.
    """
    training = AdapterTraining(adapted, examples, options)
    for loss in training.steps(description):
        if on_step is not None:
            on_step(training.step, loss)


def draw_examples(
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[AlpacaRecord],
    options: LoraOptions,
    num_rows: int,
) -> list[Example]:
    """Draw the records that are trained on, and leave out those whose answer is cut off.

    Args:
        tokenizer: The model's.
        records: To draw from.
        options: How many, by which seed, and how long.
        num_rows: Rows of the model's embedding.

    Returns:
        At most `options.num_records` examples.

    Raises:
        UserError: If no record has an answer within `max_length`, or one has a token that the model
            has no row for.
    """
    generator = torch.Generator().manual_seed(options.seed)
    drawn = torch.randperm(len(records), generator=generator)[: options.num_records].tolist()
    examples = [tokenize_record(records[index], tokenizer, options.max_length) for index in drawn]
    answered = [example for example in examples if example[1] and example[1][-1] != NOT_SCORED]
    if not answered:
        raise UserError(
            f"finetuning: none of {len(examples)} records has an answer within max_length = "
            f"{options.max_length} tokens; raise it, or give other records."
        )
    largest = [max(ids) for ids, _ in answered]
    check_tokens(largest, tokenizer, num_rows, "finetuning: a record")
    return answered
