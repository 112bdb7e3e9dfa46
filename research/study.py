"""`study`: recipes compared at equal passes, and back-propagation at equal time."""

# No `from __future__ import annotations`: the command line reads these types.
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pgprune_lightning.atomic_write import write_atomically
from pgprune_lightning.commands.experiment_options import (
    add_experiment_options,
    command_line,
    run_into,
)
from pgprune_lightning.comparison import load_experiment
from pgprune_lightning.comparison.comparison_run import run_comparison
from pgprune_lightning.comparison.experiment import Experiment
from pgprune_lightning.comparison.results import Results
from pgprune_lightning.comparison.trial import ExistingTrials, trials_of
from pgprune_lightning.console import OneLineErrorParser, quiet_libraries
from pgprune_lightning.errors import UserError
from pgprune_lightning.record_file import read_object

SUMMARY_FILE = "summary.json"
RECIPES_FOLDER = "recipes"
EQUAL_TIME_FOLDER = "equal_time"

Summary = dict[str, Any]
"""What `summary.json` holds: primitives."""


@dataclass(frozen=True)
class Study:
    """What is run.

    Args:
        recipes: Its rows become the recipes of the summary.
        equal_time: Rows of kind `backpropagated` that are given the time of another; or None.
        as_long_as: The row of `recipes` whose time that is.
    """

    recipes: Experiment
    equal_time: Experiment | None = None
    as_long_as: str = "fast"

    def check(self) -> None:
        """Refuse what can be refused before anything is run.

        Raises:
            UserError: If time cannot be given as it is asked for.
        """
        if self.equal_time is None:
            return
        if self.as_long_as not in self.recipes.methods:
            raise UserError(
                f"as_long_as: the recipes have no row {self.as_long_as!r}; they have "
                f"{', '.join(self.recipes.methods)}."
            )
        for name, method in self.equal_time.methods.items():
            if method.kind != "backpropagated":
                raise UserError(
                    f"equal_time: methods.{name} is {method.kind}; only backpropagated rows end "
                    "with their time."
                )
            if name in self.recipes.methods:
                raise UserError(f"equal_time: methods.{name} is a row of the recipes too.")
        missing = self.equal_time.settings.keys() - self.recipes.settings.keys()
        if missing:
            raise UserError(f"equal_time: the recipes lack its settings {', '.join(missing)}.")


def run_study(study: Study, output: Path, existing: ExistingTrials, command: str) -> bool:
    """Run what is not there yet, and write the summary.

    Args:
        study: What is run.
        output: Folder of the summary and of the comparisons.
        existing: What to do with trials that were computed with other options.
        command: How the program was called.

    Returns:
        Whether every trial is there.

    Raises:
        UserError: If something has to be changed by the user.
    """
    study.check()
    if study.equal_time is not None:
        trials_of(study.equal_time, output / EQUAL_TIME_FOLDER)  # its options, while that is cheap
    folder = output / RECIPES_FOLDER
    complete = run_comparison(study.recipes, folder, existing, command)
    results = [_results(folder)]
    if study.equal_time is not None:
        timed = with_time_of(study.equal_time, results[0], study.as_long_as)
        folder = output / EQUAL_TIME_FOLDER
        complete &= run_comparison(timed, folder, existing, command)
        results.append(_results(folder))
    text = json.dumps(summarized(results), indent=1, allow_nan=False)
    write_atomically(output / SUMMARY_FILE, text.encode())
    print(f"Written to {output}: {SUMMARY_FILE}")
    return complete


def with_time_of(experiment: Experiment, results: Results, method: str) -> Experiment:
    """Give every setting of an experiment the seconds that a method took in it.

    Args:
        experiment: Rows of kind `backpropagated`.
        results: Those of the method, in at least the same settings.
        method: Whose mean time over seeds is given.

    Raises:
        UserError: If the method has no result in a setting.
    """
    settings = {}
    for label, options in experiment.settings.items():
        entry = results["settings"][label]["methods"].get(method)
        if entry is None:
            raise UserError(f"equal_time: {method} has failed at {label}, so its time is unknown.")
        # Whole seconds, so that a trial is found again where the mean is rounded otherwise.
        seconds = float(max(1, round(entry["seconds"])))
        settings[label] = options | {"model": options.get("model", {}) | {"seconds": seconds}}
    return replace(experiment, settings=settings)


