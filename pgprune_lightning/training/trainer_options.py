"""Which of the Trainer's options a run takes: the others would do nothing here, or harm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from pgprune_lightning.errors import UserError

TRAINER_DEFAULTS = {
    "max_epochs": -1,
    "max_steps": 1000,
    "check_val_every_n_epoch": None,
    "val_check_interval": 100,
    "num_sanity_val_steps": -1,
    "log_every_n_steps": 10,
    "devices": 1,
    "precision": "32-true",
    "use_distributed_sampler": False,
    "inference_mode": False,
    "logger": False,
    "enable_model_summary": False,
}
"""What a run of policy-gradient pruning needs of the Trainer.

Validation counts steps and not epochs; the sanity check over the whole validation text measures
the untrained mask; the precision is the policy's (`model.execution.dtype` is the frozen model's).
Every pass is under `no_grad`; inference mode, no faster here, does not go with a shared model.
"""

_NO_EPOCH = "the training text is read again and again, and an epoch has no end"
_CLIPPING = (
    "a step moves probabilities; bound it by model.update.lr, or model.update.lr_rule: rms_change"
)
FIXED: dict[str, tuple[tuple[Any, ...], str]] = {
    "max_epochs": (
        (-1, None),
        f"{_NO_EPOCH}. Give trainer.max_steps: one pass over N blocks of text is "
        "N / data.batch_size steps",
    ),
    # Of itself a Trainer with min_steps makes it 1, and then ends for no max_time.
    "min_epochs": ((None, 0), f"{_NO_EPOCH}. Give trainer.min_steps"),
    "check_val_every_n_epoch": (
        (None,),
        f"{_NO_EPOCH}. Give trainer.val_check_interval, in steps",
    ),
    "reload_dataloaders_every_n_epochs": ((0,), _NO_EPOCH),
    "overfit_batches": ((0.0, 0), "to learn on less text, set data.train.num_blocks"),
    "limit_train_batches": (
        (None, 1.0),
        "to learn on less text, set data.train.num_blocks; to take fewer steps, trainer.max_steps",
    ),
    # A comparison sets 0; a fit refuses it, since nothing would be validated.
    "limit_val_batches": ((None, 1.0, 0, 0.0), "to read less, set data.validation.num_blocks"),
    "limit_test_batches": ((None, 1.0), "to read less, set num_blocks of the texts of data.test"),
    "limit_predict_batches": ((None, 1.0), "no command predicts"),
    "accumulate_grad_batches": (
        (1,),
        "each batch is a step. For more text in a step raise data.batch_size, for more masks "
        "model.objective.num_mask_samples",
    ),
    "gradient_clip_val": ((None,), _CLIPPING),
    "gradient_clip_algorithm": ((None,), _CLIPPING),
    "use_distributed_sampler": ((False,), "the text is shared out among the ranks without it"),
    "sync_batchnorm": ((False,), "nothing that learns has batch statistics"),
    "barebones": ((False,), "the best mask is found by the validation that it turns off"),
    "enable_checkpointing": (
        (None, True),
        "checkpoints are what a run goes on from; checkpoint.every_n_train_steps and "
        "checkpoint.keep make them fewer",
    ),
    "enable_model_summary": ((False, None), "what is pruned is said when a run starts"),
    "model_registry": ((None,), "a plan becomes a model by `export`, and is uploaded by hand"),
}
"""Options of the Trainer that make no sense here: the values they may have, and what to do."""

OTHER_CALLBACKS: dict[type, str] = {
    lightning_callbacks.EarlyStopping: "use callbacks.EarlyStop",
    lightning_callbacks.Timer: "use trainer.max_time",
    **dict.fromkeys(
        (
            lightning_callbacks.BackboneFinetuning,
            lightning_callbacks.BaseFinetuning,
            lightning_callbacks.BatchSizeFinder,
            lightning_callbacks.GradientAccumulationScheduler,
            lightning_callbacks.LearningRateFinder,
            lightning_callbacks.ModelPruning,
            lightning_callbacks.StochasticWeightAveraging,
            lightning_callbacks.WeightAveraging,
        ),
        "it changes how weights are trained, and no weight is trained here",
    ),
}
"""Lightning's callbacks that a run does not take, and what to do instead."""


def check_fixed(options: Mapping[str, Any]) -> None:
    """Refuse options that make no sense here.

    Args:
        options: Of the Trainer, by name; those that are not in `FIXED` are not looked at.

    Raises:
        UserError: There is one.
    """
    for name in options.keys() & FIXED.keys():
        allowed, reason = FIXED[name]
        given = options[name]
        if not any(given == value and type(given) is type(value) for value in allowed):
            raise UserError(
                f"trainer.{name}: leave it at {_yaml(allowed[0])}, given {_yaml(given)}: {reason}."
            )


def check_length(options: Mapping[str, Any]) -> None:
    """Refuse a fit that has no end, no step, or no validation of what it learns.

    Args:
        options: All of the Trainer's.

    Raises:
        UserError: It is one.
    """
    steps, least, every = (
        options[name] for name in ("max_steps", "min_steps", "val_check_interval")
    )
    if steps == -1 and options["max_time"] is None:
        raise UserError(
            "trainer.max_steps: -1 has no end; give a number of steps, or trainer.max_time besides."
        )
    if steps == 0:
        raise UserError(
            "trainer.max_steps: must be 1 or more, given 0. The untrained mask is measured by "
            "pgprune validate and pgprune test."
        )
    if least is not None and 0 < steps < least:
        raise UserError(
            f"trainer.min_steps: is {least}, but trainer.max_steps is {steps}; give less."
        )
    if every is None or (isinstance(every, (int, float)) and (every < 1 or every % 1)):
        raise UserError(
            "trainer.val_check_interval: must be a number of steps, 1 or more, or a time such as "
            f"00:00:30:00; given {_yaml(every)}. The best mask is chosen by validation."
        )
    if isinstance(every, float):
        raise UserError(f"trainer.val_check_interval: write {every:.0f}, given {every}.")
    _warn_of_steps_without_validation(steps, every)


def _warn_of_steps_without_validation(steps: int, every: Any) -> None:
    if not isinstance(every, int) or steps < 1 or steps % every == 0:
        return
    lost = (
        "no learned mask is validated, and the run returns the untrained one"
        if every > steps
        else f"the last {steps % every} steps are not validated, and their masks are not returned"
    )
    rank_zero_warn(
        f"trainer.max_steps is {steps} and trainer.val_check_interval {every}: {lost}.",
        category=UserWarning,
    )


def check_trainer(trainer: Trainer, *, has_max_time: bool) -> None:
    """Refuse strategies, plugins and callbacks that do not go with a policy.

    Args:
        trainer: The Trainer, just made.
        has_max_time: Whether it has made a callback of `max_time` itself.

    Raises:
        UserError: There is one.
    """
    if not isinstance(trainer.strategy, (DDPStrategy, SingleDeviceStrategy)):
        raise UserError(
            f"trainer.strategy: must be auto or ddp, given {type(trainer.strategy).__name__}. A "
            "model too large for a device is shared by model.execution.shard."
        )
    if trainer.precision != "32-true":
        raise UserError(
            f"trainer.plugins: the policy needs precision 32-true, given {trainer.precision}. For "
            "the language model set model.execution.dtype."
        )
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        for kind, instead in OTHER_CALLBACKS.items():
            if type(callback) is kind and not (has_max_time and kind is lightning_callbacks.Timer):
                raise UserError(f"trainer.callbacks: leave {kind.__name__} out: {instead}.")


def _yaml(value: Any) -> str:
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else str(value)
