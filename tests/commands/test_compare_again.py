"""What a second comparison takes up, and what one trial leaves to the others."""

import json
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import callbacks
from pgprune_lightning.atomic_write import TEMPORARY
from pgprune_lightning.comparison import comparison_run
from tests.tiny_commands import refused
from tests.tiny_experiments import EXPERIMENT, Compare, results_in


def test_finished_trials_are_taken_and_only_what_changed_is_computed(
    compare: Compare, tmp_path: Path
) -> None:
    short = ("--seeds=[0]",)
    assert compare(*short).status == 0
    first = results_in(tmp_path)
    again = compare(*short)
    assert again.out.count("from an earlier run") == 5
    assert results_in(tmp_path)["methods"] == first["methods"]

    steps = (*short, "--options.trainer.max_steps=3")
    stopped = compare(*steps, "--existing=stop")
    assert stopped.status == 2
    assert "learned/seed0 was computed with other options (trainer.max_steps: 6, now 3)" in (
        stopped.err
    )
    changed = compare(*steps)
    assert changed.status == 0, changed.err
    assert changed.out.count("from an earlier run") == 4, "metrics take no steps"
    folder = tmp_path / "out" / "trials" / "all" / "learned"
    assert {path.name for path in folder.iterdir()} == {"seed0", "seed0-1"}
    assert results_in(tmp_path)["methods"]["learned"]["steps"] == 3
    assert json.loads((folder / "seed0-1" / "trial.json").read_text())["steps"] == 6


