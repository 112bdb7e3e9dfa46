"""The scatter of gradient estimates, against sums by hand, and on a policy that stays."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pgprune_lightning.cli import main
from pgprune_lightning.run import Run
from research import variance
from research.variance import STAY, GradientMoments
from tests.tiny_commands import TinyCommand


def test_moments_are_those_of_the_last_steps() -> None:
    generator = torch.Generator().manual_seed(0)
    gradients_NU = 100 + torch.randn(20, 3, generator=generator, dtype=torch.float64)
    moments = GradientMoments()
    for step, gradient_U in enumerate(gradients_NU, start=1):
        probabilities = SimpleNamespace(grad=gradient_U)
        module: Any = SimpleNamespace(policy=SimpleNamespace(keep_probabilities=probabilities))
        trainer: Any = SimpleNamespace(global_step=step, max_steps=20)
        moments.on_train_batch_end(trainer, module, {}, None, 0)
    assert moments.count == 18
    torch.testing.assert_close(moments.mean_U, gradients_NU[2:].mean(0))
    torch.testing.assert_close(moments.variance, gradients_NU[2:].var(0))


def test_every_row_is_measured_where_it_starts(
    experiment_file: Callable[..., Path],
    tiny_command: TinyCommand,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs: list[Run] = []
    build_run = variance.build_run

    def kept(arguments: list[str]) -> Run:
        runs.append(build_run(arguments))
        return runs[-1]

    monkeypatch.setattr(variance, "build_run", kept)
    plain = {"model.estimator": {"class_path": "pgprune_lightning.policy.PlainReinforce"}}
    many = {"model.objective.num_mask_samples": 8}
    path = experiment_file(
        settings=None,
        options={"trainer.max_steps": 30},
        methods={
            "plain": {"kind": "learned", "options": plain},
            "average": {"kind": "learned"},
            "many": {"kind": "learned", "options": many},
        },
    )
    output = tmp_path / "out" / "variance.json"
    assert main(["variance", "--config", str(path), "--output", str(output)]) == 0
    rows = json.loads(output.read_text())["estimators"]
    assert list(rows) == ["plain", "average", "many"]
    for row in rows.values():
        assert row["steps"] == 27
        assert row["variance_per_pass"] == pytest.approx(row["variance"] * row["passes_per_step"])
        assert 0 < row["scaled_variance"] < row["variance"]
    # Whole losses of some 4.5 nats against differences, and a quarter of the variance.
    assert rows["plain"]["variance"] > 10 * rows["average"]["variance"]
    assert rows["average"]["variance"] > 2 * rows["many"]["variance"]
    assert rows["average"]["passes_per_step"] == 2 * 2 * 16 / 1024
    assert rows["many"]["passes_per_step"] == 8 * 2 * 16 / 1024

    policies = [run.module.policy.keep_probabilities.detach() for run in runs]
    assert all(run.module.update.lr == STAY for run in runs)
    assert len(policies) == 3
    assert torch.equal(policies[0], policies[1])
    assert not (tiny_command.run_dir).exists(), "nothing is written"


def test_only_estimates_have_a_variance(
    experiment_file: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = experiment_file(settings=None, methods={"dense": {"kind": "dense"}})
    output = tmp_path / "variance.json"
    assert main(["variance", "--config", str(path), "--output", str(output)]) == 2
    assert "methods.dense: only learned rows" in capsys.readouterr().err
