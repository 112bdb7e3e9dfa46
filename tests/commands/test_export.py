"""`export` as a user meets it, on a tiny run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from callbacks import MaskCheckpoint, PerplexityValidation
from pgprune_lightning.cli import main
from pgprune_lightning.export import hf
from tests.tiny_commands import Outcome, refused
from tests.tiny_models import make_tiny_model
from tests.tiny_runs import TinyRun, add_tokens

Export = Callable[..., Outcome]


@pytest.fixture(scope="module")
def planned_run(
    tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path, tiny_texts: Path
) -> TinyRun:
    """A run whose folder holds plans."""
    run = TinyRun(tiny_model_folder, tiny_texts, tmp_path_factory.mktemp("run"))
    run.fit([PerplexityValidation(), MaskCheckpoint(str(run.folder))])
    return run


@pytest.fixture
def export(planned_run: TinyRun, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Export:
    """Exports the run to `tmp_path/out`; options given twice count as given last."""

    def run(*options: str, output: Path = tmp_path / "out") -> Outcome:
        given = ["--plan", str(planned_run.folder), "--format", "hf", "--output", str(output)]
        capsys.readouterr()
        try:
            status = main(["export", *given, *options])
        except SystemExit as end:
            status = int(end.code or 0)
        printed = capsys.readouterr()
        return Outcome(status, printed.out, printed.err)

    return run


def test_a_run_becomes_a_model(export: Export, tmp_path: Path) -> None:
    outcome = export()
    assert outcome.status == 0, outcome.err
    assert "largest logit difference" in outcome.out
    assert "transformers with trust_remote_code: yes" in outcome.out
    record = json.loads((tmp_path / "out" / "export.json").read_text())
    assert record["parameters"] < record["dense_parameters"]
    assert record["plan"]["is_its_own_mask"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.num_parameters() == record["parameters"]
    assert not list(tmp_path.glob(".out*"))


def test_several_ratios_make_a_curve(export: Export, planned_run: TinyRun, tmp_path: Path) -> None:
    text = str(planned_run.texts / "test.txt")
    outcome = export(
        "--keep-ratio", "0.6", "0.5", "--text", text, "--block-length", "16", "--tokens", "64"
    )
    assert outcome.status == 0, outcome.err
    curve = json.loads((tmp_path / "out" / "curve.json").read_text())
    assert curve["text"] == {
        "label": "test",
        "path": text,
        "sequence_length": 16,
        "tokens": 64,
        "bos_per_block": False,
    }
    dense, larger, smaller = curve["points"]
    assert dense["keep_ratio"] is None
    assert dense["parameters"] > larger["parameters"] > smaller["parameters"]
    assert all(point["perplexity"] > 1 for point in curve["points"])
    assert (tmp_path / "out" / "keep60" / "export.json").is_file()
    assert (tmp_path / "out" / "keep50" / "config.json").is_file()
    assert (tmp_path / "out" / "curve.png").is_file()


def test_without_a_text_the_curve_has_sizes(
    export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PGPRUNE_DATA", raising=False)
    with pytest.warns(UserWarning, match="The curve has sizes only"):
        outcome = export("--keep-ratio", "0.6", "0.5", "--format", "plan")
    assert outcome.status == 0, outcome.err
    curve = json.loads((tmp_path / "out" / "curve.json").read_text())
    assert curve["text"] is None
    assert [point["perplexity"] for point in curve["points"]] == [None, None, None]


def test_an_export_is_replaced_when_asked_and_nothing_else_ever(
    export: Export, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    mine = tmp_path / "mine"
    refused(export("--existing", "replace", output=mine), "is no earlier export")
    assert export("--format", "plan").status == 0
    refused(export(), "already holds an export", "--existing replace")
    assert (tmp_path / "out" / "plan.json").is_file()
    assert export("--existing", "replace").status == 0
    assert not (tmp_path / "out" / "plan.json").exists()


def test_files_that_the_export_did_not_write_are_not_replaced(
    export: Export, planned_run: TinyRun, tmp_path: Path
) -> None:
    text = ("--text", str(planned_run.texts / "test.txt"), "--block-length", "16")
    several = ("--keep-ratio", "0.6", "0.5", "--format", "plan", "--tokens", "32")
    for options in ((), several, text):
        assert export(*options, *text, "--existing", "replace").status == 0
    written = json.loads((tmp_path / "out" / "curve.json").read_text())["files"]
    assert {"config.json", "curve.json", "curve.png", "export.json"} < set(written)
    notes = tmp_path / "out" / "notes.md"
    notes.write_text("mine")
    refused(export("--existing", "replace"), "export did not write: notes.md. Move them elsewhere")
    assert notes.read_text() == "mine"
    assert (tmp_path / "out" / "export.json").exists()


def test_what_a_killed_replacement_had_moved_away_is_back_at_the_next_start(
    export: Export, tmp_path: Path
) -> None:
    assert export().status == 0
    (tmp_path / "out").rename(tmp_path / ".out.pgprune-old")
    (tmp_path / ".out.pgprune-abcdefgh").mkdir()
    refused(export(), "already holds an export")
    assert (tmp_path / "out" / "export.json").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


BAD_INPUT = {
    "no plan": (["--plan", "nowhere"], "there is neither"),
    "format": (["--format", "onnx"], "onnx"),
    "ratio": (["--keep-ratio", "1.5"], "must lie in (0, 1]"),
    "ratio twice": (["--keep-ratio", "0.5", "0.5"], "names one twice"),
    "multiple": (["--round-to", "0"], "must be at least 1"),
    "devices": (["--tensor-parallel", "3"], "3 units of kv_group stay together"),
    "base model": (["--base-model", "/nowhere/model"], "there is no folder or file"),
    "text": (["--text", "nowhere.txt"], "nowhere.txt"),
    "tokens": (["--tokens", "10"], "at least 128 tokens"),
    "block": (["--block-length", "1"], "at least 2 tokens"),
    "block beyond all positions": (
        ["--base-model", "{opt}", "--text", "{beyond}", "--block-length", "129"],
        "--block-length is 129 tokens, but the model (of type opt) has learned positions for 128",
    ),
    "tokens without rows": (
        ["--base-model", "{more_tokens}", "--text", "{beyond}", "--block-length", "16"],
        "--text: beyond: it holds the token '<x4>' with id 97",
    ),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_mistakes_are_found_before_weights_are_read(
    case: str,
    export: Export,
    tiny_model_folder: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path_factory.mktemp("more")
    more_tokens, beyond = add_tokens(tiny_model_folder, folder / "model"), folder / "beyond.txt"
    beyond.write_text("w1 <x4> w2 w3 " * 100)
    make_tiny_model("opt").config.save_pretrained(folder / "opt")

    def read_weights(*_: object, **__: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr("pgprune_lightning.export.export_run.open_planned_model", read_weights)
    options, message = BAD_INPUT[case]
    places = {"more_tokens": more_tokens, "beyond": beyond, "opt": folder / "opt"}
    given = [option.format(**places) for option in options]
    refused(export(*given), message)
    assert not list(tmp_path.iterdir())


def test_the_type_that_config_names_may_be_another_than_that_of_the_files(
    export: Export, planned_run: TinyRun, tmp_path: Path
) -> None:
    """`--dtype files` then loads float32 weights in float16, in which the plan was not learned."""
    claims = tmp_path / "claims_float16"
    shutil.copytree(planned_run.model, claims)
    config = json.loads((claims / "config.json").read_text())
    (claims / "config.json").write_text(json.dumps(config | {"dtype": "float16"}))
    outcome = export("--base-model", str(claims))
    assert outcome.status == 0, outcome.err
    assert json.loads((tmp_path / "out" / "export.json").read_text())["dtype"] == "float16"


def test_other_weights_are_refused(export: Export, planned_run: TinyRun, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(planned_run.model, other)
    model = AutoModelForCausalLM.from_pretrained(other)
    with torch.no_grad():
        model.lm_head.weight.add_(1)
    model.save_pretrained(other)
    refused(export("--base-model", str(other)), "A plan fits the weights it was learned on only")


def test_a_full_disk_leaves_nothing(
    export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half_written(pruned: object, shell: object, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hf, "save_cut", half_written)
    refused(export(), "cannot write", "No space left on device")
    assert not list(tmp_path.iterdir())
