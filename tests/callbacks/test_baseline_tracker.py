import csv

import torch

from callbacks import BaselineTracker
from pgprune_lightning.training.metrics_file import MetricsFile
from tests.tiny_runs import TinyRun


def test_the_logged_quantities_are_those_of_the_update(tiny_run: TinyRun) -> None:
    seen = []

    class Recorder(BaselineTracker):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
            seen.append((outputs, pl_module.policy.keep_probabilities.detach().clone()))

    module = tiny_run.fit([Recorder()], logger=MetricsFile(tiny_run.folder))
    with (tiny_run.folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["1", "2", "3", "4"]
    baseline = float(seen[0][0]["losses"].mean())
    for row, (outputs, s_U) in zip(rows, seen, strict=True):
        loss = float(outputs["losses"].mean())
        assert float(row["train/loss"]) == loss
        assert abs(float(row["train/baseline"]) - baseline) < 1e-12
        assert abs(float(row["train/advantage"]) - (loss - baseline)) < 1e-12
        at_bounds_U = (s_U <= 0.05) | (s_U >= 0.95)
        assert float(row["policy/share_at_bounds"]) == float(at_bounds_U.double().mean())
        for kind in module.space.kinds:
            s_N = s_U[module.space.units_of(kind)]  # bounds 0.05 and 0.95: a twentieth is 0.045
            near_lower, near_upper = (s_N <= 0.095).double().mean(), (s_N >= 0.905).double().mean()
            assert float(row[f"policy/near_lower/{kind}"]) == float(near_lower)
            assert float(row[f"policy/near_upper/{kind}"]) == float(near_upper)
        expected = float(s_U.mean())
        assert abs(float(row["policy/expected_keep_ratio"]) - expected) < 1e-12
        baseline = 0.8 * baseline + 0.2 * loss
    torch.testing.assert_close(float(module.estimator.baseline), baseline)


def test_only_logging_steps_are_logged(tiny_run: TinyRun) -> None:
    tiny_run.fit([BaselineTracker()], logger=MetricsFile(tiny_run.folder), log_every_n_steps=3)
    with (tiny_run.folder / "metrics.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["1", "3"]
