"""The smallest form of every table and figure: a tiny trained model, one setting, two steps."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from pgprune_lightning.cli import main
from tests.paper_experiments import PAPER

EXPERIMENTS = Path(__file__).resolve().parents[2] / "configs" / "experiments"

LENGTHS = [32, 128]
TEXT: dict[str, Any] = {
    "path": "${PGPRUNE_DATA}/tinystories/stories.txt",
    "document_separator": "<|endoftext|>",
    "num_blocks": 16,
}
NO_HUB = {"name": None, "split": "train", "local_copy": None, "join": "end_token"}
TINY: dict[str, Any] = {
    "model.base_model": "${PGPRUNE_DATA}/stories260K",
    "model.execution.dtype": "float32",
    "model.update.lr": 0.02,
    "model.initialization.num_blocks": 4,
    "data.train": {**TEXT, "data_files": None},
    "data.validation": {**TEXT, **NO_HUB, "label": "validation", "num_blocks": 2},
    "data.test": [{**TEXT, "label": "test"}],
    "data.block_length": 32,
    "data.evaluation_block_length": 32,
    "data.batch_size": 2,
    "data.num_workers": 0,
    "trainer.accelerator": "cpu",
    "trainer.max_steps": 2,
    "trainer.val_check_interval": 2,
}
"""Over every row: no hub, no GPU, no time."""
FEWER_LAYERS = {"model.units.protected_layers": [0]}
SHORT_LATENCY = {"batch_size": 1, "sequence_length": 16, "repetitions": 1}
SHORT_TASKS = {
    "zero_shot": ["arc_easy"],
    "zero_shot_folder": "${PGPRUNE_DATA}/zeroshot",
    "zero_shot_limit": 2,
}
SHORT_TUNING = {
    "records": "${PGPRUNE_DATA}/alpaca/alpaca_9k.jsonl",
    **{"rank": 2, "num_records": 4, "batch_size": 4, "max_length": 256, "epochs": 1},
}
SHORT_STAGES = {"model.budget.progressive.steps_per_stage": 1, "trainer.max_steps": 7}
"""Over rows that protect layers, of which the tiny model has five, and over progressive ones."""


def smallest_form(name: str) -> dict[str, Any]:
    """A file's contents with the first setting only, two seeds at most, and TINY over every row."""
    data: dict[str, Any] = yaml.safe_load((EXPERIMENTS / f"{name}.yaml").read_text())
    for method in data["methods"].values():
        own = method.get("options", {})
        method["options"] = own | TINY
        method["options"] |= FEWER_LAYERS if "model.units.protected_layers" in own else {}
        method["options"] |= SHORT_STAGES if "model.budget.progressive.start" in own else {}
    # One name, so that equal trials of different files lie in the same folder.
    settings = {"first": next(iter(data.get("settings", {"all": {}}).values()))}
    pictures = json.dumps(data["picture"])
    for old, new in zip(data["evaluation_lengths"], LENGTHS, strict=True):
        pictures = pictures.replace(f"perplexity_{old}", f"perplexity_{new}")
    return data | {
        "recipe": str(EXPERIMENTS / data["recipe"]),
        "settings": settings,
        "seeds": data["seeds"][:2],
        "evaluation_lengths": LENGTHS,
        **(SHORT_TASKS if data.get("zero_shot") else {}),
        "finetune": data["finetune"] | SHORT_TUNING if "finetune" in data else None,
        "latency": SHORT_LATENCY if "latency" in data else None,
        "picture": json.loads(pictures),
    }


def skip_without_libraries(experiment: dict[str, Any]) -> None:
    """Skip an experiment whose optional libraries are not installed."""
    if experiment.get("zero_shot"):
        pytest.importorskip("lm_eval", reason="pip install -c constraints.txt -e '.[zero-shot]'")
    if experiment["finetune"]:
        pytest.importorskip("peft", reason="pip install -c constraints.txt -e '.[finetune]'")


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all files: a trial that several of them have is computed once."""
    return tmp_path_factory.mktemp("paper")


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(PAPER))
def test_the_smallest_form_gives_a_table_and_its_pictures(
    pgprune_data: Path,
    output: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    del pgprune_data  # it is named by its environment variable
    experiment = smallest_form(name)
    tasks = experiment.get("zero_shot", [])
    skip_without_libraries(experiment)
    # Trials that are measured alike lie together: equal ones of several files are computed once.
    folder = output / ("tuned" if experiment["finetune"] else "tasks" if tasks else "plain")
    config = output / f"{name}.yaml"
    config.write_text(yaml.safe_dump(experiment, sort_keys=False))
    for drawn in folder.glob("picture*"):
        drawn.unlink()
    status = main(["compare", "--config", str(config), "--output", str(folder)])
    assert status == 0, capsys.readouterr().err

    kinds = {method: row["kind"] for method, row in experiment["methods"].items()}
    results = json.loads((folder / "compare.json").read_text())
    assert list(results["methods"]) == list(kinds)
    for method, entry in results["methods"].items():
        for value in ("perplexity_32", "perplexity_128", "parameters", "peak_memory_bytes"):
            assert entry[value] > 0, (method, value)
        learned = kinds[method] == "learned"
        steps = experiment["methods"][method]["options"]["trainer.max_steps"]
        assert entry.get("steps") == (steps if learned else None)
        assert len(entry["seeds"]) == (len(experiment["seeds"]) if learned else 1)
        assert list(entry.get("zero_shot", [])) == tasks
        is_tuned = bool(experiment["finetune"]) and kinds[method] != "dense"
        assert ("finetuned" in entry) == is_tuned
    masks = [method for method, kind in kinds.items() if kind in ("metric", "learned")]
    assert list(results["sparsity"]) == masks
    assert all(
        set(distances) == set(masks) - {one} for one, distances in results["hamming"].items()
    )
    pictures = experiment["picture"]
    count = len(pictures) if isinstance(pictures, list) else 1
    assert len(list(folder.glob("picture*.png"))) == count