def test_a_stopped_comparison_says_what_is_kept_and_how_to_go_on(
    compare: Compare,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    methods = {name: EXPERIMENT["methods"][name] for name in ("dense", "wanda_sp")}
    compute = comparison_run.compute_trial

    def stopped(trial: Any, experiment: Any) -> Any:
        if trial.method == "wanda_sp":
            os.kill(os.getpid(), signal.SIGINT)
        return compute(trial, experiment)

    with monkeypatch.context() as patch:
        patch.setattr(comparison_run, "compute_trial", stopped)
        with pytest.raises(SystemExit, match="130"):
            compare(methods=methods, picture=None)
    error = capsys.readouterr().err
    assert f"Stopped. {tmp_path / 'out'} keeps the finished trials" in error
    assert "Start the same command again." in error
    again = compare(methods=methods, picture=None)
    assert again.status == 0, again.err
    assert again.out.count("from an earlier run") == 1


def test_a_text_too_short_to_be_measured_is_refused_before_training(
    compare: Compare, tmp_path: Path
) -> None:
    methods = {"learned": EXPERIMENT["methods"]["learned"]}
    options = {"data.test": [{"path": str(tmp_path / "short.txt"), "label": "short"}]}
    (tmp_path / "short.txt").write_text("a short text of a few words, and then a few more " * 3)
    changes = {"methods": methods, "options": options, "seeds": [0], "picture": None}
    failed = compare(**changes, evaluation_lengths=[2, 2000])
    assert failed.status == 2
    assert "too short for one block" in failed.err, failed.err
    run = tmp_path / "out" / "trials" / "all" / "learned" / "seed0" / "run"
    assert not list(run.glob("checkpoints/*")), "no step was taken"


def test_an_interrupted_fit_goes_on_from_its_checkpoint(
    compare: Compare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = {"learned": EXPERIMENT["methods"]["learned"]}
    short: dict[str, Any] = {"methods": methods, "seeds": [0], "picture": None}
    assert compare(**short).status == 0
    whole = results_in(tmp_path)["methods"]["learned"]
    folder = tmp_path / "out" / "trials" / "all" / "learned"
    (folder / "seed0").rename(folder / "whole")

    def fail_at_step_four(_self: Any, trainer: Any, *_: Any) -> None:
        if trainer.global_step == 4:
            raise RuntimeError("the machine is taken away")

    with monkeypatch.context() as patch:
        patch.setattr(callbacks.BaselineTracker, "on_train_batch_end", fail_at_step_four)
        failed = compare(**short)
    assert failed.status == 2
    assert "RuntimeError: the machine is taken away" in failed.err
    assert not (folder / "seed0" / "trial.json").exists()

    assert compare(**short).status == 0
    resumed = results_in(tmp_path)["methods"]["learned"]
    assert {path.name for path in folder.iterdir()} == {"seed0", "whole"}
    assert resumed["perplexity_16"] == whole["perplexity_16"]
    log = (folder / "seed0" / "log.txt").read_text()
    assert log.count("Validating the untrained mask") == 1, "the second try went on"
    checkpoint = torch.load(folder / "seed0/run/checkpoints/last.ckpt", weights_only=True)
    taken = next(s for key, s in checkpoint["callbacks"].items() if "MakingOfMask" in key)
    assert 0 < taken["seconds"] <= resumed["seconds"]


def test_a_fit_that_ended_before_its_first_step_starts_again_in_its_folder(
    compare: Compare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = {"learned": EXPERIMENT["methods"]["learned"]}
    short: dict[str, Any] = {"methods": methods, "seeds": [0], "picture": None}

    def fail(*_: Any) -> None:
        raise RuntimeError("the machine is taken away")

    with monkeypatch.context() as patch:
        patch.setattr(callbacks.MaskCheckpoint, "on_validation_end", fail)
        assert compare(**short).status == 2
    trial = tmp_path / "out" / "trials" / "all" / "learned" / "seed0"
    assert (trial / "run" / "config.yaml").exists()
    (trial / f"{TEMPORARY}0123456789abcdef").touch()
    assert compare(**short).status == 0
    assert {path.name for path in trial.iterdir()} == {
        *("run", "plan", "options.json", "trial.json", "log.txt")
    }


def test_equal_trials_of_two_settings_are_computed_once(compare: Compare, tmp_path: Path) -> None:
    settings = {"0.8": {"model.keep_ratio": 0.8}, "0.6": {"model.keep_ratio": 0.6}}
    methods = {name: EXPERIMENT["methods"][name] for name in ("dense", "wanda_sp")}
    picture = [{"kind": "lines", "x_label": "keep ratio"}, {"kind": "sparsity"}]
    run = compare(settings=settings, methods=methods, picture=picture)
    assert run.status == 0, run.err
    assert "0.6 / dense / seed 0: " in run.out
    assert "as in 0.8 / dense" in run.out
    results = results_in(tmp_path)
    assert "methods" not in results, "the top level speaks of one setting alone"
    first, second = (results["settings"][label]["methods"] for label in settings)
    assert first["wanda_sp"]["parameters"] > second["wanda_sp"]["parameters"]
    assert second["dense"]["setting"] == "0.6"
    assert second["dense"]["perplexity_16"] == first["dense"]["perplexity_16"]
    names = {path.name for path in (tmp_path / "out").glob("*.png")}
    if names:
        assert names == {
            "picture1_lines.png",
            "picture2_sparsity_0.8.png",
            "picture2_sparsity_0.6.png",
        }


def test_a_trial_that_fails_leaves_the_others(compare: Compare, tmp_path: Path) -> None:
    methods = {
        "broken": {"kind": "metric", "options": {"model.initialization.num_blocks": 10**6}},
        "dense": {"kind": "dense"},
    }
    run = compare(methods=methods, picture=None)
    assert run.status == 2
    (line,) = run.err.splitlines()
    assert line.startswith("error: all / broken / seed 0: initialization.num_blocks: 1000000")
    assert "log.txt" in line
    assert "Traceback" in next((tmp_path / "out").rglob("broken/seed0/log.txt")).read_text()
    assert list(results_in(tmp_path)["methods"]) == ["dense"]
    assert "Failed: all / broken" in (tmp_path / "out" / "table.md").read_text()


@pytest.mark.parametrize(
    ("file", "text", "field"),
    [
        ("trial.json", '"parameters": "many"', "parameters must be a valid integer"),
        ("trial.json", '"parameters": NaN', "parameters must be a finite number, given NaN"),
        ("trial.json", '"parameters": -1', "parameters must be greater than or equal to 1"),
        ("trial.json", f'"parameters": {"[" * 10_000}{"]" * 10_000}', "nested too deeply"),
        ("options.json", '"digest": null', "digest must be a valid string, given null"),
        ("options.json", '"digests": ""', "digest is missing"),
    ],
)
def test_a_damaged_trial_is_refused_before_any_is_computed(
    compare: Compare, tmp_path: Path, file: str, text: str, field: str
) -> None:
    methods = {"dense": {"kind": "dense"}}
    assert compare(methods=methods, picture=None).status == 0
    path = tmp_path / "out" / "trials" / "all" / "dense" / "seed0" / file
    name = text.partition('"')[2].partition('"')[0].removesuffix("s" * (file == "options.json"))
    path.write_text(re.sub(rf'"{name}s?": [^,\n}}]*', text, path.read_text(), count=1))
    again = compare(methods=methods, picture=None)
    refused(again, str(path), field, f"delete {path.parent}")


def test_a_terminal_shows_how_many_trials_are_left(
    compare: Compare, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = {name: EXPERIMENT["methods"][name] for name in ("dense", "random")}
    monkeypatch.setattr(type(sys.stderr), "isatty", lambda _: True)
    shown = compare(methods=methods, seeds=[0], picture=None)
    assert shown.status == 0, shown.err
    assert "trials:   0%" in shown.err
    assert "1/2" in shown.err
    assert "random" in shown.err
