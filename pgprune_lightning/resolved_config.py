"""The options of a run as they were resolved: in its folder, and in loggers that show them."""

from __future__ import annotations

import inspect
from importlib import import_module
from pathlib import Path
from typing import Any

from jsonargparse import Namespace, lazy_instance
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser

from pgprune_lightning.atomic_write import write_atomically


def plain(value: Any) -> Any:
    """Primitives only, as loggers and YAML want them."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def fill_in_estimator(config: Namespace) -> None:
    """Write down the estimator that the policy chooses, where none is given.

    Args:
        config: The options of `fit`, `validate` or `test`; it is changed.
    """
    model = config.model
    if model.estimator is None and model.policy is not None:
        module, _, name = model.policy.class_path.rpartition(".")
        model.estimator = _with_options(getattr(import_module(module), name).default_estimator())


def _with_options(chosen: type) -> Namespace:
    """A class as a config names it, with all its options."""
    options = {name: each.default for name, each in inspect.signature(chosen).parameters.items()}
    spec: Namespace = lazy_instance(chosen, **options).lazy_get_init_data()
    return spec


def fill_in_choices(config: Namespace, trainer: Trainer, pl_module: Any) -> None:
    """Write down what a run has chosen by its model and machine, where options let it.

    Args:
        config: The options of `fit`; it is changed.
        trainer: The Trainer.
        pl_module: The module, with its model loaded.
    """
    masked_model = pl_module.masked_model
    options = config.model.execution
    options.dtype = str(masked_model.model.dtype).removeprefix("torch.")
    options.attention = masked_model.model.config._attn_implementation
    options.mode = masked_model.execution or options.mode
    if str(config.trainer.devices) in ("auto", "-1"):
        config.trainer.devices = trainer.num_devices


class SaveResolvedConfig(Callback):
    """Writes the resolved configuration into the run folder of a fit, once the model is loaded.

    Not before: a run that fails on its input leaves a folder in which the next one can start.
    `execution.mode: auto` is decided in the first steps, and then written.

    Args:
        parser: Writes the configuration out.
        config: The options of the run.
    """

    def __init__(self, parser: LightningArgumentParser, config: Namespace) -> None:
        self.parser = parser
        self.config = config

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file, and hand the configuration to loggers that show it.

        `validate` and `test` leave the file of their run as it was.
        """
        self.config = self.config.clone()
        fill_in_choices(self.config, trainer, pl_module)
        if not trainer.is_global_zero:
            return
        self._write()
        for logger in trainer.loggers:
            logger.log_hyperparams(plain(self.config.as_dict()))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the file again once the execution of masks is chosen."""
        del outputs, batch, batch_idx
        options = self.config.model.execution
        if options.mode == "auto" and pl_module.masked_model.execution is not None:
            fill_in_choices(self.config, trainer, pl_module)
            if trainer.is_global_zero:
                self._write()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file again if it was deleted during the run."""
        del pl_module
        if trainer.is_global_zero and not self._path.exists():
            self._write()

    @property
    def _path(self) -> Path:
        return Path(self.config.run_dir) / "config.yaml"

    def _write(self) -> None:
        text = self.parser.dump(self.config, skip_unset=False)
        write_atomically(self._path, text.encode())