def summarized(results: list[Results]) -> Summary:
    """Put the rows of comparisons together.

    Args:
        results: What `compare.json` of each holds; the first length of each is reported.

    Returns:
        `recipes.NAME.SETTING` with `perplexity`, one a seed; `passes`, forward ones of 8 x 128
        tokens of initialisation and training, with those of each, `validation_passes` and
        `backward_passes` beside them; `seconds`; the greatest `peak_memory_bytes`, of the whole
        process where the device is not CUDA, and `peak_memory_over_model_bytes`, less what the
        loaded model and the program take.
    """
    recipes: dict[str, dict[str, Any]] = {}
    for comparison in results:
        length = comparison["evaluation_lengths"][0]
        for label, name, entry in _rows(comparison):
            recipes.setdefault(name, {})[label] = _row(entry, f"perplexity_{length}")
    return {
        "title": results[0]["title"],
        "command": results[0]["command"],
        "pass": "8 x 128 tokens",
        "perplexity_at": results[0]["evaluation_lengths"][0],
        "provenance": results[0]["provenance"],
        "recipes": recipes,
        "errors": {name: text for r in results for name, text in r["errors"].items()},
    }


def _rows(comparison: Results) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for label, setting in comparison["settings"].items():
        for name, entry in setting["methods"].items():
            yield label, name, entry


def _row(entry: dict[str, Any], perplexity: str) -> dict[str, Any]:
    seeds = entry["seeds"]
    peaks = [seed["peak_memory_bytes"] for seed in seeds if seed.get("peak_memory_bytes")]
    added = [
        seed["peak_memory_bytes"] - seed["memory_before_bytes"]
        for seed in seeds
        if seed.get("peak_memory_bytes") and seed.get("memory_before_bytes")
    ]
    row = {
        "kind": entry["kind"],
        "seeds": [seed["seed"] for seed in seeds],
        "perplexity": [seed[perplexity] for seed in seeds],
        "seconds": entry["seconds"],
        "peak_memory_bytes": max(peaks, default=None),
        "peak_memory_over_model_bytes": max(added, default=None),
        "parameters": entry["parameters"],
    }
    if "validation_perplexity" in entry:
        row["validation_perplexity"] = [seed["validation_perplexity"] for seed in seeds]
    if "passes" in entry:
        passes = entry["passes"]
        row["passes"] = passes["initialization"] + passes["training"]
        row |= {f"{name}_passes": count for name, count in passes.items()}
    return row


def _results(folder: Path) -> Results:
    return read_object(folder / "compare.json", "study")


DESCRIPTION = (
    "Compares recipes, then gives back-propagation the time that one of them took, and writes "
    "summary.json: perplexity of every seed, passes, seconds and peak memory by recipe and keep "
    "ratio. What is finished is not computed again. Start with: pgprune study --recipes "
    "configs/experiments/estimators/tiny.yaml --output runs/tiny_study"
)


def main(arguments: Sequence[str]) -> int:
    """Run the command.

    Args:
        arguments: What follows `study`.

    Returns:
        The exit status: 0, or 2 if a trial failed.

    Raises:
        UserError: If the study cannot be run as it is.
    """
    quiet_libraries()
    given = study_parser().parse_args(list(arguments))
    chosen = {"options": given.options, "seeds": given.seeds, "settings": given.settings}
    recipes = load_experiment(Path(given.recipes), **chosen)
    timed = None
    if given.equal_time is not None:
        timed = load_experiment(Path(given.equal_time), **chosen)
    output, command = Path(given.output), command_line("study", arguments)
    study = Study(recipes, timed, given.as_long_as)
    return run_into(output, lambda: run_study(study, output, given.existing, command))


def study_parser() -> OneLineErrorParser:
    """The command's own options."""
    parser = OneLineErrorParser(prog="pgprune study", description=DESCRIPTION)
    parser.add_argument(
        "--recipes", type=str, required=True, help="Experiment file whose rows are the recipes."
    )
    parser.add_argument(
        "--equal_time",
        type=str | None,
        default=None,
        help="Experiment file of back-propagation; each of its settings, named as those of the "
        "recipes, is given the seconds that the row as_long_as took there.",
    )
    parser.add_argument(
        "--as_long_as", type=str, default="fast", help="The row of the recipes with that time."
    )
    parser.add_argument(
        "--output", type=str, required=True, help="Folder of summary.json and all comparisons."
    )
    add_experiment_options(parser)
    return parser
