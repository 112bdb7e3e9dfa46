"""Run folders as `fit` leaves them, without a fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pgprune_lightning.plan import BaseModel, PruningPlan
from pgprune_lightning.policy import UnitLayout

LAYERS, HEADS, CHANNELS = 4, 3, 200

WriteRun = Callable[..., Path]


def made_plan(
    seed: int, step: int, perplexity: float | None, source: str = "org/model"
) -> PruningPlan:
    """A plan of random probabilities that keeps the likelier half."""
    sizes: Any = [
        size
        for layer in range(LAYERS)
        for size in ((layer, "kv_group", HEADS, 100, 8), (layer, "mlp_channel", CHANNELS, 10, 8))
    ]
    space = UnitLayout.build(sizes, total_parameters=20_000)
    generator = torch.Generator().manual_seed(seed)
    s_U = torch.rand(space.num_units, generator=generator, dtype=torch.float64)
    return PruningPlan(
        base_model=BaseModel(source, "llama", "f" * 64, 20_000),
        space=space,
        keep_probabilities_U=s_U,
        mask_U=s_U > 0.5,
        budget={"keep_ratio": 0.5, "scope": "per_kind", "protected_layers": []},
        step=step,
        validation={
            "text": "validation text",
            "sequence_length": 128,
            "bos_per_block": False,
            "perplexity": perplexity,
        },
    )


def made_summary() -> dict[str, Any]:
    """What a finished run writes."""
    return {
        "dense": {"perplexity": 10.5, "parameters": 20_000, "other_texts": {"second": 11.25}},
        "initial": {"perplexity": 1234.0, "parameters": 12_000, "other_texts": {"second": None}},
        "learned": {"perplexity": 56.25, "parameters": 12_000, "other_texts": {"second": 77.0}},
        "keep_ratio": 0.5,
        "steps": 300,
        "learned_at_step": 200,
        "training_tokens": 153_600,
        "seed": 7,
        "text": "test text",
        "sequence_length": 128,
        "base_model": "org/model",
        "execution": "compact",
        "provenance": {
            "pgprune_lightning": "0.1.0",
            "commit": "abc123",
            "python": "3.11",
            "torch": "2.13.0",
            "transformers": "5.23.0",
            "device": "a machine, 2 cores",
            "threads": 2,
            "command": "python -m pgprune_lightning fit --config a.yaml",
        },
        "seconds": 312.4,
        "peak_memory_bytes": 1_690_000_000,
        "sample": {"prompt": "Once upon", "dense": " a time.", "learned": " a thyme."},
    }


CONFIG = {
    "seed_everything": 7,
    "trainer": {"max_steps": 300},
    "run_dir": "runs/a",
    "wandb": {"mode": "off", "project": "pgprune-lightning"},
    "model": {
        "base_model": "org/model",
        "keep_ratio": 0.5,
        "update": {"lr": 0.02},
        "estimator": {
            "class_path": "pgprune_lightning.policy.MovingAverageBaseline",
            "init_args": {"window": 5},
        },
    },
}

METRICS = """step,val/perplexity,train/loss,train/baseline,policy/near_lower/kv_group,\
policy/near_upper/kv_group
0,1300.5,,,,
1,,6.5,6.5,0.0,0.25
100,900.25,5.5,6.0,0.125,0.375
200,60.5,4.5,5.0,0.25,0.5
300,61.5,nan,4.75,0.25,0.5
"""


@pytest.fixture
def write_run(tmp_path: Path) -> WriteRun:
    """Writes a finished run; what is given as `summary` or `config` changes those files."""

    def write(
        name: str = "run",
        *,
        summary: dict[str, Any] | None = None,
        config: dict[str, Any] | None = None,
        source: str = "org/model",
    ) -> Path:
        folder = tmp_path / name
        for number, (plan, step, perplexity) in enumerate(
            (("initial", 0, 1300.5), ("best", 200, 60.5), ("last", 300, 61.5))
        ):
            made_plan(number, step, perplexity, source).save(folder / "plans" / plan)
        (folder / "metrics.csv").write_text(METRICS)
        (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG | (config or {})))
        (folder / "summary.json").write_text(json.dumps(made_summary() | (summary or {})))
        return folder

    return write
