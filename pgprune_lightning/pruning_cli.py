"""`fit`, `validate` and `test`, by Lightning's command line interface."""

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins.environments import SLURMEnvironment

import callbacks
from pgprune_lightning.console import OneLineErrorParser, quiet_libraries
from pgprune_lightning.credentials import refuse_secrets
from pgprune_lightning.data.data_module import TokenBlocksDataModule
from pgprune_lightning.errors import UserError
from pgprune_lightning.folder_lock import SECONDS_TO_WAIT, exclusive_output
from pgprune_lightning.resolved_config import SaveResolvedConfig, fill_in_estimator, plain
from pgprune_lightning.stop_signals import exit_at_stop_signals, was_stopped
from pgprune_lightning.training import PolicyGradientPruning
from pgprune_lightning.training.checkpoints import (
    CrashSafeCheckpointIO,
    find_checkpoint,
    read_policy,
)
from pgprune_lightning.training.folder_watch import FolderWatch
from pgprune_lightning.training.loggers import WandbOptions, build_loggers, own_wandb_run
from pgprune_lightning.training.other_ranks import decided_by_rank_zero, report_lost_children
from pgprune_lightning.training.run_folder import (
    NEVER_DELETED,
    START_FILE,
    ExistingRun,
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


class PruningCLI(LightningCLI):
    """Adds a run folder, W&B and the standard callbacks to Lightning's command line."""

    checkpoint: Path | None = None
    """What a fit goes on from."""
    watch: FolderWatch
    """Of the folder that a fit writes."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        with ExitStack() as self._lock_on_folder:  # for all of the run, which is within
            super().__init__(*arguments, **options)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The Trainer's methods that are offered, and their arguments that are no options."""
        ours = {"model", "datamodule", "ckpt_path", "weights_only", "verbose"}
        return {
            "fit": ours | {"train_dataloaders", "val_dataloaders"},
            "validate": ours | {"dataloaders"},
            "test": ours | {"dataloaders"},
        }

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Declare what is not the module's, the data module's or the Trainer's."""
        parser.complete = fill_in_estimator  # type: ignore[attr-defined]
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
        parser.add_lightning_class_args(callbacks.PerplexityValidation, "perplexity_validation")
        parser.add_lightning_class_args(callbacks.MaskCheckpoint, "mask_checkpoint")
        parser.add_lightning_class_args(callbacks.BaselineTracker, "baseline_tracker")
        parser.add_lightning_class_args(callbacks.SparsityTracker, "sparsity_tracker")
        parser.add_lightning_class_args(callbacks.PolicyPictures, "policy_pictures")
        parser.add_lightning_class_args(callbacks.RankAgreement, "rank_agreement")
        parser.add_lightning_class_args(callbacks.TrainingProgress, "training_progress")
        parser.add_lightning_class_args(callbacks.OutcomeReport, "outcome_report")
        parser.add_lightning_class_args(callbacks.RunCheckpoint, "checkpoint")
        parser.add_lightning_class_args(callbacks.Preemption, "preemption")
        parser.link_arguments("run_dir", "trainer.default_root_dir")
        parser.link_arguments("run_dir", "mask_checkpoint.run_dir")
        parser.link_arguments("run_dir", "outcome_report.run_dir")
        parser.link_arguments("run_dir", "checkpoint.run_dir")
        parser.link_arguments("seed_everything", "model.seed")
        parser.link_arguments("seed_everything", "data.seed")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, and refuse what LightningCLI would stumble over."""
        super().parse_arguments(parser, args)
        config = self.config[self.config.subcommand]
        if self.config.subcommand == "fit" and config.ckpt_path is not None:
            raise UserError(
                f"ckpt_path: fit goes on from a checkpoint by --resume {config.ckpt_path}, or by "
                "--resume auto from the newest of its folder."
            )
        self.check(config)
        check_fixed(config.trainer)
        if self.config.subcommand == "fit" and not config.trainer.fast_dev_run:
            check_length(config.trainer)
        fill_in_estimator(config)
        if config.data.tokenizer is None:
            config.data.tokenizer = config.model.base_model

    @staticmethod
    def check(config: Any) -> None:
        """Refuse options of a subcommand that can be parsed and yet not be meant.

        Raises:
            UserError: If there is one.
        """
        seed = config.seed_everything
        if isinstance(seed, bool) or not 0 <= seed < 2**32:
            raise UserError(f"seed_everything: must be a number from 0 to 2^32 - 1, given {seed}.")
        if config.trainer.precision not in (None, "32-true", "32", 32):
            raise UserError(
                f"trainer.precision: it is that of the policy, which needs 32-true, given "
                f"{config.trainer.precision}. For the language model set model.dtype."
            )
        refuse_secrets(plain(config.as_dict()))
        if config.ckpt_path is not None:
            read_policy(config.ckpt_path)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """Leave out Lightning's table of results, which wraps the names of several texts."""
        quiet = {} if subcommand == "fit" else {"verbose": False}
        return super()._prepare_subcommand_kwargs(subcommand) | quiet

    def after_instantiate_classes(self) -> None:
        """Lock the run folder; check the model before it is changed or a text is read."""
        if self.config.subcommand == "fit":
            self.checkpoint = decided_by_rank_zero(self.trainer, self._find_checkpoint)
        self.model.setup(self.config.subcommand)
        self.model.check_lengths(self.datamodule)
        data = self.config[self.config.subcommand].data
        if data.bos_per_block is None:  # written down, so that the run says what it read
            data.bos_per_block = self.datamodule.bos_per_block = self.model.needs_bos
        # Set here and not given to fit(), which the module would learn of too late.
        measured = self.config[self.config.subcommand].ckpt_path
        self.trainer.ckpt_path = measured if self.checkpoint is None else str(self.checkpoint)

    def _find_checkpoint(self) -> Path | None:
        """What the run goes on from; no other process writes the folder from here on."""
        config, run_dir = self.config.fit, Path(self.config.fit.run_dir)
        if self._writes_run() and self.trainer.is_global_zero:
            wait = SECONDS_TO_WAIT if self._resumes() else 0.0
            lock = exclusive_output(run_dir, "run_dir", wait_seconds=wait)
            self._lock_on_folder.enter_context(lock)
            check_run_folder(run_dir, config.existing_run, resumes=self._resumes())
        return find_checkpoint(config.resume, run_dir)

    def instantiate_trainer(self, **options: Any) -> Trainer:
        """Build the Trainer; what it refuses, the user has asked of it."""
        config = self.config_init[self.config.subcommand].trainer
        options |= {
            "plugins": _plugins(config.plugins),
            "enable_progress_bar": True,  # without one, a Trainer refuses ours
            "min_epochs": 0,
        }
        try:
            trainer = super().instantiate_trainer(**options)
        except UserError:
            raise
        except (ImportError, TypeError, ValueError, MisconfigurationException) as error:
            raise UserError(f"trainer: {error}") from error
        check_trainer(trainer, has_max_time=config.max_time is not None)
        if config.enable_progress_bar is False:
            trainer.progress_bar_callback.disable()  # type: ignore[union-attr]
        if config.fast_dev_run:
            _leave_files_alone(trainer)
        return trainer

    def before_fit(self) -> None:
        """Take the run folder, and log into it."""
        if not self._writes_run():
            return
        run_dir = Path(self.config.fit.run_dir)
        decided_by_rank_zero(self.trainer, self._claim_folder)
        self.model.start_folder = run_dir
        own = build_loggers(run_dir, self.config_init.fit.wandb)
        self.trainer.loggers = [*own, *self.trainer.loggers]
        self.watch = FolderWatch(run_dir, NEVER_DELETED)
        observers: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        observers.insert(0, callbacks.DeletedFiles(self.watch))

    def after_fit(self) -> None:
        """Refuse to end well where files of the run were deleted."""
        if self._writes_run() and self.trainer.is_global_zero:
            self.watch.look()
            self.watch.check()

    def _claim_folder(self) -> None:
        config = self.config.fit
        if self.trainer.is_global_zero:
            claim_run_folder(Path(config.run_dir), config.existing_run, resumes=self._resumes())
            if self.checkpoint is not None:
                print(f"Going on from {self.checkpoint}", file=sys.stderr, flush=True)
            if self.checkpoint is None and (Path(config.run_dir) / START_FILE).exists():
                start = Path(config.run_dir) / START_FILE
                print(f"Going on from {start}", file=sys.stderr, flush=True)

    def _run_subcommand(self, subcommand: str) -> None:
        """Leave no empty folder, and say how to go on, where a signal ends a fit at once."""
        if not self._writes_run():
            super()._run_subcommand(subcommand)
            return
        run_dir = Path(self.config.fit.run_dir)
        was_there = run_dir.exists()
        try:
            super()._run_subcommand(subcommand)
        except BaseException as end:
            if self.trainer.is_global_zero:
                if not was_there:
                    remove_if_empty(run_dir)
                if isinstance(end, SystemExit) and was_stopped(end):
                    sys.stderr.write(f"\nStopped. {how_to_go_on(run_dir)}\n")
            raise

    def _writes_run(self) -> bool:
        return self.config.subcommand == "fit" and not self.config.fit.trainer.fast_dev_run

    def _resumes(self) -> bool:
        return bool(self.config.fit.resume != "never")


def _plugins(given: Any) -> list[Any]:
    """What the user asks for, and what every run needs."""
    own: list[Any] = [CrashSafeCheckpointIO()]
    if SLURMEnvironment.detect():
        own.append(SLURMEnvironment(auto_requeue=False))  # its handlers wait for other ranks
    others = given if isinstance(given, list) else [given]
    return [*(plugin for plugin in others if plugin is not None), *own]


def _leave_files_alone(trainer: Trainer) -> None:
    """A trial of some steps writes nothing: its folder may hold a run."""
    writing = (callbacks.MaskCheckpoint, callbacks.OutcomeReport, callbacks.RunCheckpoint)
    kept = [each for each in trainer.callbacks if not isinstance(each, writing)]  # type: ignore[attr-defined]
    trainer.callbacks = kept  # type: ignore[attr-defined]


def run_command(
    arguments: Sequence[str] | None = None,
    cli_class: type[PruningCLI] = PruningCLI,
    parser_class: type[LightningArgumentParser] = OneLineErrorParser,
    module_class: type[PolicyGradientPruning] = PolicyGradientPruning,
) -> PruningCLI:
    """Parse the arguments and run the subcommand they name.

    Args:
        arguments: What follows the program's name; None: `sys.argv`.
        cli_class: What is done with what was parsed.
        parser_class: How a mistake in the arguments is reported.
        module_class: What is run; its arguments are the options `model`.

    Raises:
        UserError: If something has to be changed by the user.
    """
    _check_callbacks_package()
    quiet_libraries()
    report_lost_children()
    with exit_at_stop_signals(), own_wandb_run():
        return cli_class(
            module_class,
            TokenBlocksDataModule,
            trainer_defaults=TRAINER_DEFAULTS,
            seed_everything_default=0,
            save_config_callback=SaveResolvedConfig,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=None if arguments is None else list(arguments),
            parser_class=parser_class,
            parser_kwargs={"prog": "pgprune"},
        )


def _check_callbacks_package() -> None:
    """Refuse another top-level package called `callbacks` that hides ours."""
    ours = Path(__file__).resolve().parents[1] / "callbacks"
    found = Path(str(callbacks.__file__)).resolve().parent
    if found != ours:
        raise UserError(
            f"two packages are called 'callbacks': {found} hides {ours}. Remove or rename the "
            "first, or start the program from another folder."
        )
