"""One progress bar over all steps of a run."""

import sys
import time
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ProgressBar
from torch import Tensor
from tqdm import tqdm

from callbacks.perplexity_validation import VALIDATION_METRIC
from pgprune_lightning.number_text import count_text
from pgprune_lightning.progress import progress_bar
from pgprune_lightning.training import PolicyGradientPruning


class TrainingProgress(ProgressBar):
    """Shows steps, time left, loss, baseline, expected keep ratio and validation perplexity.

    Lightning's own bars count batches of an epoch; here a run is one stretch of `max_steps`
    steps, whatever the size of the data.
    """

    def __init__(self) -> None:
        super().__init__()
        self._bar: tqdm[Any] | None = None
        self._newest: dict[str, Tensor] | None = None
        """What the last step gave, if it has not been shown."""
        self._is_enabled = True

    def disable(self) -> None:
        """Show nothing; Lightning calls this on all ranks but the first."""
        self._is_enabled = False

    def enable(self) -> None:
        """Show the bar again."""
        self._is_enabled = True

    def on_fit_start(self, trainer: Trainer, pl_module: PolicyGradientPruning) -> None:  # type: ignore[override]
        """Say what is about to be pruned."""
        del trainer
        space, model = pl_module.space, pl_module.masked_model.model
        kinds = ", ".join(f"{len(space.units_of(kind)):,} {kind}" for kind in space.kinds)
        self._say(
            f"{pl_module.masked_model.base_model.source}: "
            f"{count_text(space.total_parameters)} parameters in "
            f"{str(model.dtype).removeprefix('torch.')} on {model.device}; units: {kinds}; "
            f"keep ratio {pl_module.keep_ratio} ({pl_module.budget.scope})"
        )

    def on_sanity_check_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Say what the first, silent minutes are spent on."""
        del trainer, pl_module
        self._say("Validating the untrained mask ...")

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Open the bar, at the step a resumed run has reached."""
        super().on_train_start(trainer, pl_module)
        self._bar = progress_bar(
            total=trainer.max_steps if trainer.max_steps > 0 else None,
            initial=trainer.global_step,
            desc="Training",
            unit="step",
            disable=not self._is_enabled,
        )

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: PolicyGradientPruning,  # type: ignore[override]
        outputs: Any,
        batch: Tensor,
        batch_idx: int,
    ) -> None:
        """Move the bar by one step."""
        del batch, batch_idx
        if self._bar is None or self._bar.disable:
            return  # A disabled bar, that of other ranks, does not know when it is due.
        self._newest = outputs
        # The host waits for an accelerator at every number: only when the bar is drawn again.
        is_due = time.time() - self._bar.last_print_t >= self._bar.mininterval
        if is_due or trainer.global_step == trainer.max_steps:
            self._show_newest(trainer, pl_module)
        self._bar.update(1)

    def _show_newest(self, trainer: Trainer, pl_module: PolicyGradientPruning) -> None:
        if self._bar is None or self._newest is None:
            return
        outputs, self._newest = self._newest, None
        probabilities_U = pl_module.policy.keep_probabilities.detach()
        shown = {
            "loss": f"{float(outputs['losses'].mean()):.3f}",
            "baseline": f"{float(outputs['baseline']):.3f}",
            "keep": f"{pl_module.feasible_set.expected_keep_ratio(probabilities_U):.3f}",
        }
        if VALIDATION_METRIC in trainer.callback_metrics:
            shown["val_ppl"] = f"{float(trainer.callback_metrics[VALIDATION_METRIC]):.1f}"
        self._bar.set_postfix(shown, refresh=False)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Close the bar, with the numbers of the last step."""
        self._show_newest(trainer, pl_module)
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        """Close the bar, so that the error stands on a line of its own."""
        del trainer, pl_module, exception
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _say(self, text: str) -> None:
        if self._is_enabled:
            print(text, file=sys.stderr, flush=True)
