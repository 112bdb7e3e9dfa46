"""Running all trials of an experiment, and writing what comes of them."""

from __future__ import annotations

import gc
import json
import sys
import traceback
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pgprune_lightning.atomic_write import remove_temp_files, write_atomically
from pgprune_lightning.comparison import figures, tables
from pgprune_lightning.comparison.cache_key import digest_of
from pgprune_lightning.comparison.experiment import Experiment
from pgprune_lightning.comparison.measurement import check_extras
from pgprune_lightning.comparison.results import Results, collect
from pgprune_lightning.comparison.trial import (
    ExistingTrials,
    Trial,
    TrialResult,
    begin,
    check_folders,
    copy_finished,
    finish,
    finished_result,
    trials_of,
)
from pgprune_lightning.comparison.trial_run import compute_trial
from pgprune_lightning.console import print_error
from pgprune_lightning.errors import UserError
from pgprune_lightning.evaluation.table import perplexity
from pgprune_lightning.masking.model_reuse import one_model_kept
from pgprune_lightning.number_text import seconds_text
from pgprune_lightning.progress import progress_bar

LOG_FILE = "log.txt"


def run_comparison(
    experiment: Experiment, output: Path, existing: ExistingTrials, command: str
) -> bool:
    """Compute the trials that are not there yet, then write tables, pictures and `compare.json`.

    Args:
        experiment: What is compared.
        output: Folder of the results.
        existing: What to do with trials that were computed with other options.
        command: How the program was called.

    Returns:
        Whether every trial is there, and on the disk.

    Raises:
        UserError: If a trial's options cannot work, before any of them is computed.
    """
    trials = trials_of(experiment, output)
    check_folders(trials, existing)
    remove_temp_files(output)
    check_extras(experiment, [trial for trial in trials if finished_result(trial) is None])
    title = experiment.title
    print(f"{title}: {len(trials)} trials, each with a log in {output}/trials", flush=True)
    finished: list[tuple[Trial, TrialResult]] = []
    errors: list[tuple[Trial, str]] = []
    on_terminal = sys.stderr.isatty()  # elsewhere a line for each trial says as much
    bar = progress_bar(total=len(trials), desc="trials", leave=False, disable=not on_terminal)
    with one_model_kept(), bar:
        for trial in trials:
            bar.set_postfix_str(trial.title)
            try:
                finished.append((trial, _result(trial, experiment, finished)))
            except Exception as error:  # other trials are worth having without this one
                errors.append((trial, _report(trial, error)))
            bar.update()
    _write(experiment, collect(experiment, finished, errors, command), output)
    deleted = [trial for trial, _ in finished if finished_result(trial) is None]
    for trial in deleted:
        print_error(
            f"{trial.title}: {trial.folder}, or a part of it, was deleted during the run. The "
            "tables have its numbers; the same command computes it again."
        )
    return not (errors or deleted)


def _result(
    trial: Trial, experiment: Experiment, finished: Sequence[tuple[Trial, TrialResult]]
) -> TrialResult:
    result = finished_result(trial)
    origin = "from an earlier run"
    if result is None:
        digest = digest_of(trial.cache_key)
        same = [other for other, _ in finished if digest_of(other.cache_key) == digest]
        origin = f"as in {same[0].setting} / {same[0].method}" if same else ""
        result = copy_finished(same[0], trial) if same else _computed(trial, experiment)
    _print_result(trial, experiment, result, origin)
    return result


def _computed(trial: Trial, experiment: Experiment) -> TrialResult:
    begin(trial)
    # Line by line, so that a long run can be watched.
    with (
        (trial.folder / LOG_FILE).open("a", buffering=1) as log,
        redirect_stdout(log),
        redirect_stderr(log),
    ):
        try:
            result = compute_trial(trial, experiment)
        except Exception:
            traceback.print_exc()
            raise
    finish(trial, result)
    gc.collect()  # Trainer and module refer to each other, and to the model
    return result


def _print_result(trial: Trial, experiment: Experiment, result: TrialResult, origin: str) -> None:
    shown = [
        f"{perplexity(result[f'perplexity_{length}'])} at {length}"
        for length in experiment.evaluation_lengths
    ]
    made = origin or f"made in {seconds_text(result['seconds'])}"
    with tqdm.external_write_mode():
        print(f"{trial.title}: perplexity {', '.join(shown)}; {made}", flush=True)


def _report(trial: Trial, error: Exception) -> str:
    message = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    with tqdm.external_write_mode():
        print_error(f"{trial.title}: {message} (all of it: {trial.folder / LOG_FILE})")
        sys.stderr.flush()
    return message


def _write(experiment: Experiment, results: Results, output: Path) -> None:
    files: dict[str, Any] = {
        "compare.json": json.dumps(results, indent=1, allow_nan=False),
        "table.md": tables.markdown(results),
        "table.csv": tables.csv_text(results),
    }
    for name, text in files.items():
        write_atomically(output / name, text.encode())
    drawn = figures.draw(experiment, results, output)
    tables.print_tables(results)
    print(f"Written to {output}: {', '.join([*files, *drawn])}")
