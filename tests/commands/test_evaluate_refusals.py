"""What `evaluate` refuses, with one error, before it loads any weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NoReturn

import pytest

from pgprune_lightning.cli import main
from tests.tiny_models import make_tiny_model
from tests.tiny_runs import add_tokens


@pytest.fixture
def _no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> NoReturn:
        pytest.fail("weights were loaded before the input was checked")

    monkeypatch.setattr("pgprune_lightning.model_table.opening.open_frozen_model", fail)
    monkeypatch.setattr("pgprune_lightning.model_table.opening.open_planned_model", fail)


def _without_bos(model: Path, folder: Path) -> Path:
    """A copy of a model whose tokenizer has no BOS token."""
    shutil.copytree(model, folder)
    file = folder / "tokenizer_config.json"
    options = json.loads(file.read_text())
    del options["bos_token"]
    file.write_text(json.dumps(options))
    return folder


@pytest.mark.usefixtures("_no_weights")
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--model", "{folder}/none"], "there is no folder or file"),
        (["--model", "{model}", "{model}"], "two models are called"),
        (["--model", "{model}", "--texts", "{folder}/none.txt"], "no such file"),
        (["--model", "{model}", "--texts", "{text}", "--lengths", "4096"], "too short for one"),
        (
            ["--model", "{more_tokens}", "--texts", "{beyond}", "--lengths", "16"],
            "error: --model more: --texts: beyond at 16: it holds the token '<x4>' with id 97",
        ),
        (
            ["--model", "a={opt}", "--texts", "{text}", "--lengths", "16", "129"],
            "--model a: --lengths is 129 tokens, but the model (of type opt) has learned positions",
        ),
        (
            ["--model", "{opt}", "--speed", "--prompt-tokens", "100", "--new-tokens", "29"],
            "--prompt-tokens and --new-tokens is 129 tokens",
        ),
        (["--model", "{no_bos}", "--texts", "{text}", "--bos-per-block", "always"], "no bos token"),
        (["--model", "{model}", "--texts", "{text}", "--stride", "2048"], "--stride"),
        (["--model", "{model}", "--zero-shot", "boolq"], "boolq"),
        (
            ["--model", "{model}", "--zero-shot", "piqa", "--zero-shot-folder", "{folder}"],
            "there is no file",
        ),
        (["--model", "{model}", "--speed", "--repetitions", "0"], "--repetitions"),
        (["--model", "{model}", "--dtype", "int8"], "int8"),
        (["--model", "{model}", "--tokenizer", "{folder}/none"], "there is no folder or file"),
        (["--model", "{model}", "--output", "{folder}/result.txt"], "must end in .json"),
        (["--model", "{model}", "--output", "{text}/result.json"], "cannot be written"),
        ([], "model"),
    ],
)
def test_bad_input_is_refused_before_weights_are_loaded(
    given: list[str],
    message: str,
    tiny_model_folder: Path,
    tiny_texts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {
        "folder": tmp_path,
        "model": tiny_model_folder,
        "no_bos": _without_bos(tiny_model_folder, tmp_path / "no-bos"),
        "more_tokens": add_tokens(tiny_model_folder, tmp_path / "more"),
        "opt": tmp_path / "opt",
        "text": tiny_texts / "test.txt",
        "beyond": tmp_path / "beyond.txt",
    }
    make_tiny_model("opt").config.save_pretrained(places["opt"])
    places["beyond"].write_text("w1 <x4> w2 w3 " * 100)
    arguments = [text.format(**places) for text in given]
    if "--output" not in arguments:
        arguments += ["--output", str(tmp_path / "result.json")]
    try:
        status = main(["evaluate", *arguments])
    except SystemExit as end:
        status = int(end.code or 0)
    assert status == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert not printed.out
    assert not list(tmp_path.glob("result.*"))
