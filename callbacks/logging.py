"""One way for callbacks to log, so that all metrics share the axis of optimizer steps."""

from lightning.pytorch import Trainer


def log_metrics(trainer: Trainer, metrics: dict[str, float]) -> None:
    """Send metrics to every logger at the number of steps taken.

    `LightningModule.log` would write training metrics one step early in manual optimisation.

    Args:
        trainer: Its loggers and its step.
        metrics: Values by name.
    """
    for logger in trainer.loggers:
        logger.log_metrics(metrics, step=trainer.global_step)


def is_logging_step(trainer: Trainer) -> bool:
    """Whether the step just taken is the first or a multiple of `log_every_n_steps`."""
    every = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return trainer.global_step == 1 or (every > 0 and trainer.global_step % every == 0)
