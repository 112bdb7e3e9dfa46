"""`bench` as a user meets it: its table, its JSON and picture, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pgprune_lightning.benchmark.published_shapes import SHAPES
from pgprune_lightning.cli import main
from pgprune_lightning.commands import bench
from tests.tiny_models import make_tiny_model

TINY_SHAPE = {
    "model_type": "llama",
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
QUICK = ("--steps", "2", "--batch-size", "2", "--block-length", "8")
OPTIONS = """config model shape keep_ratio dtype device execution batch_size block_length
    num_mask_samples steps seconds scaling output picture others"""
RESULT = """keep_ratio reference ours ratio execution flops_share_of_peak
    kept_flops_per_step peak_memory_over_weights_bytes policy_seconds policy_share_of_step
    projected_seconds_15000_steps"""


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHAPES, "tiny", TINY_SHAPE)
    monkeypatch.setitem(SHAPES, "learned", {"model_type": "opt", "max_position_embeddings": 128})
    monkeypatch.setattr("pgprune_lightning.benchmark.arithmetic.SQUARE", {"cpu": 128})
    monkeypatch.setattr("research.unit_scaling.UNITS", (10, 100))


@pytest.fixture
def _no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        pytest.fail("a model was built before the input was checked")

    monkeypatch.setattr(bench, "random_model", refuse)
    monkeypatch.setattr(bench, "load_frozen_model", refuse)


def test_the_options_are_these() -> None:
    parser = bench.bench_parser()
    ours = {action.dest: action.help for action in parser._actions if action.dest != "help"}
    assert set(ours) - {"print_shtab"} == set(OPTIONS.split())
    assert all(len(text or "") > 20 for text in ours.values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_shape_is_timed(dtype: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "new" / "result.json"
    given = ["bench", "--shape", "tiny", "--dtype", dtype, "--device", "cpu", *QUICK]
    assert main([*given, "--output", str(output)]) == 0
    result = json.loads(output.read_text())
    assert set(RESULT.split()) <= set(result)
    assert "keep_ratios" not in result
    assert result["reference"]["steps_per_second"] > 0
    assert len(result["ours"]["seconds"]) == len(result["reference"]["seconds"]) == 2
    medians = [result[way]["median_seconds"] for way in ("reference", "ours")]
    assert result["ratio"] == pytest.approx(medians[0] / medians[1])
    assert result["projected_seconds_15000_steps"] == pytest.approx(15_000 * medians[1])
    assert result["execution"] in ("dense_masked", "compact", "batched")
    assert (result["dtype"], result["model"], result["keep_ratio"]) == (dtype, "tiny", 0.5)
    assert (result["batch_size"], result["block_length"], result["num_mask_samples"]) == (2, 8, 2)
    assert {"commit", "torch", "threads", "device", "command"} <= set(result)
    table = capsys.readouterr().out
    assert "reference" in table
    assert f"{result['ratio']:.2f}" in table


def test_several_keep_ratios_a_picture_and_the_units(tmp_path: Path) -> None:
    output, picture = tmp_path / "result.json", tmp_path / "cost.png"
    given = ["bench", "--shape", "tiny", "--device", "cpu", *QUICK, "--execution", "compact"]
    more = ["--keep-ratio", "0.5", "0.8", "--scaling", "--picture", str(picture)]
    assert main([*given, *more, "--output", str(output)]) == 0
    result = json.loads(output.read_text())
    assert [entry["keep_ratio"] for entry in result["keep_ratios"]] == [0.5, 0.8]
    assert result["keep_ratios"][0]["ours"] == result["ours"]
    assert result["execution"] == "compact"
    assert [entry["units"] for entry in result["scaling"]] == [10, 100]
    assert picture.read_bytes().startswith(b"\x89PNG")
    again = tmp_path / "both.svg"
    others = ["--others", str(output), "--picture", str(again)]
    assert main([*given, *others, "--num-mask-samples", "1"]) == 0
    assert b"<svg" in again.read_bytes()


def test_a_trained_model_is_timed_as_its_recipe_says(
    pgprune_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPRUNE_DATA", str(pgprune_data))
    recipe = Path(__file__).resolve().parents[2] / "configs" / "recipes" / "tiny_stories.yaml"
    output = tmp_path / "result.json"
    given = ["bench", "--config", str(recipe), "--steps", "1", "--device", "cpu"]
    assert main([*given, "--batch-size", "1", "--output", str(output)]) == 0
    result = json.loads(output.read_text())
    assert result["model"] == "${PGPRUNE_DATA}/stories260K"
    assert (result["keep_ratio"], result["num_mask_samples"], result["batch_size"]) == (0.7, 4, 1)
    assert (result["dtype"], result["parameters"]) == ("float32", 260_032)
    assert (result["policy"], result["mask_granularity"]) == ("FreeProbabilities", "batch")


@pytest.fixture
def default_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A shape timed by the default recipe, over one whose model and texts are not there."""
    monkeypatch.setenv("PGPRUNE_DATA", str(tmp_path / "none"))
    folder = Path(__file__).resolve().parents[2] / "configs" / "recipes"
    recipes = [folder / "tiny_stories.yaml", folder / "fast.yaml"]
    configs = [part for recipe in recipes for part in ("--config", str(recipe))]
    return ["bench", "--shape", "tiny", "--device", "cpu", "--dtype", "float32", *configs]


