"""From a configuration to a run: `fit`, `validate` and `test`, from the command line and in Python.

`build_run` makes module, data module and Trainer, `execute_run` runs them; a fit first takes its
folder.
"""

import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.plugins.environments import SLURMEnvironment

import callbacks
from pgprune_lightning.atomic_write import write_atomically
from pgprune_lightning.console import quiet_libraries
from pgprune_lightning.data.data_module import TokenBlocksDataModule
from pgprune_lightning.errors import UserError
from pgprune_lightning.folder_lock import SECONDS_TO_WAIT, exclusive_output
from pgprune_lightning.run_options import (
    CALLBACKS,
    WRITING_CALLBACKS,
    Command,
    Given,
    RunParser,
    plain,
    resolve_config,
    run_parser,
)
from pgprune_lightning.stop_signals import exit_at_stop_signals, was_stopped
from pgprune_lightning.training import PolicyGradientPruning
from pgprune_lightning.training.checkpoints import (
    CrashSafeCheckpointIO,
    find_checkpoint,
)
from pgprune_lightning.training.loggers import WandbOptions, build_loggers, own_wandb_run
from pgprune_lightning.training.other_ranks import decided_by_rank_zero, report_lost_children
from pgprune_lightning.training.run_folder import (
    NEVER_DELETED,
    START_FILE,
    FolderWatch,
    check_run_folder,
    claim_run_folder,
    how_to_go_on,
    remove_if_empty,
)
from pgprune_lightning.training.trainer_options import (
    check_trainer,
)


class Run(NamedTuple):
    """The objects of a configuration, ready to run.

    Args:
        module: The LightningModule; it has counted its units and has not loaded its model.
        data: The data module.
        trainer: The Trainer, with all callbacks of a run.
    """

    module: PolicyGradientPruning
    data: TokenBlocksDataModule
    trainer: Trainer


# Objects.


def build_run(
    config: Given,
    command: Command = "fit",
    module_class: type[PolicyGradientPruning] = PolicyGradientPruning,
) -> Run:
    """Make module, data module and Trainer of a configuration, and check them with one another.

    No weights and no texts are read. `trainer.fit(module, datamodule=data)` then runs; but
    `execute_run` also locks the run folder, refuses one that holds another run, and logs into it.

    Args:
        config: The configuration, such as `{"model": {"base_model": ..., "keep_ratio": 0.7}}`.
        command: What the Trainer will do.
        module_class: What is run; its arguments are the options `model`.

    Raises:
        UserError: If something has to be changed by the user.
    """
    config = resolve_config(config, command, module_class)
    parser = run_parser(command, module_class)  # type: ignore[arg-type]
    seed_everything(config.seed_everything, workers=True)
    objects = parser.instantiate(config)
    module, data = objects.model, objects.data
    observers = [objects[name] for name in CALLBACKS]
    if not config.trainer.fast_dev_run:
        observers.append(SaveResolvedConfig(parser, config))
    trainer = _build_trainer(objects.trainer, observers)
    module.setup(command)
    module.check_lengths(data)
    if config.data.bos_per_block is None:  # written down, so that the run says what it read
        config.data.bos_per_block = data.bos_per_block = module.needs_bos
    # Set here and not given to validate(), which the module would learn of too late.
    trainer.ckpt_path = config.ckpt_path
    return Run(module, data, trainer)


def _build_trainer(options: Namespace, observers: list[Any]) -> Trainer:
    """Build the Trainer; its refusals concern options of the user."""
    given = options.callbacks or []
    own = {
        "callbacks": [*(given if isinstance(given, list) else [given]), *observers],
        "plugins": _plugins(options.plugins),
        "enable_progress_bar": True,  # without one, a Trainer refuses ours
        "min_epochs": 0,
    }
    try:
        trainer = Trainer(**(vars(options) | own))
    except UserError:
        raise
    except (ImportError, TypeError, ValueError, MisconfigurationException) as error:
        raise UserError(f"trainer: {error}") from error
    check_trainer(trainer, has_max_time=options.max_time is not None)
    if options.enable_progress_bar is False:
        trainer.progress_bar_callback.disable()  # type: ignore[union-attr]
    if options.fast_dev_run:  # writes nothing: its folder may hold a run
        writing = tuple(CALLBACKS[name] for name in WRITING_CALLBACKS)
        remove_callbacks(trainer, *writing)
    return trainer


def _plugins(given: Any) -> list[Any]:
    """The user's plugins, and those of every run."""
    own: list[Any] = [CrashSafeCheckpointIO()]
    if SLURMEnvironment.detect():
        own.append(SLURMEnvironment(auto_requeue=False))  # its handlers wait for other ranks
    others = given if isinstance(given, list) else [given]
    return [*(plugin for plugin in others if plugin is not None), *own]


def remove_callbacks(trainer: Trainer, *kinds: type) -> None:
    """Remove the callbacks of some classes from a Trainer."""
    kept = [each for each in trainer.callbacks if not isinstance(each, kinds)]  # type: ignore[attr-defined]
    trainer.callbacks = kept  # type: ignore[attr-defined]


