"""From a configuration to a run: `fit`, `validate` and `test`, from the command line and in Python.

`resolve_config` parses and checks options, `build_run` makes module, data module and Trainer, and
`execute_run` runs them; a fit first takes its folder.
"""

import inspect
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NamedTuple

import lightning
from jsonargparse import ActionConfigFile, Namespace, lazy_instance
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.plugins.environments import SLURMEnvironment

import callbacks
from pgprune_lightning.atomic_write import write_atomically
from pgprune_lightning.console import OneLineErrorParser, quiet_libraries
from pgprune_lightning.credentials import refuse_secrets
from pgprune_lightning.data.data_module import TokenBlocksDataModule
from pgprune_lightning.errors import UserError
from pgprune_lightning.folder_lock import SECONDS_TO_WAIT, exclusive_output
from pgprune_lightning.option_messages import restrict_class_paths
from pgprune_lightning.stop_signals import exit_at_stop_signals, was_stopped
from pgprune_lightning.training import PolicyGradientPruning
from pgprune_lightning.training.checkpoints import (
    CrashSafeCheckpointIO,
    find_checkpoint,
    read_policy,
)
from pgprune_lightning.training.loggers import WandbOptions, build_loggers, own_wandb_run
from pgprune_lightning.training.other_ranks import decided_by_rank_zero, report_lost_children
from pgprune_lightning.training.run_folder import (
    NEVER_DELETED,
    START_FILE,
    ExistingRun,
    FolderWatch,
    check_run_folder,
    claim_run_folder,
    how_to_go_on,
    remove_if_empty,
)
from pgprune_lightning.training.trainer_options import (
    TRAINER_DEFAULTS,
    check_fixed,
    check_length,
    check_trainer,
)

Command = Literal["fit", "validate", "test"]
Given = Mapping[str, Any] | Sequence[str] | str | Path | Namespace
"""A configuration: nested options, arguments of the command line, a file, or resolved options."""

CALLBACKS = {
    "perplexity_validation": callbacks.PerplexityValidation,
    "mask_checkpoint": callbacks.MaskCheckpoint,
    "baseline_tracker": callbacks.BaselineTracker,
    "sparsity_tracker": callbacks.SparsityTracker,
    "policy_pictures": callbacks.PolicyPictures,
    "rank_agreement": callbacks.RankAgreement,
    "training_progress": callbacks.TrainingProgress,
    "outcome_report": callbacks.OutcomeReport,
    "checkpoint": callbacks.RunCheckpoint,
    "preemption": callbacks.Preemption,
}
"""The callbacks of every run, by the option that configures each."""


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


# Options.


class RunParser(OneLineErrorParser):
    """Parses the options of a run; fills in the estimator when it writes them out."""

    module_class: type[PolicyGradientPruning] = PolicyGradientPruning

    def dump(self, namespace: Namespace, *arguments: Any, **options: Any) -> str:
        """Write a configuration as YAML."""
        if "model" in namespace:  # not where only the options of one class are written
            namespace = namespace.clone()
            _fill_in_estimator(namespace, self.module_class)
        text: str = super().dump(namespace, *arguments, **options)
        return text


@cache
def run_parser(
    command: Command = "fit", module_class: type[PolicyGradientPruning] = PolicyGradientPruning
) -> RunParser:
    """The parser of a command. Making it takes long, so a process makes it once.

    Args:
        command: Named in errors and help.
        module_class: Its arguments are the options `model`.
    """
    parser = RunParser(
        prog=f"pgprune {command}",
        description="The options of fit, validate and test. docs/commands/fit.md explains them.",
        dump_header=[f"lightning.pytorch=={lightning.__version__}"],
    )
    parser.module_class = module_class
    parser.add_argument(
        *("-c", "--config"), action=ActionConfigFile, help="Configuration file, YAML or JSON."
    )
    parser.add_argument(
        "--seed_everything",
        type=bool | int,
        default=0,
        help="Seed of masks, text order and everything else that is drawn.",
    )
    parser.add_lightning_class_args(Trainer, "trainer")
    parser.set_defaults({f"trainer.{name}": value for name, value in TRAINER_DEFAULTS.items()})
    parser.add_lightning_class_args(module_class, "model")
    parser.add_lightning_class_args(TokenBlocksDataModule, "data")
    _add_run_arguments(parser)
    for name, callback in CALLBACKS.items():
        parser.add_lightning_class_args(callback, name)
    targets = ("trainer.default_root_dir", *(f"{name}.run_dir" for name in _WRITING))
    for target in targets:
        parser.link_arguments("run_dir", target)
    parser.link_arguments("seed_everything", "model.seed")
    parser.link_arguments("seed_everything", "data.seed")
    return parser


