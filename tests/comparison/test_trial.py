"""Which trials an experiment has, and what they are made of."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pgprune_lightning.comparison import load_experiment
from pgprune_lightning.comparison.trial import trials_of
from pgprune_lightning.errors import UserError
from tests.tiny_models import make_tiny_model


def _metric(name: str, **options: Any) -> dict[str, Any]:
    return {"kind": "metric", "options": {"model.initialization": {"metric": name, **options}}}


@pytest.mark.parametrize(
    ("more", "option"),
    [
        ({"evaluation_lengths": [16, 129]}, "evaluation_lengths"),
        ({"latency": {"sequence_length": 129}}, "latency.sequence_length"),
        ({"finetune": {"max_length": 129}}, "finetune.max_length"),
    ],
)
def test_blocks_beyond_all_positions_are_refused(
    experiment_file: Callable[..., Path], tmp_path: Path, more: dict[str, Any], option: str
) -> None:
    make_tiny_model("opt").config.save_pretrained(tmp_path / "opt")
    model = {"model.base_model": str(tmp_path / "opt"), "data.tokenizer": str(tmp_path / "opt")}
    methods = {"metric": _metric("random")}
    lengths: dict[str, Any] = {"evaluation_lengths": [16], "finetune": {"max_length": 16}}
    path = experiment_file(methods=methods, settings=None, options=model, **(lengths | more))
    with pytest.raises(UserError, match=rf"methods\.metric: {option} is 129 tokens, .* learned"):
        trials_of(load_experiment(path), tmp_path / "out")


def test_what_is_random_has_a_trial_for_each_seed(
    experiment_file: Callable[..., Path], tmp_path: Path
) -> None:
    scores = str(tmp_path / "scores.safetensors")
    save_file({"scores": torch.rand(78)}, scores)
    methods = {
        "dense": {"kind": "dense"},
        "slicegpt": {"kind": "slicegpt"},
        "wanda_sp": _metric("wanda_sp"),
        "random": _metric("random"),
        "bonsai": _metric("bonsai", normalization="global"),
        "scores": _metric("random", scores=scores),
        "learned": {"kind": "learned"},
    }
    path = experiment_file(methods=methods, settings=None, seeds=[3, 5])
    seeds: dict[str, list[int]] = {}
    for trial in trials_of(load_experiment(path), tmp_path / "out"):
        seeds.setdefault(trial.method, []).append(trial.seed)
        folder = tmp_path / "out" / "trials" / "all"
        assert trial.folder == folder / trial.method / f"seed{trial.seed}"
        assert trial.cache_key["fit"]["data"].get("seed", trial.seed) == trial.seed
    several = {"random", "bonsai", "learned"}
    assert seeds == {name: [3, 5] if name in several else [3] for name in methods}
