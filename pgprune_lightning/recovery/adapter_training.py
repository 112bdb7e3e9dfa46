"""Training adapters with Lightning, resumable bit for bit.

Shapes: B records, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase, get_linear_schedule_with_warmup

from callbacks import DeletedFiles, Preemption, RunCheckpoint
from pgprune_lightning.errors import UserError
from pgprune_lightning.progress import progress_bar
from pgprune_lightning.recovery.alpaca import NOT_SCORED, AlpacaRecord, Example, draw_examples
from pgprune_lightning.recovery.lora import LoraOptions, attach_adapter, check_finetuning
from pgprune_lightning.training.checkpoints import CrashSafeCheckpointIO, place_loops, read_archive
from pgprune_lightning.training.metrics_file import MetricsFile
from pgprune_lightning.training.run_folder import FolderWatch

VERSION = 2
NEEDED = ("identity", "global_step", "state_dict", "optimizer_states", "lr_schedulers", "random")
"""Entries of every checkpoint, beside the version."""
KEPT = 2
"""Checkpoints kept beside `last.ckpt`: the older one serves if the disk damages the newest."""


class AdapterTraining(LightningModule):
    """AdamW on the adapters, over batches that the seed alone decides.

    Args:
        adapted: The result of `attach_adapter`.
        examples: Tokens and targets, each with at least one target.
        options: The training.
        identity: All that decides the numbers beside the checkpoint, as JSON gives it back.
    """

    def __init__(
        self,
        adapted: Any,
        examples: Sequence[Example],
        options: LoraOptions,
        identity: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.strict_loading = False  # a checkpoint holds the adapters, not the model below them
        self.adapted = adapted
        self.batches = list(_batches(examples, options))
        self._options = options
        self._identity = identity
        self._random: dict[str, Tensor] | None = None
        """State of the random generators after the last step."""

    @property
    def num_steps(self) -> int:
        """Steps in all."""
        return len(self.batches)

    def train_dataloader(self) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """The batches from the trainer's current step on."""
        left = self.batches[self.trainer.global_step :]
        return ([(torch.tensor(ids), torch.tensor(to)) for ids, to in batch] for batch in left)

    def configure_optimizers(self) -> tuple[list[torch.optim.AdamW], list[Any]]:
        """AdamW without weight decay; its step size rises, then falls linearly to 0."""
        # PEFT makes adapters in float32 whatever the model's type, so small steps are not lost.
        parameters = [value for value in self.adapted.parameters() if value.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=self._options.lr, weight_decay=0.0)
        warmup_steps = math.ceil(self._options.warmup * self.num_steps)
        return [optimizer], [
            get_linear_schedule_with_warmup(optimizer, warmup_steps, self.num_steps)
        ]

    def training_step(self, batch: list[tuple[Tensor, Tensor]], batch_idx: int) -> dict[str, float]:
        """Add up the gradients of a batch in micro-batches, then take one step.

        Args:
            batch: Token ids and targets of each record, (T,), int64.
            batch_idx: Not used.

        Returns:
            `mean_loss` before the step, over the targets of the batch, in nats per token; `lr`, the
            step size.

        Raises:
            UserError: The loss is not finite; the adapters are as they were before the step.
        """
        del batch_idx
        optimizer: Any = self.optimizers()
        schedule: Any = self.lr_schedulers()
        lr = float(schedule.get_last_lr()[0])
        self.adapted.train()
        optimizer.zero_grad()
        loss = self._add_gradients(batch)
        if not math.isfinite(loss):
            raise UserError(
                f"finetuning: the loss is {loss} at step {self.global_step + 1}; lower lr, or load "
                "the model in bfloat16 or float32."
            )
        self.clip_gradients(optimizer, self._options.max_grad_norm, "norm")
        optimizer.step()
        schedule.step()
        self._random = _random_state(self.adapted.device)
        return {"mean_loss": loss, "lr": lr}

    def _add_gradients(self, batch: list[tuple[Tensor, Tensor]]) -> float:
        num_targets = sum(int((targets != NOT_SCORED).sum()) for _, targets in batch)
        total = 0.0
        for start in range(0, len(batch), self._options.micro_batch_size):
            records = batch[start : start + self._options.micro_batch_size]
            loss = self._summed_loss(records) / num_targets
            self.manual_backward(loss)
            total += float(loss.detach())
        return total

    def _summed_loss(self, records: list[tuple[Tensor, Tensor]]) -> Tensor:
        # Padding stands behind the tokens, where nothing that is scored attends to it.
        ids, targets = zip(*records, strict=True)
        tokens_BT = pad_sequence(list(ids), batch_first=True)
        targets_BT = pad_sequence(list(targets), batch_first=True, padding_value=NOT_SCORED)
        logits_BTV = self.adapted(input_ids=tokens_BT, use_cache=False).logits
        return F.cross_entropy(
            logits_BTV[:, :-1].flatten(0, 1).float(),
            targets_BT[:, 1:].flatten(),
            ignore_index=NOT_SCORED,
            reduction="sum",
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the adapters in place of the model, and the generators that dropout draws from."""
        adapters = [name for name, value in self.named_parameters() if value.requires_grad]
        checkpoint["state_dict"] = {name: checkpoint["state_dict"][name] for name in adapters}
        checkpoint["random"] = self._random or _random_state(self.adapted.device)
        checkpoint |= {"version": VERSION, "identity": self._identity}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the generators and the count of steps; Lightning restores the rest."""
        self._random = checkpoint["random"]
        _set_random_state(checkpoint["random"], self.adapted.device)
        place_loops(checkpoint)


def _batches(examples: Sequence[Example], options: LoraOptions) -> Iterator[list[Example]]:
    """All examples in another order each epoch; the last batch of one may be smaller."""
    generator = torch.Generator().manual_seed(options.seed)
    for _ in range(options.epochs):
        order = torch.randperm(len(examples), generator=generator)
        for indices in order.split(options.batch_size):
            yield [examples[index] for index in indices.tolist()]


def _random_state(device: torch.device) -> dict[str, Tensor]:
    on_gpu = {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {}
    return {"cpu": torch.get_rng_state(), **on_gpu}


def _set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


@dataclass
class Progress:
    """The findings of a fine-tuning so far, for its report; checkpoints hold them.

    Args:
        perplexity_before: Of the model before the first step; None where there is no text.
        steps: Steps taken.
        first_loss: Of the first step, in nats per token of the answers.
        last_loss: Of the last step taken.
        seconds: Duration of the steps.
    """

    perplexity_before: float | None = None
    steps: int = 0
    first_loss: float | None = None
    last_loss: float | None = None
    seconds: float = 0.0


class StepLog(Callback):
    """Keeps the progress, logs each step and moves the progress bar.

    Args:
        description: Text before the bar; None for no bar.
        on_step: Called after each step with its number, from 1, and its loss.
        perplexity_before: Of the model before the first step.
    """

    def __init__(
        self,
        description: str | None = None,
        on_step: Callable[[int, float], None] | None = None,
        perplexity_before: float | None = None,
    ) -> None:
        self.progress = Progress(perplexity_before)
        self._description = description
        self._on_step = on_step
        self._bar: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Open the bar, at the step that a resumed run has reached."""
        del pl_module
        self._start = time.monotonic() - self.progress.seconds
        self._bar = progress_bar(
            total=trainer.max_steps,
            initial=trainer.global_step,
            desc=self._description,
            disable=self._description is None,
            leave=False,
        )

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, *_: Any) -> None:
        """Log a step."""
        del pl_module
        step, loss, progress = trainer.global_step, outputs["mean_loss"], self.progress
        progress.seconds = time.monotonic() - self._start
        progress.steps, progress.last_loss = step, loss
        if progress.first_loss is None:
            progress.first_loss = loss
        for logger in trainer.loggers:
            logger.log_metrics({"loss": loss, "lr": outputs["lr"]}, step)
        self._bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        self._bar.update()
        if self._on_step is not None:
            self._on_step(step, loss)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Close the bar."""
        del trainer, pl_module
        self._bar.close()

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        """Close the bar, so that the error stands on a line of its own."""
        del trainer, pl_module, exception
        if self._bar is not None:
            self._bar.close()

    def state_dict(self) -> dict[str, Any]:
        """The progress, for the checkpoint."""
        return asdict(self.progress)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the progress of a checkpoint."""
        self.progress = Progress(**state_dict)


class _AdapterCheckpoint(RunCheckpoint):
    """Saves after the last step too, before a stop signal ends the run: merging follows."""

    def on_train_batch_end(self, trainer: Trainer, *arguments: Any, **options: Any) -> None:
        super().on_train_batch_end(trainer, *arguments, **options)
        if trainer.global_step == trainer.max_steps:
            self.save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Nothing: the last step is saved."""


class _AdapterCheckpointIO(CrashSafeCheckpointIO):
    """Reads checkpoints that hold adapters in place of a policy."""

    def load_checkpoint(self, path: str | Path, *_: Any, **__: Any) -> dict[str, Any]:
        return dict(read_archive(Path(path)))


def train_adapter(
    training: AdapterTraining,
    log: StepLog | None = None,
    *,
    folder: Path | None = None,
    every: int = 10,
    watch: FolderWatch | None = None,
    checkpoint: Path | None = None,
) -> None:
    """Take the steps that are left, and leave the model in evaluation mode where it was.

    Args:
        training: The training.
        log: Follows its steps.
        folder: Where checkpoints and metrics go, and where a stop signal saves before the run
            ends; None: nothing is written.
        every: Steps between checkpoints.
        watch: Notices deleted files of the folder.
        checkpoint: The checkpoint to go on from; None: from the start.

    Raises:
        SystemExit: If it was asked to stop; with the status of its signal.
        UserError: If the loss is not finite.
    """
    device = training.adapted.device
    observers: list[Callback] = [] if watch is None else [DeletedFiles(watch)]
    observers.append(log or StepLog())
    if folder is not None:
        observers += [_AdapterCheckpoint(str(folder), every, KEPT), Preemption()]
    trainer = Trainer(
        accelerator="cpu" if device.type == "cpu" else "gpu",
        devices=1 if device.type == "cpu" else [device.index or 0],
        max_epochs=-1,
        max_steps=training.num_steps,
        callbacks=observers,
        logger=False if folder is None else MetricsFile(folder),
        plugins=[_AdapterCheckpointIO(), LightningEnvironment()],
        enable_checkpointing=folder is not None,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        inference_mode=False,
    )
    trainer.fit(training, ckpt_path=None if checkpoint is None else str(checkpoint))
    training.adapted.to(device).eval()  # Lightning leaves it on the CPU


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
        model: The model that `slicing.cut_model` returned; layers may differ in width. It is
            changed in place, since a copy would need its memory again.
        tokenizer: The model's.
        records: The records to learn from.
        options: The adapter and its training.
        description: Text before the progress bar; None for no bar.
        on_step: Called after each step with its number, from 1, and the batch's loss in nats per
            token of the answers.

    Returns:
        The model with its weights changed, frozen again.

    Raises:
        UserError: As `check_finetuning`; if no record has an answer within `max_length`, the model
            has none of the projections, or the loss is not finite.

    Source: Paper, A.6; Ma et al. 2023 (LLM-Pruner), where A.6 is silent.
    Differs: The loss is that of the answers, as LLM-Pruner's; A.6 says "w.r.t. the perplexity".
        Records are padded, not joined to blocks of the full length.
    """
    check_finetuning(options)
    examples = draw_examples(tokenizer, records, options, model.config.vocab_size)
    device = model.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(options.seed)
        adapted = attach_adapter(model, options)
        train_adapter(AdapterTraining(adapted, examples, options), StepLog(description, on_step))
    merged: Any = adapted.merge_and_unload()
    assert isinstance(merged, PreTrainedModel)
    return merged


def newest_checkpoint(folder: Path, identity: dict[str, Any]) -> tuple[Path, int] | None:
    """Find the newest checkpoint that loads.

    Args:
        folder: The folder of checkpoints.
        identity: As for `AdapterTraining`.

    Returns:
        The checkpoint and its number of steps; None if there is no checkpoint.

    Raises:
        UserError: If there are some and none loads, or it is of another fine-tuning.
    """
    paths = _newest_first(folder)
    for path in paths:
        try:
            checkpoint = read_archive(path)
        except UserError as error:
            warnings.warn(f"passed over. {error}", stacklevel=2)
        else:
            _check(checkpoint, path, identity)
            return path, checkpoint["global_step"]
    if paths:
        raise UserError(
            f"resume: none of the checkpoints in {folder} loads, and starting anew would lose "
            "them. Bring one back, or start anew with --existing replace."
        )
    return None


def holds_another(folder: Path, identity: dict[str, Any]) -> bool:
    """Whether a folder holds a checkpoint that is not of this fine-tuning, or cannot tell.

    Args:
        folder: The folder of checkpoints.
        identity: Entries that the identity of its checkpoints must have.
    """
    for path in _newest_first(folder):
        try:
            found = read_archive(path)["identity"]
            if any(found[name] != value for name, value in identity.items()):
                return True
        except (UserError, KeyError, TypeError):
            return True
    return False


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step=*.ckpt"), reverse=True)


def _check(checkpoint: Any, path: Path, identity: dict[str, Any]) -> None:
    known = isinstance(checkpoint, dict) and checkpoint.get("version") == VERSION
    if not known or not checkpoint.keys() >= set(NEEDED):
        raise UserError(
            f"resume: {path} is no checkpoint of this version of finetune; start anew with "
            "--existing replace."
        )
    difference = first_difference(checkpoint["identity"], identity)
    if difference:
        raise UserError(
            f"resume: {path} is of another fine-tuning ({difference}). Give its options, "
            "another --output, or start anew with --existing replace."
        )


def first_difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Name the first difference between two descriptions; empty if they are the same.

    Args:
        old: The one that is there.
        new: The one that is asked for.
    """
    for name in dict.fromkeys((*new, *old)):
        before, now = old.get(name), new.get(name)
        if before == now:
            continue
        if isinstance(before, dict) and isinstance(now, dict):
            return first_difference(before, now)
        return f"{name}: there {before}, here {now}"
    return ""
