"""The end of a run: dense, untrained and learned model on held-out text, as a table and as JSON."""

import json
import math
import time
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from callbacks.outcome_table import print_outcome
from pgprune_lightning.atomic_write import write_atomically
from pgprune_lightning.evaluation import evaluate_perplexity, greedy_continuation, provenance
from pgprune_lightning.evaluation.resources import peak_memory
from pgprune_lightning.masking.positions import check_lengths
from pgprune_lightning.masking.tokenizer import check_tokens
from pgprune_lightning.plan import PruningPlan
from pgprune_lightning.training import PolicyGradientPruning


class OutcomeReport(Callback):
    """Measures what a fit has gained and writes `RUN_DIR/summary.json`.

    The dense model, the untrained mask and the best mask by validation are measured on every test
    text, or on the validation text where there is no other.

    Args:
        run_dir: The run's folder.
        prompt: Beginning of a text that the dense and the pruned model continue; empty for none.
        sample_tokens: Length of that continuation, in tokens.
    """

    def __init__(
        self,
        run_dir: str,
        prompt: str = "The government said on Monday that",
        sample_tokens: int = 40,
    ) -> None:
        self.run_dir = Path(run_dir)
        self.prompt = prompt
        self.sample_tokens = sample_tokens
        self._earlier_seconds = 0.0
        self._start = time.monotonic()

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Start the clock, and refuse a prompt that the model has no tokens or positions for.

        Raises:
            UserError: If it has none.
        """
        self._start = time.monotonic()
        if stage == "fit" and self.prompt and trainer.datamodule is not None:  # type: ignore[attr-defined]
            pl_module.setup(stage)  # Lightning's own turn comes later, and finds it done
            tokenizer = trainer.datamodule.load_tokenizer()  # type: ignore[attr-defined]
            tokens = tokenizer(self.prompt)["input_ids"]
            num_rows = pl_module.masked_model.num_tokens
            check_tokens(tokens, tokenizer, num_rows, "outcome_report.prompt")
            length = {"outcome_report: prompt and sample_tokens": len(tokens) + self.sample_tokens}
            check_lengths(pl_module.masked_model.config, length)

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Count what an earlier process has spent on the start of this run."""
        start = getattr(pl_module, "measured_start", None)
        if trainer.ckpt_path is None and start is not None:
            self._earlier_seconds = start.earlier_seconds

    def state_dict(self) -> dict[str, Any]:
        """The time that the run has taken up to its checkpoint, in seconds."""
        return {"seconds": self._seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Count on from a checkpoint: what was lost behind it is not of the run."""
        self._earlier_seconds = float(state_dict["seconds"])

    def _seconds(self) -> float:
        return self._earlier_seconds + time.monotonic() - self._start

    def on_train_end(
        self,
        trainer: Trainer,
        pl_module: PolicyGradientPruning,  # type: ignore[override]
    ) -> None:
        """Measure, write and print the outcome."""
        if trainer.interrupted or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        trainer.strategy.barrier()
        plans = {
            name: PruningPlan.load(self.run_dir / "plans" / name) for name in ("initial", "best")
        }
        masks: dict[str, Tensor | None] = {
            "dense": None,
            "initial": plans["initial"].mask_U,
            "learned": plans["best"].mask_U,
        }
        perplexities = _measure(trainer, pl_module, masks)
        # On every rank, because they may share the model.
        sample = self._sample(trainer, pl_module, plans["best"])
        if not trainer.is_global_zero:
            return
        summary = self._summary(trainer, pl_module, plans, perplexities) | {"sample": sample}
        write_atomically(self.run_dir / "summary.json", json.dumps(summary, indent=1).encode())
        print_outcome(summary, self.run_dir)

    def _summary(
        self,
        trainer: Trainer,
        pl_module: PolicyGradientPruning,
        plans: dict[str, PruningPlan],
        perplexities: dict[str, dict[str, float]],
    ) -> dict[str, Any]:
        text, *others = perplexities
        parameters = {
            "dense": pl_module.space.total_parameters,
            "initial": plans["initial"].kept_parameters,
            "learned": plans["best"].kept_parameters,
        }
        summary: dict[str, Any] = {
            name: {
                "perplexity": _finite(perplexities[text][name]),
                "parameters": count,
                "other_texts": {other: _finite(perplexities[other][name]) for other in others},
            }
            for name, count in parameters.items()
        }
        return summary | {
            "keep_ratio": pl_module.keep_ratio,
            "steps": trainer.global_step,
            "learned_at_step": plans["best"].step,
            "training_tokens": _training_tokens(trainer, pl_module),
            "seed": pl_module.seed,
            "text": text,
            "sequence_length": plans["best"].validation["sequence_length"],
            "validation": {name: plan.validation for name, plan in plans.items()},
            "base_model": pl_module.masked_model.base_model.source,
            "execution": pl_module.masked_model.execution,
            "provenance": provenance(pl_module.device),
            "seconds": round(self._seconds(), 1),
            "peak_memory_bytes": peak_memory(pl_module.device),
        }

    def _sample(
        self, trainer: Trainer, pl_module: PolicyGradientPruning, best: PruningPlan
    ) -> dict[str, str]:
        if not self.prompt:
            return {}
        tokenizer = trainer.datamodule.load_tokenizer()  # type: ignore[attr-defined]
        model = pl_module.masked_model.model
        dense = greedy_continuation(model, tokenizer, self.prompt, self.sample_tokens)
        with pl_module.masked_model.masked(best.mask_U):
            learned = greedy_continuation(model, tokenizer, self.prompt, self.sample_tokens)
        return {"prompt": self.prompt, "dense": dense, "learned": learned}


def _measure(
    trainer: Trainer, pl_module: PolicyGradientPruning, masks: dict[str, Tensor | None]
) -> dict[str, dict[str, float]]:
    """Perplexity of every mask on every text: {text: {mask: perplexity}}."""
    return {
        label: {
            name: evaluate_perplexity(
                partial(pl_module.masked_model.token_nll, mask_U=mask_U),
                loader,
                device=pl_module.device,
                description=f"{name} on {label}" if trainer.is_global_zero else None,
            )
            for name, mask_U in masks.items()
        }
        for label, loader in _texts(trainer).items()
    }


def _training_tokens(trainer: Trainer, pl_module: PolicyGradientPruning) -> int:
    """Tokens that went through the masked model: so many masks for each sequence of a batch.

    Whether they are those of the other sequences too makes no difference.
    """
    datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
    tokens = datamodule.batch_size * datamodule.block_length * pl_module.objective.num_mask_samples
    return trainer.global_step * trainer.world_size * tokens


def _texts(trainer: Trainer) -> dict[str, DataLoader[Tensor]]:
    datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
    loaders = dict(zip(datamodule.test_labels, datamodule.test_dataloader(), strict=True))
    return loaders or {datamodule.validation_label: datamodule.val_dataloader()}


def _finite(value: float) -> float | None:
    """JSON has no infinity; an overflowing perplexity becomes null."""
    return value if math.isfinite(value) else None