def test_recipes_laid_over_one_another_say_how_it_learns(
    default_recipe: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And a shape takes the place of their model, which need not be there."""
    output = tmp_path / "result.json"
    assert main([*default_recipe, "--execution", "auto", *QUICK, "--output", str(output)]) == 0
    result = json.loads(output.read_text())
    assert (result["policy"], result["mask_granularity"]) == ("PGPEPolicy", "sequence")
    assert (result["model"], result["budget"], result["lr"]) == ("tiny", "parameters", 0.2)
    assert result["execution"] in ("compact", "batched")
    assert "N_s = 2 a sequence, PGPEPolicy" in capsys.readouterr().out


@pytest.mark.usefixtures("_no_model")
def test_too_few_masks_for_a_recipe_are_refused_before_a_model_is_built(
    default_recipe: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*default_recipe, "--num-mask-samples", "1"]) == 2
    assert "num_mask_samples" in capsys.readouterr().err


@pytest.mark.usefixtures("_no_model")
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--shape", "gpt-2"], "'gpt-2' is not one of llama-2-7b"),
        ([], "give --shape NAME"),
        (["--shape", "tiny", "--model", "folder"], "give one of them"),
        (["--shape", "tiny", "--keep-ratio", "0"], "must lie in (0, 1], given 0.0"),
        (["--shape", "tiny", "--keep-ratio", "0.5", "1.5"], "given 1.5"),
        (["--shape", "tiny", "--keep-ratio", "0.5", "0.5"], "different numbers"),
        (["--shape", "tiny", "--batch-size", "0"], "--batch-size: must be at least 1"),
        (["--shape", "tiny", "--block-length", "1"], "--block-length: must be at least 2"),
        (["--shape", "tiny", "--num-mask-samples", "0"], "--num-mask-samples"),
        (["--shape", "tiny", "--steps", "0"], "--steps must be at least 1"),
        (["--shape", "tiny", "--seconds", "0"], "--seconds above 0"),
        (["--shape", "tiny", "--dtype", "int8"], "int8"),
        (["--shape", "tiny", "--output", "{file}/result.json"], "cannot be written"),
        (["--shape", "tiny", "--output", "{folder}"], "cannot be written"),
        (["--shape", "tiny", "--picture", "{folder}/cost.txt"], "must end in one of .png"),
        (["--shape", "tiny", "--others", "{file}"], "give --picture too"),
        (
            ["--shape", "tiny", "--picture", "{folder}/a.png", "--others", "{file}"],
            "a result of bench",
        ),
        (["--model", "{folder}/none"], "there is no folder or file"),
        (
            ["--model", "{folder}/opt", "--block-length", "129"],
            "--block-length is 129 tokens, but the model (of type opt) has learned positions",
        ),
        (["--shape", "learned", "--block-length", "129"], "has learned positions for 128"),
    ],
)
def test_bad_input_is_refused_before_a_model_is_built(
    given: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_tiny_model("opt").config.save_pretrained(tmp_path / "opt")
    file = tmp_path / "file"
    file.write_text("{}")
    arguments = [text.format(file=file, folder=tmp_path) for text in given]
    try:
        status = main(["bench", *arguments])
    except SystemExit as end:
        status = int(end.code or 0)
    assert status == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert not printed.out


@pytest.mark.usefixtures("_no_model")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_gpu_that_is_not_there_is_missed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--shape", "tiny", "--device", "cuda"]) == 2
    assert "there is no CUDA device" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parameters": None}, "parameters must be a valid integer, given null"),
        ({"keep_ratio": 2}, "keep_ratio must be less than or equal to 1, given 2"),
        ({"ours": {"median_seconds": 0}}, "ours.median_seconds must be greater than 0, given 0"),
        ({"ours": {"median_seconds": float("nan")}}, "median_seconds must be a finite number"),
        ({"keep_ratios": [{}]}, "keep_ratios[0].keep_ratio is missing"),
        ({"scaling": []}, "scaling must have at least 1 item"),
    ],
)
def test_another_result_that_is_damaged(
    change: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    ways = {"reference": {"median_seconds": 2.0}, "ours": {"median_seconds": 1.0}}
    result = {"model": "a", "parameters": 10, "keep_ratio": 0.5, **ways}
    file = tmp_path / "other.json"
    file.write_text(json.dumps(result))
    assert bench._read(file) == result
    file.write_text(json.dumps(result | change))
    others = ["--others", str(file), "--picture", str(tmp_path / "a.png")]
    assert main(["bench", "--shape", "tiny", *others]) == 2
    assert message in capsys.readouterr().err
