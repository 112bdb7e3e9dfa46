"""What two runs must have in common to be the same: every step, and every file they leave.

Shapes: S mask samples, U units.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

OF_THE_MACHINE = ("provenance", "seconds", "peak_memory_bytes", "memory_before_bytes")
"""What of a summary no two runs have in common."""


def _hash(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.detach().cpu().contiguous().numpy().tobytes()).hexdigest()[:16]


@contextmanager
def recorded_steps(path: Path) -> Iterator[None]:
    """Append a line a step: its batch, its masks' hash, its losses and the probabilities."""
    from pgprune_lightning.training import PolicyGradientPruning
    from pgprune_lightning.training.mask_evaluator import MaskEvaluator

    training_step, read = PolicyGradientPruning.training_step, MaskEvaluator.evaluate
    masks: list[str] = []

    def evaluate(self: MaskEvaluator, *arguments: Any, **options: Any) -> Any:
        samples = read(self, *arguments, **options)
        masks[:] = [_hash(samples.masks_SU)]
        return samples

    def step(self: PolicyGradientPruning, batch: Tensor, batch_idx: int) -> Any:
        number = self.global_step
        outputs = training_step(self, batch, batch_idx)
        line = {
            "step": number,
            "batch": _hash(batch),
            "masks": masks[0],
            "losses": [loss.hex() for loss in outputs["losses"].tolist()],
            "baseline": float(outputs["baseline"]).hex(),
            "probabilities": _hash(self.policy.keep_probabilities),
        }
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        return outputs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PolicyGradientPruning, "training_step", step)
        patch.setattr(MaskEvaluator, "evaluate", evaluate)
        yield


def steps_of(path: Path) -> dict[int, dict[str, Any]]:
    """The recorded steps; one that was taken several times must have been the same each time."""
    steps: dict[int, dict[str, Any]] = {}
    for line in path.read_text().splitlines():
        step = json.loads(line)
        assert steps.setdefault(step["step"], step) == step, "repeated, and not the same"
    return steps


def files_of(run_dir: Path) -> dict[str, Any]:
    """What a run has left, without what says when and how it was run."""
    summary = json.loads((run_dir / "summary.json").read_text())
    checkpoint = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    checkpoint.pop("loops")  # how often Lightning has begun a loop
    checkpoint["callbacks"].pop("OutcomeReport")  # how long it took
    return {
        "summary": {name: value for name, value in summary.items() if name not in OF_THE_MACHINE},
        "metrics": (run_dir / "metrics.csv").read_text(),
        "plans": {
            name: json.loads((run_dir / "plans" / name / "plan.json").read_text())
            for name in ("initial", "best", "last")
        },
        "checkpoint": _plain(checkpoint),
        # Not their names: a run that was stopped has saved there too, between its other saves.
        "kept": len(list((run_dir / "checkpoints").iterdir())),
        "temporary": sorted(path.name for path in run_dir.rglob(".pgprune-*")),
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return (str(value.dtype), tuple(value.shape), _hash(value))
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
