"""The results of all trials: where their numbers come from, and how their masks differ."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from pgprune_lightning.comparison.experiment import Experiment, Method
from pgprune_lightning.comparison.results import collect
from pgprune_lightning.comparison.trial import Trial
from pgprune_lightning.masking import unit_layout_of
from pgprune_lightning.plan import BaseModel, PruningPlan

EXPERIMENT = Experiment(
    title="",
    recipe=(),
    options={},
    settings={"all": {}},
    methods={name: Method("metric", {}) for name in ("one", "two", "other")},
    seeds=(0,),
    evaluation_lengths=(16,),
    evaluation_tokens=None,
    zero_shot=(),
    pictures=(),
)


def _trial(method: str, folder: Path) -> Trial:
    return Trial("all", method, "metric", 0, (), {}, folder / method)


def _result(commit: str | None = "abc", device: str = "a machine") -> dict[str, Any]:
    return {"seed": 0, "perplexity_16": 9.0, "provenance": {"commit": commit, "device": device}}


@pytest.mark.parametrize(
    ("commits", "said"),
    [(["abc", "abc"], "abc"), (["abc", "abc", "def"], "abc, def"), ([None], None)],
)
def test_the_commit_and_the_machine_are_those_of_the_trials(
    tmp_path: Path, commits: list[str | None], said: str | None
) -> None:
    finished = [(_trial("one", tmp_path), _result(commit)) for commit in commits]
    results = collect(EXPERIMENT, finished, [], "compare --config a.yaml")
    assert results["provenance"]["commit"] == said
    assert results["provenance"]["device"] == "a machine"
    assert results["command"] == results["provenance"]["command"] == "compare --config a.yaml"


def test_without_a_trial_the_commit_is_that_of_this_run(tmp_path: Path) -> None:
    results = collect(EXPERIMENT, [], [(_trial("one", tmp_path), "failed")], "compare")
    assert results["provenance"]["device"]
    assert results["errors"] == {"all / one / seed 0": "failed"}


def test_masks_of_two_models_have_no_distance(
    tmp_path: Path, tiny_model_folder: Path, tiny_model: Callable[..., PreTrainedModel]
) -> None:
    """The other model has more KV groups: its mask cannot even be laid beside the others."""
    tiny_model("llama_mha").save_pretrained(tmp_path / "model")
    models = {"one": tiny_model_folder, "two": tiny_model_folder, "other": tmp_path / "model"}
    finished = []
    for method, folder in models.items():
        name = "llama_mha" if method == "other" else "llama_gqa"
        space = unit_layout_of(tiny_model(name), ["kv_group", "mlp_channel"])
        mask_U = torch.ones(space.num_units, dtype=torch.bool)
        mask_U[0] = method == "two"
        base_model = BaseModel(str(folder), "llama", "0" * 64, space.total_parameters)
        budget = {"keep_ratio": 0.5, "scope": "per_kind", "protected_layers": []}
        plan = PruningPlan(base_model, space, mask_U.double(), mask_U, budget, 0)
        plan.save(tmp_path / "trials" / method / "plan")
        finished.append((_trial(method, tmp_path / "trials"), _result()))
    results = collect(EXPERIMENT, finished, [], "compare")
    units = 2 + 24
    by_layer = [pytest.approx(1 / units), 0.0, 0.0]
    assert results["hamming"] == {"one": {"two": by_layer}, "two": {"one": by_layer}, "other": {}}
    assert set(results["sparsity"]) == set(models)