_WRITING = ("mask_checkpoint", "outcome_report", "checkpoint")
"""The callbacks that write into the run folder."""


def _add_run_arguments(parser: RunParser) -> None:
    parser.add_argument(
        "--run_dir",
        type=str,
        default="runs/default",
        help="Folder of this run: plans, checkpoints, metrics, resolved configuration.",
    )
    parser.add_argument(
        "--existing_run",
        type=ExistingRun,
        default="stop",
        help="If the folder already holds a run: stop with an error, or move the old run "
        "aside to RUN_DIR-1, -2, ...; nothing is ever overwritten.",
    )
    parser.add_argument(
        "--resume",
        type=str,
        default="never",
        help="What fit goes on from: `auto`, the newest checkpoint in RUN_DIR that loads, or "
        "the start if there is none yet; the PATH of a checkpoint; or `never`.",
    )
    parser.add_argument(
        "--ckpt_path",
        type=str | None,
        default=None,
        help="Checkpoint whose policy validate and test measure, such as "
        "RUN_DIR/checkpoints/last.ckpt; fit goes on by --resume.",
    )
    parser.add_class_arguments(WandbOptions, "wandb")


def resolve_config(
    given: Given,
    command: Command = "fit",
    module_class: type[PolicyGradientPruning] = PolicyGradientPruning,
) -> Namespace:
    """Parse a configuration and refuse what can be seen to be wrong without a model.

    Args:
        given: The configuration; resolved options are returned unchanged.
        command: The command that will use it.
        module_class: What is run; its arguments are the options `model`.

    Returns:
        All options.

    Raises:
        UserError: If something has to be changed by the user.
    """
    if isinstance(given, Namespace):
        return given
    if isinstance(given, (str, Path)):
        given = ("--config", str(given))
    elif isinstance(given, Mapping):
        given = ("--config", json.dumps(plain(given)))
    restrict_class_paths()  # the environment may have changed since the parser was made
    config: Namespace = run_parser(command, module_class).parse_args(list(given))  # type: ignore[arg-type]
    _check(config, command, given)
    check_fixed(config.trainer)
    if command == "fit" and not config.trainer.fast_dev_run:
        check_length(config.trainer)
    _fill_in_estimator(config, module_class)
    if config.data.tokenizer is None:
        config.data.tokenizer = config.model.base_model
    return config


def _check(config: Namespace, command: Command, arguments: Sequence[str]) -> None:
    if command == "fit" and config.ckpt_path is not None:
        raise UserError(
            f"ckpt_path: fit goes on from a checkpoint by --resume {config.ckpt_path}, or by "
            "--resume auto from the newest of its folder."
        )
    # The config.yaml of a run that was resumed may be given; the option may not.
    if command != "fit" and any(each.partition("=")[0] == "--resume" for each in arguments):
        raise UserError(
            f"resume: is an option of fit; {command} measures the checkpoint given by --ckpt_path."
        )
    seed = config.seed_everything
    if isinstance(seed, bool) or not 0 <= seed < 2**32:
        raise UserError(f"seed_everything: must be a number from 0 to 2^32 - 1, given {seed}.")
    if config.trainer.precision not in (None, "32-true", "32", 32):
        raise UserError(
            f"trainer.precision: it is that of the policy, which needs 32-true, given "
            f"{config.trainer.precision}. For the language model set model.execution.dtype."
        )
    refuse_secrets(plain(config.as_dict()))
    if config.ckpt_path is not None:
        read_policy(config.ckpt_path)


def _fill_in_estimator(config: Namespace, module_class: type[PolicyGradientPruning]) -> None:
    """Fill in the estimator that the policy chooses, if none is given."""
    model = config.model
    if module_class.uses_estimator and model.estimator is None and model.policy is not None:
        module, _, name = model.policy.class_path.rpartition(".")
        chosen = getattr(import_module(module), name).default_estimator()
        parameters = inspect.signature(chosen).parameters
        options = {name: parameter.default for name, parameter in parameters.items()}
        model.estimator = lazy_instance(chosen, **options).lazy_get_init_data()


def plain(value: Any) -> Any:
    """Convert to primitives, for loggers and YAML."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


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
        writing = tuple(CALLBACKS[name] for name in _WRITING)
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
