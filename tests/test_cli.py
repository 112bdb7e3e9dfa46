"""The command line as a user meets it: what its three commands do."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pgprune_lightning import UserError, build_run, execute_run
from pgprune_lightning.plan import PruningPlan
from pgprune_lightning.policy import FeasibleSet
from tests.tiny_commands import TinyCommand, refused

ROOT = Path(__file__).resolve().parents[1]


def test_the_later_config_wins_and_the_rest_stays(tiny_command: TinyCommand) -> None:
    overlay = tiny_command.overlay("model: {update: {lr: 0.5}}\nwandb: {mode: offline}\n")
    printed = tiny_command(
        "fit", "--config", overlay, "--model.objective.num_mask_samples=3", "--print_config"
    )
    assert printed.status == 0
    config = yaml.safe_load(printed.out)
    assert (config["model"]["update"]["lr"], config["model"]["keep_ratio"]) == (0.5, 0.6)
    assert config["model"]["objective"]["num_mask_samples"] == 3
    assert config["wandb"]["mode"] == "offline"
    assert not tiny_command.run_dir.exists()


NESTED_ESTIMATOR = """
model:
  objective:
    mask_granularity: sequence
    num_mask_samples: 1
  estimator:
    class_path: pgprune_lightning.policy.LinearSurrogate
    init_args:
      ridge: 2.0
      estimator:
        class_path: pgprune_lightning.policy.DenseLossControlVariate
        init_args: {estimator: {class_path: pgprune_lightning.policy.LeaveOneOut}}
