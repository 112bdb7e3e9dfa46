"""Low-rank adapters on a cut model, trained and then merged into it.

Shapes: B records, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    get_linear_schedule_with_warmup,
)

from pgprune_lightning.errors import UserError
from pgprune_lightning.finetuning.alpaca import NOT_SCORED, AlpacaRecord, tokenize_record
from pgprune_lightning.finetuning.options import LoraOptions, check_finetuning
from pgprune_lightning.progress import progress_bar

Example = tuple[list[int], list[int]]
"""Token ids of a record and the targets that `tokenize_record` gives them."""


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
    examples = _draw_examples(tokenizer, records, options)
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

    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    if not names & set(options.target_modules):
        raise UserError(
            f"finetuning: the model has none of {', '.join(options.target_modules)}; name "
            "projections that it has as target_modules, such as gate_proj, up_proj, down_proj."
        )
    configuration = LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=list(options.target_modules),
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, configuration)


@torch.enable_grad()
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
    parameters = [value for value in adapted.parameters() if value.requires_grad]
    # PEFT makes adapters in float32 whatever the model's type, so that small steps are not lost.
    optimizer = torch.optim.AdamW(parameters, lr=options.lr, weight_decay=0.0)
    batches = list(_batches(examples, options))
    schedule = get_linear_schedule_with_warmup(
        optimizer, math.ceil(options.warmup * len(batches)), len(batches)
    )
    adapted.train()
    bar = progress_bar(batches, desc=description, disable=description is None, leave=False)
    for step, batch in enumerate(bar, start=1):
        loss = _add_gradients(adapted, batch, options.micro_batch_size)
        if not math.isfinite(loss):
            raise UserError(
                f"finetuning: the loss is {loss} at step {step}; lower lr, or load the model in "
                "bfloat16 or float32."
            )
        nn.utils.clip_grad_norm_(parameters, options.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        if on_step is not None:
            on_step(step, loss)
    adapted.eval()


def _draw_examples(
    tokenizer: PreTrainedTokenizerBase, records: Sequence[AlpacaRecord], options: LoraOptions
) -> list[Example]:
    generator = torch.Generator().manual_seed(options.seed)
    drawn = torch.randperm(len(records), generator=generator)[: options.num_records].tolist()
    examples = [tokenize_record(records[index], tokenizer, options.max_length) for index in drawn]
    answered = [example for example in examples if example[1] and example[1][-1] != NOT_SCORED]
    if not answered:
        raise UserError(
            f"finetuning: none of {len(examples)} records has an answer within max_length = "
            f"{options.max_length} tokens; raise it, or give other records."
        )
    return answered


def _batches(examples: Sequence[Example], options: LoraOptions) -> Iterator[list[Example]]:
    """All examples in another order each epoch; the last batch of one may be smaller."""
    generator = torch.Generator().manual_seed(options.seed)
    for _ in range(options.epochs):
        order = torch.randperm(len(examples), generator=generator)
        for indices in order.split(options.batch_size):
            yield [examples[index] for index in indices.tolist()]


def _add_gradients(adapted: nn.Module, batch: list[Example], micro_batch_size: int) -> float:
    """Add the gradients of a batch's mean loss, each token alike, and return that loss in nats."""
    num_targets = sum(target != NOT_SCORED for _, targets in batch for target in targets)
    total = 0.0
    for start in range(0, len(batch), micro_batch_size):
        loss = _summed_loss(adapted, batch[start : start + micro_batch_size]) / num_targets
        loss.backward()
        total += float(loss.detach())
    return total


def _summed_loss(adapted: nn.Module, examples: list[Example]) -> Tensor:
    device = next(adapted.parameters()).device
    # Padding stands behind the tokens, where nothing that is scored attends to it.
    tokens_BT = pad_sequence([torch.tensor(ids) for ids, _ in examples], batch_first=True)
    targets_BT = pad_sequence(
        [torch.tensor(targets) for _, targets in examples],
        batch_first=True,
        padding_value=NOT_SCORED,
    )
    logits_BTV = adapted(input_ids=tokens_BT.to(device), use_cache=False).logits
    return F.cross_entropy(
        logits_BTV[:, :-1].flatten(0, 1).float(),
        targets_BT[:, 1:].flatten().to(device),
        ignore_index=NOT_SCORED,
        reduction="sum",
    )
