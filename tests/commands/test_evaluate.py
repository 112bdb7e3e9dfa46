"""`evaluate` as a user meets it: its files and table, and what it leaves whole."""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pgprune_lightning.cli import main
from pgprune_lightning.commands.evaluate import evaluate_parser
from pgprune_lightning.evaluation import evaluate_zero_shot
from pgprune_lightning.masking import token_nll
from pgprune_lightning.masking.frozen_model import load_frozen_model
from pgprune_lightning.masking.model_source import resolve_model_source
from pgprune_lightning.masking.tokenizer import load_tokenizer
from pgprune_lightning.plan import PruningPlan
from pgprune_lightning.slicing import cut_model
from tests.tiny_commands import TinyCommand

OPTIONS = """model output existing base_model tokenizer dtype device texts lengths stride tokens
    bos_per_block batch_tokens zero_shot zero_shot_folder limit speed batch_size prompt_tokens
    new_tokens repetitions"""
QUICK = ("--lengths", "16", "48", "--dtype", "float32", "--device", "cpu")
SPEED = ("--speed", "--prompt-tokens", "8", "--new-tokens", "4", "--repetitions", "2")


def _load(folder: Path) -> Any:
    source = resolve_model_source(str(folder))
    return load_frozen_model(source, dtype=torch.float32, device=torch.device("cpu"))


