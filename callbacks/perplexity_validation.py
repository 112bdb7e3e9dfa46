"""Perplexity of the deterministic mask, on validation text during training and on test text."""

from typing import Any

from lightning.pytorch import Callback, Trainer
from torch import Tensor

from callbacks.logging import log_metrics
from pgprune_lightning.evaluation import TokenPerplexity
from pgprune_lightning.number_text import count_text
from pgprune_lightning.training import PolicyGradientPruning

VALIDATION_METRIC = "val/perplexity"


class PerplexityValidation(Callback):
    """Turns the token losses of every validation and test pass into perplexities.

    Validation is logged as `val/perplexity`, each test text as `test/LABEL/perplexity`. The
    untrained mask is measured too, by Lightning's sanity check over the whole validation text
    (`trainer.num_sanity_val_steps: -1`), and logged at step 0.
    """

    def __init__(self) -> None:
        self._metrics: list[TokenPerplexity] = []
        self.history: dict[int, float] = {}
        """Perplexity of each validation of the fit, by the number of steps before it."""

    def state_dict(self) -> dict[str, Any]:
        """What has been measured so far."""
        return {"history": dict(self.history)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.history = dict(state_dict["history"])

    def on_validation_epoch_start(
        self,
        trainer: Trainer,
        pl_module: PolicyGradientPruning,  # type: ignore[override]
    ) -> None:
        """Start a new sum."""
        del trainer
        self._metrics = [TokenPerplexity().to(pl_module.device)]

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: PolicyGradientPruning,  # type: ignore[override]
        outputs: Any,
        batch: Tensor,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add a batch."""
        del trainer, pl_module, batch, batch_idx, dataloader_idx
        self._metrics[0].update(outputs)

    def on_validation_epoch_end(
        self,
        trainer: Trainer,
        pl_module: PolicyGradientPruning,  # type: ignore[override]
    ) -> None:
        """Log the perplexity, and hand it to other callbacks as a callback metric."""
        perplexity = self._metrics[0].compute()
        self.history[trainer.global_step] = float(perplexity)
        _publish(trainer, pl_module, VALIDATION_METRIC, perplexity)

    def on_test_epoch_start(
        self,
        trainer: Trainer,
        pl_module: PolicyGradientPruning,  # type: ignore[override]
    ) -> None:
        """Start a new sum for each test text."""
        labels = _test_labels(trainer)
        self._metrics = [TokenPerplexity().to(pl_module.device) for _ in labels]

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: PolicyGradientPruning,  # type: ignore[override]
        outputs: Any,
        batch: Tensor,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add a batch to its text's sum."""
        del trainer, pl_module, batch, batch_idx
        self._metrics[dataloader_idx].update(outputs)

    def on_test_epoch_end(
        self,
        trainer: Trainer,
        pl_module: PolicyGradientPruning,  # type: ignore[override]
    ) -> None:
        """Log the perplexity of each test text."""
        for label, metric in zip(_test_labels(trainer), self._metrics, strict=True):
            _publish(trainer, pl_module, f"test/{label}/perplexity", metric.compute())


def _publish(
    trainer: Trainer, pl_module: PolicyGradientPruning, name: str, perplexity: Tensor
) -> None:
    """Hand a perplexity to other callbacks, and to the loggers or the caller of `validate`."""
    fits = trainer.state.fn == "fit"
    # Lightning returns what a validation or test alone sends to its loggers.
    pl_module.log(name, perplexity, logger=not fits, rank_zero_only=True)
    if fits:
        log_metrics(trainer, {name: float(perplexity)})
    elif trainer.is_global_zero:
        kept = pl_module.space.kept_parameters(pl_module.current_mask())
        print(f"{name}: {float(perplexity):.4f} ({count_text(kept)} parameters)", flush=True)


def _test_labels(trainer: Trainer) -> list[str]:
    labels: list[str] = trainer.datamodule.test_labels  # type: ignore[attr-defined]
    return labels
