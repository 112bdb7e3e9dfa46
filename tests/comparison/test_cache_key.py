"""What makes a trial another trial, and what does not."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pgprune_lightning.comparison import load_experiment
from pgprune_lightning.comparison.cache_key import (
    cache_key_of,
    digest_of,
    first_difference,
)
from pgprune_lightning.comparison.experiment import (
    Experiment,
    FinetuneOptions,
    LatencyOptions,
    MethodKind,
)
from pgprune_lightning.recovery import LoraOptions


@pytest.fixture
def experiment(experiment_file: Callable[..., Path]) -> Experiment:
    return load_experiment(experiment_file())


def _config(model: Path) -> dict[str, Any]:
    return {
        "run_dir": "runs/a",
        "seed_everything": 0,
        "model": {
            **{"base_model": str(model), "keep_ratio": 0.6, "estimator": {"window": 5}},
            **{"budget": {"progressive": None}, "seed": 0},
            "update": {"lr": 0.1, "lr_factors": None, "lr_schedule": "constant"},
            "objective": {"num_mask_samples": 2, "loss": "cross_entropy"},
            "execution": {"dtype": "float32", "attention": "sdpa"},
            "initialization": {"metric": "wanda_sp"},
        },
        "data": {
            **{"train": {"path": "a"}, "validation": {"path": "b"}, "num_workers": 0},
            **{"test": [{"path": "c"}, {"path": "d"}], "seed": 0, "block_length": 128},
            **{"batch_size": 8, "cache_dir": None},
        },
        "trainer": {"accelerator": "cpu", "max_steps": 9, "log_every_n_steps": 1},
    }


@pytest.mark.parametrize(
    ("option", "value", "kinds"),
    [
        ("run_dir", "runs/b", ""),
        ("data.num_workers", 2, ""),
        ("trainer.log_every_n_steps", 5, ""),
        ("trainer.max_steps", 10, "learned backpropagated"),
        ("model.update.lr", 0.2, "learned backpropagated"),
        ("model.estimator", {"window": 6}, "learned backpropagated"),
        ("model.objective.mask_granularity", "sequence", "learned backpropagated"),
        ("data.validation", {"path": "e"}, "learned backpropagated"),
        ("model.keep_ratio", 0.7, "learned backpropagated metric slicegpt"),
        ("data.train", {"path": "e"}, "learned backpropagated metric slicegpt"),
        ("model.initialization", {"metric": "taylor"}, "learned backpropagated metric slicegpt"),
        ("data.test", [{"path": "c"}], ""),
        (
            "data.test",
            [{"path": "d"}, {"path": "c"}],
            "learned backpropagated metric slicegpt dense",
        ),
        ("model.execution.dtype", "bfloat16", "learned backpropagated metric slicegpt dense"),
        ("trainer.accelerator", "gpu", "learned backpropagated metric slicegpt dense"),
    ],
)
def test_an_option_makes_another_trial_where_it_changes_a_number(
    experiment: Experiment, tiny_model_folder: Path, option: str, value: Any, kinds: str
) -> None:
    config = _config(tiny_model_folder)
    changed = copy.deepcopy(config)
    *groups, name = option.split(".")
    inner = changed
    for group in groups:
        inner = inner[group]
    inner[name] = value
    every_kind: tuple[MethodKind, ...] = (
        "dense",
        "metric",
        "slicegpt",
        "learned",
        "backpropagated",
    )
    others = []
    for kind in every_kind:
        old = cache_key_of(experiment, kind, config, 0)
        new = cache_key_of(experiment, kind, changed, 0)
        assert (digest_of(old) != digest_of(new)) == bool(first_difference(old, new))
        if digest_of(old) != digest_of(new):
            others.append(kind)
            assert first_difference(old, new).startswith(option)
    assert set(others) == set(kinds.split())


@pytest.mark.parametrize(
    ("asked", "changed", "option"),
    [
        ({}, {"zero_shot": ("piqa",)}, "zero_shot: []"),
        ({}, {"latency": LatencyOptions()}, "latency"),
        ({"latency": LatencyOptions()}, {"latency": LatencyOptions(1)}, "latency.batch_size: 4"),
        ({"zero_shot": ("piqa",)}, {"zero_shot_limit": 4}, "zero_shot_limit: None"),
        ({"zero_shot": ("piqa",)}, {"zero_shot_folder": "."}, "zero_shot_folder: None"),
    ],
)
def test_what_is_measured_makes_another_trial(
    experiment: Experiment,
    tiny_model_folder: Path,
    asked: dict[str, Any],
    changed: dict[str, Any],
    option: str,
) -> None:
    config = _config(tiny_model_folder)
    first = cache_key_of(replace(experiment, **asked), "metric", config, 0)
    second = cache_key_of(replace(experiment, **asked | changed), "metric", config, 0)
    assert digest_of(first) != digest_of(second)
    assert first_difference(first, second).startswith(option)


def test_what_is_not_asked_for_makes_no_other_trial(
    experiment: Experiment, tiny_model_folder: Path
) -> None:
    """A folder of tasks that are not run changes no number."""
    config = _config(tiny_model_folder)
    others = replace(experiment, zero_shot_folder=".", zero_shot_limit=4)
    first, second = (cache_key_of(e, "metric", config, 0) for e in (experiment, others))
    assert first == second


def test_tuning_makes_another_trial_and_is_read_back_as_it_was(
    experiment: Experiment, tiny_model_folder: Path
) -> None:
    config = _config(tiny_model_folder)
    tunings = (None, FinetuneOptions(), FinetuneOptions("a.jsonl", LoraOptions(rank=8)))
    trials = [cache_key_of(experiment, "metric", config, 0, tuning) for tuning in tunings]
    assert len({digest_of(trial) for trial in trials}) == 3
    assert first_difference(trials[0], trials[1]).startswith("finetune.")
    assert first_difference(trials[1], trials[2]) == "finetune.rank: 16, now 8"
    assert json.loads(json.dumps(trials[2])) == trials[2]


def test_other_weights_of_the_same_name_make_another_trial(
    experiment: Experiment, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text("{}")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(bytes(300_000))
    first = cache_key_of(experiment, "dense", _config(tmp_path), 0)
    weights.touch()
    assert cache_key_of(experiment, "dense", _config(tmp_path), 0) == first
    weights.write_bytes(bytes(299_999) + b"1")
    second = cache_key_of(experiment, "dense", _config(tmp_path), 0)
    assert first_difference(first, second).startswith("base_model: ")
