"""A run whose files are deleted while it is under way finishes its work and ends with an error."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import callbacks.outcome_report
from pgprune_lightning.comparison import comparison_run
from pgprune_lightning.recovery import finetuning_run
from pgprune_lightning.training.metrics_file import MetricsFile
from tests.run_traces import files_of
from tests.tiny_commands import AtStep, Outcome, TinyCommand, refused
from tests.tiny_experiments import Compare, results_in

EVERY_STEP = ("--checkpoint.every_n_train_steps=1", "--resume=auto")
PLANS = [f"plans/{name}/plan.json" for name in ("initial", "best", "last")]
ALL = ["config.yaml", "metrics.csv", "checkpoints/last.ckpt", *PLANS]
DELETED = {
    ".": ALL,
    "plans": PLANS,
    "checkpoints": ["checkpoints/last.ckpt"],
    "metrics.csv": ["metrics.csv"],
}
"""What is deleted in the fourth step, and what the error names."""


def _delete(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _contents(run_dir: Path) -> dict[str, Any]:
    """What is left, without the rows of earlier steps and the number of old checkpoints."""
    files = files_of(run_dir)
    files.pop("kept")
    header, *rows = files.pop("metrics").splitlines()
    return files | {"header": header, "rows": rows[-2:]}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first test leaves a run of which nothing is deleted."""
    return tmp_path_factory.mktemp("whole") / "run"


@pytest.mark.parametrize("name", DELETED)
def test_it_ends_with_an_error_and_loses_nothing_else(
    tiny_command: TinyCommand, at_step: AtStep, whole: Path, name: str
) -> None:
    run_dir = tiny_command.run_dir
    if not whole.exists():
        assert tiny_command("fit", *EVERY_STEP, f"--run_dir={whole}").status == 0
    at_step(4, lambda: _delete(run_dir / name))
    with pytest.warns(UserWarning, match="deleted during the run") as said:
        outcome = tiny_command("fit", *EVERY_STEP)
    named = ", ".join(DELETED[name])
    refused(outcome, f"{run_dir}: deleted during the run: {named}. ")
    assert "Still missing" not in outcome.err
    assert [named in str(w.message) for w in said if "deleted" in str(w.message)] == [True]
    assert _contents(run_dir) == _contents(whole)
    assert (run_dir / "config.yaml").exists()

    assert tiny_command("fit", *EVERY_STEP).status == 0
    assert _contents(run_dir) == _contents(whole)


def test_a_folder_that_is_deleted_during_the_report(
    tiny_command: TinyCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last files are written into a new folder; a resumed run brings the plans back."""
    measure, run_dir = callbacks.outcome_report._measure, tiny_command.run_dir

    def deleting(*arguments: Any) -> Any:
        _delete(run_dir)
        return measure(*arguments)

    monkeypatch.setattr(callbacks.outcome_report, "_measure", deleting)
    with pytest.warns(UserWarning, match="deleted during the run"):
        outcome = tiny_command("fit")
    refused(outcome, f"{run_dir}: deleted during the run: {', '.join(['metrics.csv', *PLANS])}. ")
    assert f"Still missing: {', '.join(PLANS)}; --resume auto" in outcome.err
    monkeypatch.undo()
    assert tiny_command("fit", "--resume=auto").status == 0
    assert (run_dir / "plans" / "best" / "plan.json").exists()
    assert (run_dir / "summary.json").exists()


def test_a_fine_tuning(
    finetune: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints are deleted while steps are taken, and the metrics after the last one."""
    pytest.importorskip("peft", reason="pip install -e '.[finetune]'")
    work = tmp_path / "tuned.unfinished"
    log, merge = MetricsFile.log_metrics, finetuning_run.merge

    def logging(self: MetricsFile, metrics: dict[str, float], step: int) -> None:
        log(self, metrics, step)
        if step == 3:
            _delete(work / "checkpoints")

    def merging(*arguments: Any) -> Any:
        _delete(work / "metrics.csv")
        return merge(*arguments)

    monkeypatch.setattr(MetricsFile, "log_metrics", logging)
    monkeypatch.setattr(finetuning_run, "merge", merging)
    with pytest.warns(UserWarning, match="deleted during the run") as said:
        outcome = finetune(tmp_path / "tuned")
    assert len([w for w in said if "deleted" in str(w.message)]) == 2
    refused(
        outcome,
        f"{work}: deleted during the run: checkpoints, metrics.csv. ",
        "Still missing: metrics.csv;",
    )
    assert {"finetune.json", "model.safetensors"} < {
        path.name for path in (tmp_path / "tuned").iterdir()
    }
    assert not work.exists()


def test_a_trial_of_a_comparison(
    compare: Compare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = {"dense": {"kind": "dense"}, "one": {"kind": "metric"}}
    chosen: dict[str, Any] = {"methods": methods, "seeds": [0], "picture": []}
    finish = comparison_run.finish

    def deleting(trial: Any, result: Any) -> None:
        finish(trial, result)
        if trial.method == "dense":
            _delete(trial.folder / "options.json")

    monkeypatch.setattr(comparison_run, "finish", deleting)
    outcome = compare(**chosen)
    assert outcome.status == 2
    error = outcome.err.splitlines()[-1]
    assert error.startswith("error: all / dense / seed 0: ")
    assert str(tmp_path / "out" / "trials" / "all" / "dense" / "seed0") in error
    assert "was deleted during the run" in error
    assert set(results_in(tmp_path)["methods"]) == {"dense", "one"}
    monkeypatch.undo()
    assert compare(**chosen).status == 0