def _perplexity(model: Any, tokenizer: Any, text: Path, length: int) -> float:
    """By hand: the documents' tokens and an end token, in full blocks."""
    ids = [*tokenizer(text.read_text())["input_ids"], tokenizer.eos_token_id]
    blocks_BT = torch.tensor(ids[: len(ids) // length * length]).view(-1, length)
    return math.exp(float(token_nll(model, blocks_BT).double().mean()))


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "results" / "evaluation.json"


def _read(output: Path) -> dict[str, dict[str, Any]]:
    result = json.loads(output.read_text())
    assert (result["format"], result["version"]) == ("pgprune-evaluation", 1)
    return {model["model"]: model for model in result["models"]}


def test_the_options_are_these() -> None:
    ours = {a.dest: a.help for a in evaluate_parser()._actions if a.dest != "help"}
    assert set(ours) - {"print_shtab"} == set(OPTIONS.split())
    assert all(len(text or "") > 20 for text in ours.values())


def test_dense_and_pruned_side_by_side(
    tiny_command: TinyCommand,
    tiny_model_folder: Path,
    tiny_texts: Path,
    output: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert tiny_command("fit").status == 0
    run, text = tiny_command.run_dir, tiny_texts / "test.txt"
    models = ("--model", f"dense={tiny_model_folder}", f"pruned={run}")
    capsys.readouterr()
    given = ["evaluate", *models, "--texts", str(text), "--stride", "20", *QUICK, *SPEED]
    assert main([*given, "--output", str(output)]) == 0
    printed = capsys.readouterr()
    assert not printed.err

    dense, tokenizer = _load(tiny_model_folder), load_tokenizer(str(tiny_model_folder))
    plan = PruningPlan.load(run / "plans" / "best")
    cut = cut_model(dense, plan.space, plan.mask_U)
    found = _read(output)
    assert list(found) == ["dense", "pruned"]
    for name, model in (("dense", dense), ("pruned", cut)):
        entry = found[name]
        for length in (16, 48):
            expected = _perplexity(model, tokenizer, text, length)
            assert entry["perplexity"][f"test at {length}"] == pytest.approx(expected, rel=1e-5)
        assert entry["scored_tokens"]["test at 48, stride 20"] == 130
        assert entry["parameters"] == sum(weight.numel() for weight in model.parameters())
        assert entry["parameter_bytes"] == 4 * entry["parameters"]
        assert len(entry["speed"]["seconds"]["decode"]) == 2
        assert entry["speed"]["decode_tokens_per_second"] > 0
    assert found["pruned"]["parameters"] == plan.kept_parameters
    assert found["pruned"]["kind"] == "plan"
    assert found["pruned"]["plan_validation"] == plan.validation
    result = json.loads(output.read_text())
    assert result["errors"] == {}
    assert result["protocol"]["perplexity"]["texts"]["test"]["files"] == ["test.txt"]
    assert result["protocol"]["speed"]["new_tokens"] == 4
    assert result["provenance"]["command"].startswith("python -m pgprune_lightning evaluate")

    with output.with_suffix(".csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert float(rows[1]["perplexity.test at 16"]) == found["pruned"]["perplexity"]["test at 16"]
    markdown = output.with_suffix(".md").read_text()
    assert "|  | dense | pruned |" in markdown
    share = 100 * found["pruned"]["parameters"] / found["dense"]["parameters"]
    for shown in (
        "test at 48, stride 20",
        "decode, tokens/s",
        f"{share:.1f} %",
        "size on disk",
    ):
        assert shown in printed.out
        assert shown in markdown


def test_agrees_with_a_comparison(
    tiny_command: TinyCommand,
    tiny_model_folder: Path,
    tiny_texts: Path,
    output: Path,
) -> None:
    experiment = {
        "title": "A mask",
        "recipe": "config.yaml",
        "settings": {"0.6": {"model.keep_ratio": 0.6}},
        "methods": {"dense": {"kind": "dense"}, "wanda_sp": {"kind": "metric"}},
        "evaluation_lengths": [16, 48],
        "evaluation_tokens": 96,
    }
    file = Path(tiny_command.overlay(yaml.safe_dump(experiment)))
    folder = tiny_command.run_dir.with_name("comparison")
    assert main(["compare", "--config", str(file), "--output", str(folder)]) == 0
    compared = json.loads((folder / "compare.json").read_text())["settings"]["0.6"]["methods"]
    plan = next(folder.glob("trials/*/wanda_sp/*/plan"))
    given = ["evaluate", "--model", f"dense={tiny_model_folder}", f"wanda_sp={plan}", *QUICK]
    texts = ["--texts", f"test text={tiny_texts / 'test.txt'}", "--tokens", "96"]
    assert main([*given, *texts, "--output", str(output)]) == 0
    found = _read(output)
    for name, method in compared.items():
        for length in (16, 48):
            measured = found[name]["perplexity"][f"test text at {length}"]
            # The comparison masks, and here the model is cut.
            assert measured == pytest.approx(method[f"perplexity_{length}"], rel=1e-5)
        assert found[name]["parameters"] == method["parameters"]


def test_an_export_measures_as_the_plan_that_it_comes_from(
    tiny_command: TinyCommand, tiny_texts: Path, tmp_path: Path, output: Path
) -> None:
    assert tiny_command("fit").status == 0
    run, exported = str(tiny_command.run_dir), tmp_path / "exported"
    to = ["--format", "hf", "--output", str(exported), "--dtype", "float32"]
    assert main(["export", "--plan", run, *to]) == 0
    models = ("--model", f"plan={run}", str(exported))
    texts = ("--texts", str(tiny_texts / "test.txt"))
    assert main(["evaluate", *models, *texts, *QUICK, *SPEED, "--output", str(output)]) == 0
    found = _read(output)
    assert [entry["kind"] for entry in found.values()] == ["plan", "exported"]
    assert found["exported"]["perplexity"] == pytest.approx(found["plan"]["perplexity"], rel=1e-6)
    assert found["exported"]["parameters"] == found["plan"]["parameters"]
    weights = (exported / "model.safetensors").stat().st_size
    assert found["exported"]["disk_bytes"] == weights


def test_a_row_that_fails_leaves_the_others(
    tiny_model_folder: Path,
    tiny_texts: Path,
    tmp_path: Path,
    output: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model_folder, broken)
    (broken / "model.safetensors").write_bytes(b"no weights")
    models = ("--model", f"a={tiny_model_folder}", f"bad={broken}", f"b={tiny_model_folder}")
    given = ["evaluate", *models, "--texts", str(tiny_texts / "test.txt"), *QUICK, *SPEED]
    assert main([*given, "--output", str(output)]) == 2
    found = _read(output)
    assert list(found) == ["a", "b"]
    assert found["a"]["perplexity"] == found["b"]["perplexity"]
    assert all("speed" in entry for entry in found.values())
    errors = json.loads(output.read_text())["errors"]
    assert list(errors) == ["bad"]
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert line.startswith("error: bad: ")
    assert "Check that the file is whole" in line or "could not be loaded" in line
    assert "Failed: bad" in printed.out


def test_a_measure_that_fails_leaves_the_others(
    pgprune_data: Path, tmp_path: Path, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lm_eval", reason="pip install -e '.[zero-shot]'")
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    content = (pgprune_data / "zeroshot" / "piqa.jsonl").read_text()
    (tasks / "piqa.jsonl").write_text(content + '{"goal": \n')
    story = tmp_path / "story.txt"
    story.write_text("Once upon a time there was a little girl. " * 20)
    zero_shot = ("--zero-shot", "piqa", "--zero-shot-folder", str(tasks))
    given = ["evaluate", "--model", str(pgprune_data / "stories260K"), *QUICK, *zero_shot]
    assert main([*given, "--texts", str(story), "--output", str(output)]) == 2
    entry = _read(output)["stories260K"]
    assert set(entry["perplexity"]) == {"story at 16", "story at 48"}
    assert "zero_shot" not in entry
    assert "zero-shot: zero_shot: the data of piqa cannot be read" in capsys.readouterr().err


def test_zero_shot_is_the_harness(pgprune_data: Path, output: Path) -> None:
    pytest.importorskip("lm_eval", reason="pip install -e '.[zero-shot]'")
    folder, tasks = pgprune_data / "stories260K", pgprune_data / "zeroshot"
    given = ["evaluate", "--model", str(folder), "--zero-shot", "piqa", "arc_easy", *QUICK]
    more = ["--zero-shot-folder", str(tasks), "--limit", "10", "--output", str(output)]
    assert main([*given, *more]) == 0
    scores = evaluate_zero_shot(
        _load(folder),
        load_tokenizer(str(folder)),
        ["piqa", "arc_easy"],
        local_folder=tasks,
        limit=10,
    )
    entry = _read(output)["stories260K"]
    assert entry["zero_shot"] == {task: score.accuracy for task, score in scores.items()}
    assert entry["zero_shot_average"] == sum(entry["zero_shot"].values()) / 2
    assert "perplexity" not in entry


def test_a_table_that_is_there_is_not_overwritten_unasked(
    tiny_model_folder: Path, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output.parent.mkdir()
    output.with_suffix(".md").write_text("mine")
    given = ["evaluate", "--model", str(tiny_model_folder), "--output", str(output), *QUICK]
    assert main([*given, *SPEED]) == 2
    assert "evaluation.md is there already" in capsys.readouterr().err
    assert output.with_suffix(".md").read_text() == "mine"
    assert main([*given, *SPEED, "--existing", "replace"]) == 0
    assert "decode, tokens/s" in output.with_suffix(".md").read_text()