"""


def test_estimators_nest(tiny_command: TinyCommand) -> None:
    overlay = tiny_command.overlay(NESTED_ESTIMATOR)
    printed = tiny_command("fit", "--config", overlay, "--print_config")
    assert printed.status == 0, printed.err
    surrogate = yaml.safe_load(printed.out)["model"]["estimator"]
    assert surrogate["init_args"]["ridge"] == 2.0
    dense = surrogate["init_args"]["estimator"]
    assert dense["class_path"].endswith("DenseLossControlVariate")
    assert dense["init_args"]["estimator"]["class_path"].endswith("LeaveOneOut")
    run = tiny_command("fit", "--config", overlay)
    assert run.status == 0, run.err
    config = yaml.safe_load((tiny_command.run_dir / "config.yaml").read_text())
    assert config["model"]["estimator"] == surrogate
    state = torch.load(tiny_command.run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    assert "estimator.estimator.moments" in state["state_dict"]


PAPERS_ESTIMATOR = {
    "class_path": "pgprune_lightning.policy.MovingAverageBaseline",
    "init_args": {
        "window": 5,
        "start": "first_loss",
        "order": "use_then_update",
        "score_scale": "variance",
        "normalization": "samples",
    },
}
OWN_ESTIMATOR = {"class_path": "pgprune_lightning.policy.PGPE"}


@pytest.mark.parametrize(
    ("policy", "estimator"),
    [("FreeProbabilities", PAPERS_ESTIMATOR), ("PGPEPolicy", OWN_ESTIMATOR)],
)
def test_the_estimator_that_is_printed_is_the_one_that_runs(
    tiny_command: TinyCommand, policy: str, estimator: dict[str, Any]
) -> None:
    chosen = ("--model.policy", policy, "--model.budget.scope=parameters")
    printed = tiny_command("fit", *chosen, "--print_config")
    assert printed.status == 0, printed.err
    assert yaml.safe_load(printed.out)["model"]["estimator"] == estimator
    merged = tiny_command.config.with_name("merged.yaml")
    merged.write_text(printed.out)
    run = TinyCommand(merged, tiny_command.run_dir, tiny_command.outcome)("fit")
    assert run.status == 0, run.err
    config = yaml.safe_load((tiny_command.run_dir / "config.yaml").read_text())
    assert config["model"]["estimator"] == estimator


def test_an_estimator_that_does_not_suit_the_policy_is_refused(tiny_command: TinyCommand) -> None:
    options = {
        "PGPEPolicy": "MovingAverageBaseline",
        "FreeProbabilities": "PGPE",
    }
    for policy, estimator in options.items():
        outcome = tiny_command("fit", f"--model.policy={policy}", f"--model.estimator={estimator}")
        refused(outcome, "model.estimator: ", policy, estimator, "set it to null")
        assert len(outcome.err.splitlines()) == 1


def test_what_a_run_chooses_itself_is_written_down(tiny_command: TinyCommand) -> None:
    left_open = (
        "--model.execution.dtype=auto",
        "--model.execution.mode=auto",
        "--trainer.devices=auto",
    )
    run = tiny_command("fit", *left_open, "--trainer.max_steps=12")
    assert run.status == 0, run.err
    config = yaml.safe_load((tiny_command.run_dir / "config.yaml").read_text())
    checkpoint = torch.load(tiny_command.run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    assert config["model"]["execution"]["mode"] == checkpoint["execution"]
    assert config["model"]["execution"]["mode"] in ("compact", "dense_masked", "batched")
    assert config["model"]["execution"]["dtype"] in ("float32", "bfloat16")
    assert config["model"]["execution"]["attention"] == "sdpa"
    assert config["trainer"]["devices"] == 1
    assert config["data"]["tokenizer"] == config["model"]["base_model"]
    assert config["data"]["bos_per_block"] is False


def test_a_falling_keep_ratio_is_an_option(tiny_command: TinyCommand) -> None:
    printed = yaml.safe_load(tiny_command("fit", "--print_config").out)
    assert printed["model"]["budget"]["progressive"] is None
    run = tiny_command(
        "fit",
        "--model.budget.progressive.start=0.9",
        "--model.budget.progressive.step=0.15",
        "--model.budget.progressive.steps_per_stage=2",
    )
    assert run.status == 0, run.err
    config = yaml.safe_load((tiny_command.run_dir / "config.yaml").read_text())
    assert config["model"]["budget"]["progressive"] == {
        "start": 0.9,
        "step": 0.15,
        "steps_per_stage": 2,
    }
    ratios = {
        name: _plan(tiny_command.run_dir, name)["budget"]["keep_ratio"]
        for name in ("initial", "best", "last")
    }
    assert ratios == dict.fromkeys(ratios, 0.6)


@pytest.mark.parametrize(
    ("metric", "kinds"),
    [
        ("flap", "[kv_group, mlp_channel]"),
        ("magnitude", "[kv_group, mlp_channel]"),
        ("taylor", "[mlp_channel]"),
        ("fisher", "[layer]"),
        ("layerwise_ppl", "[layer]"),
        ("block_influence", "[attention, mlp]"),
        ("bonsai", "[attention, mlp]"),
    ],
)
def test_a_policy_starts_from_each_metric(
    tiny_command: TinyCommand, metric: str, kinds: str
) -> None:
    start = (f"--model.initialization.metric={metric}", f"--model.units.kinds={kinds}")
    run = tiny_command("validate", *start, "--model.keep_ratio=0.7")
    assert run.status == 0, run.err
    assert "perplexity" in run.out


@pytest.mark.parametrize("kinds", ["[mlp_channel]", "[attention, mlp]", "[layer]"])
def test_the_default_recipe_lies_over_every_kind_of_unit(
    tiny_command: TinyCommand, kinds: str
) -> None:
    fast = str(Path(__file__).parents[1] / "configs" / "recipes" / "fast.yaml")
    smaller = ("--model.initialization.num_blocks=8", "--model.initialization.refine_steps=2")
    options = (f"--model.units.kinds={kinds}", "--model.keep_ratio=0.7", *smaller)
    run = tiny_command("fit", "--config", fast, *options, "--trainer.max_steps=2")
    assert run.status == 0, run.err
    assert "learned mask" in run.out
    plan = ("--model.initialization.plan", str(tiny_command.run_dir))
    measured = tiny_command("test", "--config", fast, *options, *plan)
    assert measured.status == 0, measured.err
    summary = json.loads((tiny_command.run_dir / "summary.json").read_text())
    assert f"{summary['learned']['perplexity']:.4f}" in measured.out


def test_a_fit_leaves_plans_metrics_config_checkpoint_and_summary(
    tiny_command: TinyCommand,
) -> None:
    run = tiny_command("fit")
    assert run.status == 0, run.err
    files = {path.name for path in tiny_command.run_dir.iterdir()}
    assert files == {"plans", "metrics.csv", "config.yaml", "checkpoints", "summary.json"}
    assert {path.name for path in (tiny_command.run_dir / "plans").iterdir()} == {
        *("initial", "best", "last")
    }
    assert "learned mask" in run.out
    assert str(tiny_command.run_dir) in run.out
    assert "Warning" not in run.err
    assert "warning" not in run.err


def test_the_resolved_config_repeats_the_run(tiny_command: TinyCommand) -> None:
    assert tiny_command("fit").status == 0
    first = _policy(tiny_command.run_dir)
    again = tiny_command.run_dir.with_name("again")
    resolved = TinyCommand(
        tiny_command.run_dir / "config.yaml", tiny_command.run_dir, tiny_command.outcome
    )
    assert resolved("fit", "--run_dir", str(again)).status == 0
    assert torch.equal(_policy(again), first)
    assert (again / "metrics.csv").read_text() == _metrics(tiny_command.run_dir)


@pytest.mark.parametrize("steps_before", [3, 4])
def test_a_resumed_run_equals_an_uninterrupted_one(
    tiny_command: TinyCommand, steps_before: int
) -> None:
    whole = tiny_command.run_dir.with_name("whole")
    assert tiny_command("fit", "--run_dir", str(whole)).status == 0
    assert tiny_command("fit", f"--trainer.max_steps={steps_before}").status == 0

    last = tiny_command.run_dir / "checkpoints" / "last.ckpt"
    resumed = tiny_command("fit", "--resume", str(last))

    assert resumed.status == 0, resumed.err
    assert torch.equal(_policy(tiny_command.run_dir), _policy(whole))
    assert _metrics(tiny_command.run_dir) == _metrics(whole)
    assert _plan(tiny_command.run_dir) == _plan(whole)
    config = yaml.safe_load((tiny_command.run_dir / "config.yaml").read_text())
    assert config["resume"] == str(last)
    assert config["trainer"]["max_steps"] == 6


def test_a_run_moved_aside_is_whole(tiny_command: TinyCommand) -> None:
    assert tiny_command("fit").status == 0
    old = _contents(tiny_command.run_dir)
    assert tiny_command("fit", "--existing_run", "move_aside", "--model.update.lr=0.05").status == 0
    assert _contents(tiny_command.run_dir.with_name("run-1")) == old
    assert _metrics(tiny_command.run_dir) != old["metrics.csv"].decode()


def test_validate_and_test_give_the_figures_of_the_fit(tiny_command: TinyCommand) -> None:
    assert tiny_command("fit").status == 0
    run_dir = tiny_command.run_dir
    files = _contents(run_dir)
    summary = json.loads((run_dir / "summary.json").read_text())
    plan = ("--model.initialization.plan", str(run_dir))
    checkpoint = ("--ckpt_path", str(run_dir / "checkpoints" / "last.ckpt"))
    expected = {
        ("validate",): summary["validation"]["initial"]["perplexity"],
        ("validate", *plan): summary["validation"]["best"]["perplexity"],
        ("validate", *checkpoint): _plan(run_dir, "last")["validation"]["perplexity"],
        ("test",): summary["initial"]["perplexity"],
        ("test", *plan): summary["learned"]["perplexity"],
    }
    assert len(set(expected.values())) > 3
    for arguments, perplexity in expected.items():
        measured = tiny_command(*arguments)
        assert measured.status == 0, measured.err
        printed = re.search(r"perplexity\W+([\d.]+)", measured.out)
        assert printed is not None, measured.out
        assert float(printed[1]) == pytest.approx(perplexity, abs=1e-4), arguments
    assert _contents(run_dir) == files


EXPLORED = """
model:
  budget:
    scope: parameters
    fill: true
    probability_bounds: [0.0, 1.0]
  policy:
    class_path: pgprune_lightning.policy.PGPEPolicy
    init_args: {own_width: 3.0}
  objective:
    mask_granularity: sequence
    num_mask_samples: 2
  initialization: {normalization: per_parameter}
