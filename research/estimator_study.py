"""The study of estimators: recipes at equal passes, back-propagation at equal time, one summary."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pgprune_lightning.atomic_write import write_atomically
from pgprune_lightning.comparison.cell import cells_of
from pgprune_lightning.comparison.cell_folder import ExistingCells
from pgprune_lightning.comparison.comparison_run import run_comparison
from pgprune_lightning.comparison.experiment import Experiment
from pgprune_lightning.comparison.results import Results
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


def run_study(study: Study, output: Path, existing: ExistingCells, command: str) -> bool:
    """Run what is not there yet, and write the summary.

    Args:
        study: What is run.
        output: Folder of the summary and of the comparisons.
        existing: What to do with cells that were computed with other options.
        command: How the program was called.

    Returns:
        Whether every cell is there.

    Raises:
        UserError: If something has to be changed by the user.
    """
    study.check()
    if study.equal_time is not None:
        cells_of(study.equal_time, output / EQUAL_TIME_FOLDER)  # its options, while that is cheap
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
        # Whole seconds, so that a cell is found again where the mean is rounded otherwise.
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
