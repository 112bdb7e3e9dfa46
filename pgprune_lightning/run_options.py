"""The options of a run: the parser of `fit`, `validate` and `test`, and their first checks."""

import inspect
import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import lightning
from jsonargparse import ActionConfigFile, Namespace, lazy_instance
from lightning.pytorch import Trainer

import callbacks
from pgprune_lightning.console import OneLineErrorParser
from pgprune_lightning.credentials import refuse_secrets
from pgprune_lightning.data.data_module import TokenBlocksDataModule
from pgprune_lightning.errors import UserError
from pgprune_lightning.option_messages import restrict_class_paths
from pgprune_lightning.training import PolicyGradientPruning
from pgprune_lightning.training.checkpoints import (
    read_policy,
)
from pgprune_lightning.training.loggers import WandbOptions
from pgprune_lightning.training.run_folder import (
    ExistingRun,
)
from pgprune_lightning.training.trainer_options import (
    TRAINER_DEFAULTS,
    check_fixed,
    check_length,
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
    targets = ("trainer.default_root_dir", *(f"{name}.run_dir" for name in WRITING_CALLBACKS))
    for target in targets:
        parser.link_arguments("run_dir", target)
    parser.link_arguments("seed_everything", "model.seed")
    parser.link_arguments("seed_everything", "data.seed")
    return parser


WRITING_CALLBACKS = ("mask_checkpoint", "outcome_report", "checkpoint")
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
