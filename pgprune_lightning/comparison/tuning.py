"""Tuning the pruned model of a cell before it is measured."""

from __future__ import annotations

import copy
import time
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pgprune_lightning.comparison.experiment import FinetuneOptions
from pgprune_lightning.finetuning import finetune_lora, read_alpaca


def tune(
    model: PreTrainedModel,
    dense: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    options: FinetuneOptions,
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Train an adapter on a model and merge it.

    Args:
        model: A cut or sliced model, which is changed; or the dense one, which is copied.
        dense: The dense model: other cells need it as it is.
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