"""


def test_a_plan_is_measured_as_it_is_whatever_its_probabilities_rank(
    tiny_command: TinyCommand,
) -> None:
    """Units that explore by other widths than others are kept more or less often at one rank."""
    explored = tiny_command.overlay(EXPLORED)
    assert tiny_command("fit", "--config", explored).status == 0
    run_dir = tiny_command.run_dir
    summary = json.loads((run_dir / "summary.json").read_text())
    plan = PruningPlan.load(run_dir / "plans" / "best")
    budget = FeasibleSet(plan.space, 0.6, scope="parameters", fill=True)
    assert not torch.equal(budget.deterministic_mask(plan.keep_probabilities_U), plan.mask_U)
    given = ("--config", explored, "--model.initialization.plan", str(run_dir))
    for command, perplexity in {
        "validate": summary["validation"]["best"]["perplexity"],
        "test": summary["learned"]["perplexity"],
    }.items():
        measured = tiny_command(command, *given)
        assert measured.status == 0, measured.err
        printed = re.search(r"perplexity\W+([\d.]+)", measured.out)
        assert printed is not None, measured.out
        assert float(printed[1]) == pytest.approx(perplexity, abs=1e-4)


def test_resume_is_an_option_of_fit_alone(tiny_command: TinyCommand) -> None:
    for resume in (("--resume", "auto"), ("--resume=never",)):
        refused(tiny_command("validate", *resume), "resume: is an option of fit; validate measures")
    overlay = tiny_command.overlay("resume: auto\n")  # the config of a run that was resumed
    assert tiny_command("validate", "--config", overlay).status == 0


def test_python_builds_the_run_of_the_command_line(tiny_command: TinyCommand) -> None:
    config = yaml.safe_load(tiny_command.config.read_text())
    assert tiny_command("fit").status == 0
    again = tiny_command.run_dir.with_name("again")
    module, data, trainer = build_run(config | {"run_dir": again})
    trainer.fit(module, datamodule=data)
    assert torch.equal(_policy(again), _policy(tiny_command.run_dir))
    third = tiny_command.run_dir.with_name("third")
    run = execute_run(config | {"run_dir": third})
    assert run.trainer.global_step == 6
    assert _metrics(third) == _metrics(tiny_command.run_dir)
    with pytest.raises(UserError, match="already holds a run"):
        execute_run(config | {"run_dir": third})
    with pytest.raises(UserError, match=r"no option model\.lr\. Did you mean model\.update\.lr"):
        build_run({"model": {"lr": 0.1}})


def test_the_program_runs_as_a_module() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "pgprune_lightning", "fit", "--config", "missing.yaml"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2
    assert run.stderr.startswith("error: ")
    assert len(run.stderr.splitlines()) == 1


def test_ctrl_c_ends_a_command_in_one_line() -> None:
    run = subprocess.Popen(
        [sys.executable, "-u", "-m", "pgprune_lightning", "bench", "--shape", "smollm2-135m"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Where the tests run in the background, children ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert run.stdout is not None
    assert "smollm2-135m" in run.stdout.readline()  # it works
    run.send_signal(signal.SIGINT)
    _, errors = run.communicate(timeout=120)
    assert run.returncode == 130
    assert errors.splitlines()[-1].startswith("error: stopped by Ctrl-C")
    assert "Traceback" not in errors


def _policy(run_dir: Path) -> torch.Tensor:
    checkpoint = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 6
    policy: torch.Tensor = checkpoint["state_dict"]["policy.keep_probabilities"]
    return policy


def _metrics(run_dir: Path) -> str:
    return (run_dir / "metrics.csv").read_text()


def _plan(run_dir: Path, name: str = "best") -> dict[str, Any]:
    plan: dict[str, Any] = json.loads((run_dir / "plans" / name / "plan.json").read_text())
    return plan


def _contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
