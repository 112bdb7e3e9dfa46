"""`variance`: how far gradient estimates scatter at one policy, by running `fit` without moving.

Shapes: U units.
"""

# No `from __future__ import annotations`: the command line reads these types.
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from pgprune_lightning.atomic_write import write_atomically
from pgprune_lightning.commands.experiment_options import command_line
from pgprune_lightning.comparison import load_experiment
from pgprune_lightning.comparison.experiment import Experiment
from pgprune_lightning.comparison.trial import trial_arguments
from pgprune_lightning.comparison.trial_run import measure_making
from pgprune_lightning.console import OneLineErrorParser, quiet_libraries
from pgprune_lightning.errors import UserError
from pgprune_lightning.evaluation import provenance
from pgprune_lightning.folder_lock import exclusive_output
from pgprune_lightning.masking.model_reuse import one_model_kept
from pgprune_lightning.run import build_run

STAY = 1e-300
"""A step size that is positive, and too small to change any probability."""


class GradientMoments(Callback):
    """Gathers mean and variance of the gradient over the last nine tenths of a run's steps.

    In the first tenth a baseline settles.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean_U = torch.zeros(())
        self.squares_U = torch.zeros(())

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take in the gradient of the step just taken."""
        del outputs, batch, batch_idx
        if trainer.global_step > trainer.max_steps // 10:
            self.add(pl_module.policy.keep_probabilities.grad.detach().cpu())

    def add(self, gradient_U: Tensor) -> None:
        """Take in a gradient, (U,), float64."""
        # Welford's sums: squares of means would cancel.
        self.count += 1
        before_U = gradient_U - self.mean_U
        self.mean_U = self.mean_U + before_U / self.count
        self.squares_U = self.squares_U + before_U * (gradient_U - self.mean_U)

    @property
    def variance(self) -> Tensor:
        """Sample variance of each unit's gradient, (U,), float64."""
        return self.squares_U / (self.count - 1)


def gradient_variance(experiment: Experiment) -> dict[str, dict[str, float]]:
    """Measure every row of an experiment at its start, each step with its own text and masks.

    Args:
        experiment: Rows of kind `learned` in one setting, of `trainer.max_steps` steps each. The
            first seed is used; `model.update.lr` is not.

    Returns:
        By row: `variance`, the sum over units of the variance of a step's gradient by the
        keep-probabilities, in (nats per token)^2; `scaled_variance`, the same with each unit
        weighted by s (1 - s), in which an unlikely draw at a certain unit counts for what it can
        change; `squared_gradient` and `scaled_squared_gradient`, of the mean gradient, without
        bias, which all unbiased rows share; `passes_per_step`, of 8 x 128 tokens; the product of
        either variance with it, `..._per_pass`: what as many passes bring the mean of steps to;
        `steps`.

    Raises:
        UserError: If a row cannot be measured.
    """
    (setting,) = list(experiment.settings)[:1]
    results = {}
    for name, method in experiment.methods.items():
        if method.kind != "learned" or len(experiment.settings) > 1:
            raise UserError(f"methods.{name}: only learned rows, in one setting, have a variance.")
        results[name] = _measured(trial_arguments(experiment, setting, name), experiment.seeds[0])
    return results


def _measured(arguments: list[str], seed: int) -> dict[str, float]:
    own = [
        *(
            f"--seed_everything={seed}",
            f"--model.update.lr={STAY}",
            "--model.update.lr_schedule=constant",
        ),
        *("--trainer.num_sanity_val_steps=0", "--trainer.limit_val_batches=0"),
    ]
    moments = GradientMoments()  # in place of everything that observes and saves
    module, data, trainer, making = measure_making(build_run([*arguments, *own]), moments)
    trainer.fit(module, datamodule=data)
    making.stop()
    s_U = module.policy.keep_probabilities.detach().cpu()
    passes = making.counter.passes["training"] / trainer.global_step
    return _summary(moments, s_U, passes)


def _summary(moments: GradientMoments, s_U: Tensor, passes: float) -> dict[str, float]:
    weights_U = s_U * (1 - s_U)
    values: dict[str, float] = {"steps": moments.count, "passes_per_step": passes}
    for prefix, scale_U in (("", torch.ones_like(s_U)), ("scaled_", weights_U)):
        variance = float(scale_U @ moments.variance)
        signal = float(scale_U @ moments.mean_U.square()) - variance / moments.count
        values[f"{prefix}variance"] = variance
        values[f"{prefix}variance_per_pass"] = variance * passes
        values[f"{prefix}squared_gradient"] = signal
    assert all(math.isfinite(value) for value in values.values()), values
    return values


DESCRIPTION = (
    "Holds the policy at its start and measures the variance of the gradient that each row of an "
    "experiment file estimates, by step and by pass of 8 x 128 tokens. Start with: pgprune "
    "variance --config configs/experiments/estimators/variance.yaml --output runs/variance.json"
)


def main(arguments: Sequence[str]) -> int:
    """Run the command.

    Args:
        arguments: What follows `variance`.

    Returns:
        The exit status, 0.

    Raises:
        UserError: If it cannot be measured.
    """
    quiet_libraries()
    given = variance_parser().parse_args(list(arguments))
    output, experiment = Path(given.output), load_experiment(Path(given.config))
    with exclusive_output(output, "--output"):
        with one_model_kept():
            rows = gradient_variance(experiment)
        command = command_line("variance", arguments)
        results = {
            "title": experiment.title,
            "pass": "8 x 128 tokens",
            "provenance": provenance(torch.device("cpu")) | {"command": command},
            "estimators": rows,
        }
        write_atomically(output, json.dumps(results, indent=1, allow_nan=False).encode())
    for name, row in rows.items():
        print(
            f"{name}: variance of a pass {row['variance_per_pass']:.4g} (nats per token)^2, "
            f"weighted by s (1 - s) {row['scaled_variance_per_pass']:.4g}; squared gradient "
            f"{row['scaled_squared_gradient']:.3g}"
        )
    print(f"Written to {given.output}")
    return 0


def variance_parser() -> OneLineErrorParser:
    """The command's own options."""
    parser = OneLineErrorParser(prog="pgprune variance", description=DESCRIPTION)
    parser.add_argument(
        "--config",
        type=str,
        required=True,
        help="Experiment file; its rows, of kind learned, are the estimators.",
    )
    parser.add_argument("--output", type=str, required=True, help="JSON file of the results.")
    return parser
