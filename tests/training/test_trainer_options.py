"""Options of Lightning's Trainer: each works in a run, or is refused before a model is loaded."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import yaml

from pgprune_lightning.console import quiet_libraries
from pgprune_lightning.errors import UserError
from pgprune_lightning.training.trainer_options import FIXED, check_fixed
from tests.tiny_commands import TinyCommand, refused
from tests.tiny_runs import TinyRun

REFUSED = {
    "max_epochs": 1,
    "min_epochs": 2,
    "check_val_every_n_epoch": 1,
    "reload_dataloaders_every_n_epochs": 1,
    "overfit_batches": 1.0,
    "limit_train_batches": 2,
    "limit_val_batches": 1,
    "limit_test_batches": 0.5,
    "limit_predict_batches": 1,
    "accumulate_grad_batches": 2,
    "gradient_clip_val": 1.0,
    "gradient_clip_algorithm": "norm",
    "use_distributed_sampler": True,
    "sync_batchnorm": True,
    "barebones": True,
    "enable_checkpointing": False,
    "enable_model_summary": True,
    "model_registry": "model",
}


def test_each_option_that_makes_no_sense_is_refused() -> None:
    assert REFUSED.keys() == FIXED.keys()
    for name, value in REFUSED.items():
        with pytest.raises(UserError, match=rf"^trainer\.{name}: leave it at ") as refusal:
            check_fixed({name: value})
        shown = str(value).lower() if isinstance(value, bool) else str(value)
        assert f", given {shown}: " in str(refusal.value)


OF_THE_LENGTH = {
    "an epoch": (
        ["--trainer.max_epochs=1"],
        "trainer.max_epochs: leave it at -1, given 1",
        "steps",
    ),
    "no end": (["--trainer.max_steps=-1"], "trainer.max_steps: -1 has no end", "trainer.max_time"),
    "no step": (["--trainer.max_steps=0"], "trainer.max_steps: must be 1 or more, given 0"),
    "more at least than at most": (["--trainer.min_steps=9"], "trainer.min_steps: is 9", "is 6"),
    "a share of an epoch": (["--trainer.val_check_interval=0.5"], "number of steps", "given 0.5"),
    "no validation": (["--trainer.val_check_interval=null"], "val_check_interval", "given null"),
    "validation after 0": (["--trainer.val_check_interval=0"], "1 or more", "given 0."),
    "a float": (["--trainer.val_check_interval=3.0"], "write 3, given 3.0"),
    "an endless cosine": (
        [
            *("--trainer.max_steps=-1", "--trainer.max_time=00:00:01:00"),
            "--model.update.lr_schedule=cosine",
        ],
        "lr_schedule: cosine ends at trainer.max_steps, which is -1",
    ),
    "no number of devices": (["--trainer.devices=two"], "trainer: ", "devices"),
    "Lightning's stopping": (
        ["--trainer.callbacks=EarlyStopping", "--trainer.callbacks.monitor=val/perplexity"],
        "trainer.callbacks: leave EarlyStopping out: use callbacks.EarlyStop",
    ),
    "Lightning's search of a batch size": (
        ["--trainer.callbacks=BatchSizeFinder"],
        "leave BatchSizeFinder out",
    ),
    "another timer": (
        ["--trainer.callbacks=Timer", "--trainer.callbacks.duration=00:00:01:00"],
        "leave Timer out: use trainer.max_time",
    ),
    "another precision": (
        [
            "--trainer.plugins=MixedPrecision",
            *("--trainer.plugins.precision=bf16-mixed", "--trainer.plugins.device=cpu"),
            "--trainer.precision=null",
        ],
        "trainer.plugins: the policy needs precision 32-true, given bf16-mixed",
    ),
}


@pytest.mark.usefixtures("no_weights_loaded")
@pytest.mark.parametrize("case", OF_THE_LENGTH)
def test_a_run_that_cannot_be_meant_is_refused(tiny_command: TinyCommand, case: str) -> None:
    arguments, *phrases = OF_THE_LENGTH[case]
    refused(tiny_command("fit", *arguments), *phrases)
    assert not (tiny_command.run_dir / "plans").exists()


@pytest.mark.parametrize(
    ("every", "phrase"),
    [(4, "the last 2 steps are not validated"), (100, "the run returns the untrained one")],
)
def test_steps_that_are_not_validated_are_pointed_out(
    tiny_command: TinyCommand, every: int, phrase: str
) -> None:
    said = f"trainer.max_steps is 6 and trainer.val_check_interval {every}: .*{phrase}"
    with pytest.warns(UserWarning, match=said):
        run = tiny_command("fit", f"--trainer.val_check_interval={every}")
    assert run.status == 0, run.err


def test_a_time_limit_ends_a_run_that_has_least_steps(tiny_command: TinyCommand) -> None:
    """A Trainer with min_steps asks for a whole epoch by itself, which never comes."""
    run = tiny_command(
        "fit",
        *("--trainer.max_steps=-1", "--trainer.max_time=00:00:00:01", "--trainer.min_steps=3"),
    )
    assert run.status == 0, run.err
    steps = yaml.safe_load((tiny_command.run_dir / "summary.json").read_text())["steps"]
    assert steps >= 3


def test_the_bar_can_be_left_out(tiny_command: TinyCommand) -> None:
    run = tiny_command("fit", "--trainer.enable_progress_bar=false")
    assert run.status == 0, run.err
    assert "Training" not in run.err
    assert "learned mask" in run.out


def test_a_profiler_is_heard_though_lightning_is_quiet() -> None:
    quiet_libraries()
    profilers = logging.getLogger("lightning.pytorch.profilers.profiler")
    assert profilers.getEffectiveLevel() == logging.INFO
    assert logging.getLogger("lightning.pytorch.trainer").getEffectiveLevel() == logging.WARNING


def test_a_trial_of_some_steps_leaves_the_run_of_its_folder_alone(
    tiny_command: TinyCommand,
) -> None:
    assert tiny_command("fit").status == 0
    before = _contents(tiny_command.run_dir)
    trial = tiny_command("fit", "--trainer.fast_dev_run=2", "--model.update.lr=0.5")
    assert trial.status == 0, trial.err
    assert _contents(tiny_command.run_dir) == before


def test_a_trainer_of_ones_own_is_checked_too(tiny_run: TinyRun) -> None:
    with pytest.raises(UserError, match=r"trainer\.max_epochs: leave it at -1, given 1"):
        tiny_run.fit(max_epochs=1, max_steps=-1)


def _contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
