"""`variance`: how far the gradient estimates of several estimators scatter at one policy."""

# No `from __future__ import annotations`: the command line reads these types.
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from pgprune_lightning.atomic_write import write_atomically
from pgprune_lightning.commands.experiment_options import command_line
from pgprune_lightning.comparison import load_experiment
from pgprune_lightning.console import OneLineErrorParser, quiet_libraries
from pgprune_lightning.evaluation import provenance
from pgprune_lightning.folder_lock import exclusive_output
from pgprune_lightning.masking.model_reuse import one_model_kept
from research.gradient_variance import gradient_variance

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