class SaveResolvedConfig(Callback):
    """Writes the resolved configuration into the run folder of a fit, once the model is loaded.

    Not before: a run that fails on its input leaves a folder in which the next one can start.
    `execution.mode: auto` is decided in the first steps, and then written.

    Args:
        parser: Writes the configuration out.
        config: The options of the run.
    """

    def __init__(self, parser: RunParser, config: Namespace) -> None:
        self._parser = parser
        self._config = config
        self._path = Path(config.run_dir) / "config.yaml"

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file, and hand the configuration to loggers that show it."""
        self._config = self._config.clone()
        self._write(trainer, pl_module)
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.log_hyperparams(plain(self._config.as_dict()))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the file again once the execution of masks is chosen."""
        del outputs, batch, batch_idx
        mode = self._config.model.execution.mode
        if mode == "auto" and pl_module.masked_model.execution is not None:
            self._write(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file again if it was deleted during the run."""
        if trainer.is_global_zero and not self._path.exists():
            self._write(trainer, pl_module)

    def _write(self, trainer: Trainer, pl_module: Any) -> None:
        """Write the options, with the run's choices in place of `auto`."""
        masked_model, options = pl_module.masked_model, self._config.model.execution
        options.dtype = str(masked_model.model.dtype).removeprefix("torch.")
        options.attention = masked_model.model.config._attn_implementation
        options.mode = masked_model.execution or options.mode
        if str(self._config.trainer.devices) in ("auto", "-1"):
            self._config.trainer.devices = trainer.num_devices
        if trainer.is_global_zero:
            text = self._parser.dump(self._config, skip_unset=False)
            write_atomically(self._path, text.encode())


# Running.


def execute_run(
    given: Given,
    command: Command = "fit",
    module_class: type[PolicyGradientPruning] = PolicyGradientPruning,
    prepare: Callable[[Run], None] = lambda run: None,
) -> Run:
    """Do what `python -m pgprune_lightning COMMAND` does.

    Args:
        given: The configuration.
        command: `fit`, `validate` or `test`.
        module_class: What is run; its arguments are the options `model`.
        prepare: Called once everything is built and checked, before the model is loaded.

    Returns:
        The run, after its end.

    Raises:
        UserError: If something has to be changed by the user.
    """
    _check_callbacks_package()
    quiet_libraries()
    report_lost_children()
    with exit_at_stop_signals(), own_wandb_run():
        config = resolve_config(given, command, module_class)
        run = build_run(config, command, module_class)
        if command == "fit":
            _fit(run, config, prepare)
        else:
            prepare(run)
            measure = getattr(run.trainer, command)
            # Lightning's own table of results wraps the names of several texts.
            measure(run.module, datamodule=run.data, verbose=False)
    return run


def _fit(run: Run, config: Namespace, prepare: Callable[[Run], None]) -> None:
    trainer = run.trainer
    with ExitStack() as lock:  # for all of the run
        checkpoint = decided_by_rank_zero(trainer, partial(_find_checkpoint, trainer, config, lock))
        trainer.ckpt_path = None if checkpoint is None else str(checkpoint)
        if config.trainer.fast_dev_run:
            prepare(run)
            trainer.fit(run.module, datamodule=run.data)
            return
        run_dir = Path(config.run_dir)
        was_there = run_dir.exists()
        try:
            _fit_into_folder(run, config, checkpoint, prepare)
        except BaseException as end:
            if trainer.is_global_zero:
                if not was_there:
                    remove_if_empty(run_dir)
                if isinstance(end, SystemExit) and was_stopped(end):
                    sys.stderr.write(f"\nStopped. {how_to_go_on(run_dir)}\n")
            raise


def _find_checkpoint(trainer: Trainer, config: Namespace, lock: ExitStack) -> Path | None:
    """Lock the run folder, and find the checkpoint that a fit resumes from."""
    run_dir, resumes = Path(config.run_dir), config.resume != "never"
    if not config.trainer.fast_dev_run and trainer.is_global_zero:
        wait = SECONDS_TO_WAIT if resumes else 0.0
        lock.enter_context(exclusive_output(run_dir, "run_dir", wait_seconds=wait))
        check_run_folder(run_dir, config.existing_run, resumes=resumes)
    return find_checkpoint(config.resume, run_dir)


def _fit_into_folder(
    run: Run, config: Namespace, checkpoint: Path | None, prepare: Callable[[Run], None]
) -> None:
    """Claim the run folder, fit, and end with an error if files of it were deleted meanwhile."""
    trainer, run_dir = run.trainer, Path(config.run_dir)
    decided_by_rank_zero(trainer, partial(_claim_folder, trainer, config, checkpoint))
    run.module.start_folder = run_dir
    trainer.loggers = [
        *build_loggers(run_dir, WandbOptions(**vars(config.wandb))),
        *trainer.loggers,
    ]
    watch = FolderWatch(run_dir, NEVER_DELETED)
    prepare(run)
    trainer.callbacks.insert(0, callbacks.DeletedFiles(watch))  # type: ignore[attr-defined]
    trainer.fit(run.module, datamodule=run.data)
    if trainer.is_global_zero:
        watch.look()
        watch.check()


def _claim_folder(trainer: Trainer, config: Namespace, checkpoint: Path | None) -> None:
    if not trainer.is_global_zero:
        return
    run_dir = Path(config.run_dir)
    claim_run_folder(run_dir, config.existing_run, resumes=config.resume != "never")
    start = run_dir / START_FILE
    origin = checkpoint or (start if start.exists() else None)
    if origin is not None:
        print(f"Going on from {origin}", file=sys.stderr, flush=True)


def _check_callbacks_package() -> None:
    """Refuse another top-level package called `callbacks` that hides ours."""
    ours = Path(__file__).resolve().parents[1] / "callbacks"
    found = Path(str(callbacks.__file__)).resolve().parent
    if found != ours:
        raise UserError(
            f"two packages are called 'callbacks': {found} hides {ours}. Remove or rename the "
            "first, or start the program from another folder."
        )
