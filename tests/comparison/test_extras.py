"""What is measured beyond masks and perplexity, on a tiny trained model, against direct calls."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import PreTrainedModel

from pgprune_lightning.cli import main
from pgprune_lightning.evaluation import evaluate_zero_shot
from pgprune_lightning.masking import unit_layout_of
from pgprune_lightning.masking.frozen_model import load_frozen_model
from pgprune_lightning.masking.model_source import resolve_model_source
from pgprune_lightning.masking.tokenizer import load_tokenizer
from pgprune_lightning.plan import PruningPlan
from pgprune_lightning.recovery import LoraOptions, finetune_lora, read_alpaca
from pgprune_lightning.slicing import cut_model

RECIPE = Path(__file__).resolve().parents[2] / "configs" / "recipes" / "tiny_stories.yaml"
FIND_SPEC = "pgprune_lightning.evaluation.zero_shot_tasks.find_spec"

EXPERIMENT: dict[str, Any] = {
    "title": "A mask and the dense model",
    "recipe": str(RECIPE),
    "methods": {
        "dense": {"kind": "dense"},
        "magnitude": {"kind": "metric", "options": {"model.initialization.metric": "magnitude"}},
    },
    "evaluation_lengths": [32, 64],
    "evaluation_tokens": 256,
}

Compare = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def compare(pgprune_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compare:
    """Runs an experiment on the trained model; keys given override those of the file."""
    monkeypatch.setenv("PGPRUNE_DATA", str(pgprune_data))

    def run(*arguments: str, **changes: Any) -> tuple[int, dict[str, Any]]:
        path, output = tmp_path / "experiment.yaml", tmp_path / "out"
        path.write_text(yaml.safe_dump(EXPERIMENT | changes, sort_keys=False))
        status = main(["compare", "--config", str(path), "--output", str(output), *arguments])
        results = output / "compare.json"
        return status, json.loads(results.read_text()) if results.is_file() else {}

    return run


def _dense(data: Path) -> PreTrainedModel:
    source = resolve_model_source(str(data / "stories260K"))
    return load_frozen_model(source, dtype=torch.float32, device=torch.device("cpu"))


def _cut(data: Path, trial: Path) -> PreTrainedModel:
    dense, plan = _dense(data), PruningPlan.load(trial / "plan")
    return cut_model(dense, unit_layout_of(dense, list(plan.space.kinds)), plan.mask_U)


ZERO_SHOT: dict[str, Any] = {
    "zero_shot": ["arc_easy", "winogrande"],
    "zero_shot_folder": "${PGPRUNE_DATA}/zeroshot",
    "zero_shot_limit": 4,
}


def test_accuracies_are_those_of_the_pruned_model(
    compare: Compare, pgprune_data: Path, tmp_path: Path
) -> None:
    pytest.importorskip("lm_eval", reason="pip install -e '.[zero-shot]'")
    methods: dict[str, Any] = EXPERIMENT["methods"] | {"slicegpt": {"kind": "slicegpt"}}
    status, results = compare(methods=methods, **ZERO_SHOT)
    assert status == 0
    folder = pgprune_data / "zeroshot"
    cut = _cut(pgprune_data, tmp_path / "out" / "trials" / "all" / "magnitude" / "seed0")
    tokenizer = load_tokenizer(str(pgprune_data / "stories260K"))
    for name, model in {"dense": _dense(pgprune_data), "magnitude": cut}.items():
        scores = evaluate_zero_shot(
            model, tokenizer, ["arc_easy", "winogrande"], local_folder=folder, limit=4
        )
        entry = results["methods"][name]
        assert entry["zero_shot"] == {task: score.accuracy for task, score in scores.items()}
        assert entry["zero_shot_normalized"] == {
            task: score.normalized_accuracy for task, score in scores.items()
        }
        assert entry["zero_shot_average"] == sum(entry["zero_shot"].values()) / 2
    assert results["methods"]["dense"]["zero_shot"] != entry["zero_shot"]
    assert set(results["methods"]["slicegpt"]["zero_shot"]) == set(entry["zero_shot"])

    markdown = (tmp_path / "out" / "table.md").read_text()
    assert "| arc_easy | winogrande | zero-shot average |" in markdown
    average = entry["zero_shot_average"]
    assert f"| {100 * average:.1f} % |" in markdown
    assert "first 4 examples" in markdown
    with (tmp_path / "out" / "table.csv").open() as file:
        (row,) = [line for line in csv.DictReader(file) if line["method"] == "magnitude"]
    assert float(row["zero_shot_average"]) == average
    assert float(row["zero_shot.winogrande"]) == entry["zero_shot"]["winogrande"]


def test_tasks_that_cannot_run_are_refused_before_a_model_is_loaded(
    compare: Compare,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(FIND_SPEC, lambda name: None)
    assert compare(**ZERO_SHOT) == (2, {})
    assert "lm-eval, which is not installed" in capsys.readouterr().err
    assert compare(**ZERO_SHOT | {"zero_shot_folder": str(tmp_path)}) == (2, {})
    assert "there is no file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_table_of_finished_trials_needs_no_library(
    compare: Compare, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval", reason="pip install -e '.[zero-shot]'")
    methods = {"dense": {"kind": "dense"}}
    tasks = ZERO_SHOT | {"zero_shot_limit": 2}
    assert compare(methods=methods, **tasks)[0] == 0
    monkeypatch.setattr(FIND_SPEC, lambda name: None)
    status, results = compare(methods=methods, **tasks)
    assert (status, list(results["methods"]["dense"]["zero_shot"])) == (0, tasks["zero_shot"])


def test_what_is_timed_is_the_cut_model(compare: Compare, tmp_path: Path) -> None:
    methods: dict[str, Any] = EXPERIMENT["methods"] | {"slicegpt": {"kind": "slicegpt"}}
    shape = {"batch_size": 2, "sequence_length": 16, "repetitions": 2}
    status, results = compare(methods=methods, latency=shape)
    assert (status, results["latency"]) == (0, shape)
    for name, entry in results["methods"].items():
        latency = entry["latency"]
        assert latency["parameter_bytes"] == 4 * entry["parameters"], name
        assert latency["seconds"] > 0
        assert latency["tokens_per_second"] == pytest.approx(32 / latency["seconds"])
        assert latency["peak_memory_bytes"] is None
    sizes = {
        name: entry["latency"]["parameter_bytes"] for name, entry in results["methods"].items()
    }
    assert sizes["dense"] > sizes["magnitude"] > sizes["slicegpt"]
    assert "| memory of weights |" in (tmp_path / "out" / "table.md").read_text()


FINETUNE: dict[str, Any] = {
    "records": "${PGPRUNE_DATA}/alpaca/alpaca_9k.jsonl",
    **{"rank": 4, "lr": 0.01, "num_records": 8, "batch_size": 8, "max_length": 256, "epochs": 2},
}


def test_a_tuned_row_is_the_tuned_cut_model_and_the_dense_one_stays(
    compare: Compare, pgprune_data: Path, tmp_path: Path
) -> None:
    pytest.importorskip("peft", reason="pip install -e '.[finetune]'")
    magnitude: dict[str, Any] = EXPERIMENT["methods"]["magnitude"]
    methods = {
        "magnitude": magnitude,
        "dense_tuned": {"kind": "dense", "finetune": True},
        "slicegpt": {"kind": "slicegpt"},
        "dense": {"kind": "dense"},
        "before": magnitude | {"finetune": False},
        "slicegpt_before": {"kind": "slicegpt", "finetune": False},
    }
    status, results = compare(methods=methods, finetune=FINETUNE)
    assert status == 0
    rows = results["methods"]
    tuned = {name for name, row in rows.items() if "finetuned" in row}
    assert tuned == {"magnitude", "dense_tuned", "slicegpt"}
    for name in tuned:
        assert rows[name]["finetuned"]["steps"] == 2
        assert rows[name]["finetuned"]["seconds"] > 0
    note = "measured: magnitude, dense_tuned, slicegpt;"
    assert note in (tmp_path / "out" / "table.md").read_text()

    # The same without any tuning in the process: what was kept between trials is untouched.
    first = rows
    untuned = {name: row | {"finetune": False} for name, row in methods.items()}
    _, results = compare("--existing", "reuse", methods=untuned, finetune=FINETUNE)
    rows = results["methods"]
    pairs = {"dense_tuned": "dense", "magnitude": "before", "slicegpt": "slicegpt_before"}
    for name, before in pairs.items():
        assert rows[name]["perplexity_64"] == first[before]["perplexity_64"]
        assert first[name]["perplexity_64"] != first[before]["perplexity_64"]
        assert first[name]["parameters"] == first[before]["parameters"]

    plan = tmp_path / "out" / "trials" / "all" / "before" / "seed0"
    cut = _cut(pgprune_data, plan)
    tokenizer = load_tokenizer(str(pgprune_data / "stories260K"))
    records = read_alpaca(str(pgprune_data / "alpaca" / "alpaca_9k.jsonl"))
    options = {name: value for name, value in FINETUNE.items() if name != "records"}
    losses: list[float] = []
    finetune_lora(
        cut,
        tokenizer,
        records,
        LoraOptions(**options),
        on_step=lambda _, loss: losses.append(loss),
    )
    assert first["magnitude"]["finetuned"]["loss"] == pytest.approx(losses[-1], rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"records": "missing.jsonl"}, "missing.jsonl: no such file"),
        ({"rank": 0}, "rank is 0"),
    ],
)
def test_tuning_that_cannot_run_is_refused_before_a_model_is_loaded(
    compare: Compare,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    message: str,
) -> None:
    pytest.importorskip("peft", reason="pip install -e '.[finetune]'")
    assert compare(finetune=FINETUNE | changes) == (2, {})
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
