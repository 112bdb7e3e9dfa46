"""A number is never taken up again after a file that it came from has changed."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pgprune_lightning.comparison import Experiment, load_experiment
from pgprune_lightning.comparison.cache_key import cache_key_of, digest_of, first_difference
from pgprune_lightning.comparison.experiment import FinetuneOptions, MethodKind

FILES = ("train.txt", "valid.txt", "test.txt", "second.txt", "alpaca.jsonl", "piqa.jsonl")
TOKENIZER = ("words/tokenizer.json", "words/config.json")
EVERY_KIND: tuple[MethodKind, ...] = ("dense", "metric", "slicegpt", "learned")


@pytest.fixture
def experiment(experiment_file: Callable[..., Path], tmp_path: Path) -> Experiment:
    (tmp_path / "words").mkdir()
    for name in (*FILES, "plan.json", "scores.safetensors", *TOKENIZER):
        (tmp_path / name).write_text(f"what {name} held")
    experiment = load_experiment(experiment_file())
    return replace(experiment, zero_shot=("piqa",), zero_shot_folder=str(tmp_path))


def _cache_key(
    experiment: Experiment, kind: MethodKind, folder: Path, model: Path, **start: str
) -> dict[str, Any]:
    config = {
        "model": {
            "base_model": str(model),
            "execution": {"dtype": "float32", "attention": "sdpa"},
            "initialization": {"metric": "wanda_sp", "plan": None, "scores": None, **start},
        },
        "data": {
            "train": {"path": str(folder / "train.txt"), "part": [0.0, 0.9]},
            "validation": {"path": "hub/text", "local_copy": str(folder / "valid.txt")},
            "test": [{"path": str(folder / name)} for name in ("test.txt", "second.txt")],
            "tokenizer": str(folder / "words"),
        },
        "trainer": {"accelerator": "cpu"},
    }
    tuning = FinetuneOptions(str(folder / "alpaca.jsonl"))
    return cache_key_of(experiment, kind, config, 0, tuning)


@pytest.mark.parametrize(
    ("name", "option", "kinds"),
    [
        ("train.txt", "data.train", "metric slicegpt learned"),
        ("valid.txt", "data.validation", "learned"),
        ("test.txt", "data.test", "dense metric slicegpt learned"),
        ("second.txt", "", ""),
        ("plan.json", "model.initialization.plan", "metric slicegpt learned"),
        ("scores.safetensors", "model.initialization.scores", "metric slicegpt learned"),
        ("words/tokenizer.json", "data.tokenizer", "dense metric slicegpt learned"),
        ("alpaca.jsonl", "finetune.records", "dense metric slicegpt learned"),
        ("piqa.jsonl", "zero_shot", "dense metric slicegpt learned"),
    ],
)
def test_a_changed_file_makes_another_trial_of_those_that_read_it(
    experiment: Experiment,
    tiny_model_folder: Path,
    tmp_path: Path,
    name: str,
    option: str,
    kinds: str,
) -> None:
    start = {"plan": str(tmp_path)} if name == "plan.json" else {}
    start |= {"scores": str(tmp_path / name)} if name == "scores.safetensors" else {}

    def cache_keys() -> list[dict[str, Any]]:
        return [
            _cache_key(experiment, kind, tmp_path, tiny_model_folder, **start)
            for kind in EVERY_KIND
        ]

    before, path = cache_keys(), tmp_path / name
    # As long as before: a changed word must not hide behind an equal size.
    path.write_text(path.read_text().replace("held", "hold"))
    os.utime(path, ns=(0, 0))
    after = cache_keys()
    changed = [
        kind
        for kind, old, new in zip(EVERY_KIND, before, after, strict=True)
        if digest_of(old) != digest_of(new)
    ]
    assert changed == kinds.split()
    for kind, old, new in zip(EVERY_KIND, before, after, strict=True):
        if kind in changed:
            assert first_difference(old, new).startswith(f"contents.{option}: ")


def test_a_copy_with_another_time_is_the_same_file(
    experiment: Experiment, tiny_model_folder: Path, tmp_path: Path
) -> None:
    before = _cache_key(experiment, "learned", tmp_path, tiny_model_folder)
    for name in FILES:
        os.utime(tmp_path / name, ns=(1, 1))
    assert _cache_key(experiment, "learned", tmp_path, tiny_model_folder) == before


def test_what_is_not_there_is_no_content(
    experiment: Experiment, tiny_model_folder: Path, tmp_path: Path
) -> None:
    """Whether a missing text is an error is decided where it would be read."""
    for name in ("valid.txt", "test.txt", "alpaca.jsonl", "piqa.jsonl"):
        (tmp_path / name).unlink()
    contents = _cache_key(experiment, "learned", tmp_path, tiny_model_folder)["contents"]
    assert set(contents) == {"data.train", "data.tokenizer"}
