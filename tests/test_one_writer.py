"""Every command is refused an output that another process writes, and changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pgprune_lightning import run
from pgprune_lightning.cli import main
from pgprune_lightning.commands import finetune
from tests.held_outputs import Hold, traces
from tests.tiny_commands import Outcome, TinyCommand, refused
from tests.tiny_experiments import EXPERIMENT

IN_USE = ("in use by process", "Wait until it has ended")


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (run, finetune):
        monkeypatch.setattr(module, "SECONDS_TO_WAIT", 0.1)


@pytest.mark.usefixtures("no_weights_loaded")
@pytest.mark.parametrize(
    "options", [(), ("--existing_run=move_aside",), ("--resume=auto",), ("--model.update.lr=0.5",)]
)
def test_fit(options: tuple[str, ...], tiny_command: TinyCommand, hold: Hold) -> None:
    run_dir = tiny_command.run_dir
    (run_dir / "checkpoints").mkdir(parents=True)
    (run_dir / "config.yaml").write_text("of the first process")
    (run_dir / ".pgprune-tmp-0123456789abcdef").write_text("which is writing a file")
    hold(run_dir)
    before = traces(run_dir.parent)
    outcome = tiny_command("fit", *options)
    after = traces(run_dir.parent)
    waiting, _, said = outcome.err.rpartition("error: ")
    assert (waiting.count("waiting for it to end"), waiting.count("\n")) == (
        (1, 1) if "--resume=auto" in options else (0, 0)
    )
    refused(Outcome(outcome.status, outcome.out, f"error: {said}"), "run_dir: ", *IN_USE)
    assert after == before


def test_fit_leaves_no_lock_and_goes_on_where_a_killed_one_did(
    tiny_command: TinyCommand, hold: Hold
) -> None:
    holder = hold(tiny_command.run_dir)
    holder.kill()
    holder.wait()
    lock = tiny_command.run_dir.with_name(".run.pgprune.lock")
    assert lock.exists()
    assert tiny_command("fit", "--trainer.max_steps=1").status == 0
    assert not lock.exists()
    assert tiny_command("fit", "--existing_run=move_aside", "--trainer.max_steps=1").status == 0
    assert not list(tiny_command.run_dir.parent.rglob("*.lock"))


@pytest.fixture
def experiment(tmp_path: Path, tiny_command: TinyCommand) -> str:
    """An experiment file on the tiny model."""
    del tiny_command  # writes the recipe
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump(EXPERIMENT, sort_keys=False))
    return str(path)


COMMANDS = {
    "export": ("--plan", "nowhere", "--format", "hf", "--existing", "replace"),
    "finetune": ("--model", "nowhere"),
    "finetune --resume": ("--model", "nowhere", "--resume", "auto"),
    "evaluate": ("--model", "nowhere"),
    "report": ("nowhere", "--existing", "replace"),
    "bench": ("--shape", "smollm2-135m"),
    "compare": ("--config", "EXPERIMENT"),
    "study": ("--recipes", "EXPERIMENT"),
    "variance": ("--config", "EXPERIMENT"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_other_commands(
    command: str,
    experiment: str,
    hold: Hold,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "results" / "first.json"
    if command in ("evaluate", "bench", "report", "variance"):
        output.parent.mkdir()
        output.write_text("{}")
    else:
        output.mkdir(parents=True)
        (output / "export.json").write_text("{}")
    hold(output)
    before = traces(tmp_path)
    given = [experiment if part == "EXPERIMENT" else part for part in COMMANDS[command]]
    status = main([command.partition(" ")[0], *given, "--output", str(output)])
    after, printed = traces(tmp_path), capsys.readouterr()
    refused(Outcome(status, printed.out, printed.err.splitlines()[-1]), "--output: ", *IN_USE)
    assert after == before
