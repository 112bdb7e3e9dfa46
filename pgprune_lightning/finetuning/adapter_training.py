"""Training what is not frozen of a model, step by step, so that it can stop and go on.

Shapes: B records, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import get_linear_schedule_with_warmup

from pgprune_lightning.errors import UserError
from pgprune_lightning.finetuning.alpaca import NOT_SCORED
from pgprune_lightning.finetuning.options import LoraOptions
from pgprune_lightning.progress import progress_bar

Example = tuple[list[int], list[int]]
"""Token ids of a record and the targets that `tokenize_record` gives them."""


class AdapterTraining:
    """AdamW on the adapters, over batches that the seed alone decides.

    Args:
        adapted: What `attach_adapter` returned.
        examples: Tokens and targets, each with at least one target.
        options: The training.
    """

    def __init__(
        self, adapted: nn.Module, examples: Sequence[Example], options: LoraOptions
    ) -> None:
        self._adapted = adapted
        self._options = options
        self._parameters = {
            name: value for name, value in adapted.named_parameters() if value.requires_grad
        }
        self._batches = list(_batches(examples, options))
        # PEFT makes adapters in float32 whatever the model's type, so that small steps are not
        # lost.
        self._optimizer = torch.optim.AdamW(
            list(self._parameters.values()), lr=options.lr, weight_decay=0.0
        )
        self._schedule = get_linear_schedule_with_warmup(
            self._optimizer, math.ceil(options.warmup * self.num_steps), self.num_steps
        )
        self.step = 0
        """Steps taken."""

    @property
    def num_steps(self) -> int:
        """Steps in all."""
        return len(self._batches)

    @property
    def lr(self) -> float:
        """Step size of the next step."""
        return float(self._schedule.get_last_lr()[0])

    def steps(self, description: str | None = None) -> Generator[float, None, None]:
        """Take the steps that are left, one at each turn, and leave the model in evaluation mode.

        Args:
            description: Text before the progress bar; None for no bar.

        Yields:
            The batch's loss before the step, in nats per token of the answers.

        Raises:
            UserError: If the loss is not finite.
        """
        with progress_bar(
            total=self.num_steps,
            initial=self.step,
            desc=description,
            disable=description is None,
            leave=False,
        ) as bar:
            while self.step < self.num_steps:
                loss = self._take_step()
                bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
                bar.update()
                yield loss
        self._adapted.eval()

    @torch.enable_grad()
    def _take_step(self) -> float:
        self._adapted.train()
        batch = self._batches[self.step]
        loss = _add_gradients(self._adapted, batch, self._options.micro_batch_size)
        if not math.isfinite(loss):
            raise UserError(
                f"finetuning: the loss is {loss} at step {self.step + 1}; lower lr, or load the "
                "model in bfloat16 or float32."
            )
        nn.utils.clip_grad_norm_(list(self._parameters.values()), self._options.max_grad_norm)
        self._optimizer.step()
        self._schedule.step()
        self._optimizer.zero_grad()
        self.step += 1
        return loss

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on beside the options: tensors and primitives."""
        return {
            "step": self.step,
            "adapter": {name: value.detach() for name, value in self._parameters.items()},
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "random": _random_state(self._device),
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where `state_dict` was taken, with the same examples and options.

        Args:
            state: What it returned, on any device.
        """
        for name, value in self._parameters.items():
            value.copy_(state["adapter"][name])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self.step = state["step"]
        _set_random_state(state["random"], self._device)

    @property
    def _device(self) -> torch.device:
        return next(iter(self._parameters.values())).device


def _random_state(device: torch.device) -> dict[str, Tensor]:
    """Of the generators that dropout draws from."""
    on_gpu = {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {}
    return {"cpu": torch.get_rng_state(), **on_gpu}


def _set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


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
