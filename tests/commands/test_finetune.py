"""`finetune`: stopped after every step it is the run that was not, and what it writes reloads."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from pgprune_lightning.cli import main
from pgprune_lightning.commands.finetune import finetune_parser
from pgprune_lightning.finetuning import (
    LoraOptions,
    adapter_training,
    exported_folder,
    finetune_lora,
    read_alpaca,
)
from pgprune_lightning.finetuning.adapter_training import AdapterTraining
from pgprune_lightning.masking import mask_space_of
from pgprune_lightning.masking.fingerprint import model_fingerprint
from pgprune_lightning.masking.frozen_model import load_frozen_model
from pgprune_lightning.masking.model_source import resolve_model_source
from pgprune_lightning.masking.tokenizer import load_tokenizer
from pgprune_lightning.plan import BaseModel, PruningPlan
from tests.tiny_commands import Outcome, refused

STEPS = 5
OPTIONS = """model output records rank alpha dropout target-modules num-records max-length epochs
    batch-size micro-batch-size lr warmup max-grad-norm seed text block-length tokens bos-per-block
    dtype device checkpoint-every resume existing"""
"""Every option: a change here is a change for users and their scripts."""
QUICK = ("--num-records", "9", "--batch-size", "4", "--epochs", "2", "--max-length", "250")
MORE = ("--dropout", "0.1", "--lr", "1e-2", "--warmup", "0.4", "--checkpoint-every", "2")
LORA = LoraOptions(
    num_records=9, batch_size=4, epochs=2, max_length=250, dropout=0.1, lr=1e-2, warmup=0.4
)


@pytest.fixture(autouse=True)
def _peft() -> None:
    pytest.importorskip("peft", reason="pip install -e '.[finetune]'")


@pytest.fixture(scope="module")
def records(pgprune_data: Path) -> str:
    return str(pgprune_data / "alpaca" / "alpaca_9k.jsonl")


@pytest.fixture(scope="module")
def plan(pgprune_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan whose layers differ in width, one without attention and one without MLP."""
    source = str(pgprune_data / "stories260K")
    dense = load_frozen_model(
        resolve_model_source(source), dtype=torch.float32, device=torch.device("cpu")
    )
    space = mask_space_of(dense, ["kv_group", "mlp_channel"])
    generator = torch.Generator().manual_seed(0)
    probabilities_U = torch.rand(space.num_units, generator=generator, dtype=torch.float64)
    mask_U = probabilities_U > 0.3
    space.view(mask_U, 1, "kv_group").fill_(False)
    space.view(mask_U, 3, "mlp_channel").fill_(False)
    base = BaseModel(source, "llama", model_fingerprint(dense), dense.num_parameters())
    budget = {"keep_ratio": 0.7, "scope": "units", "protected_layers": []}
    folder = tmp_path_factory.mktemp("plan") / "best"
    PruningPlan(base, space, probabilities_U, mask_U, budget, step=1).save(folder)
    return folder


def _export(plan: Path, export_format: str) -> Path:
    folder = plan.with_name(export_format)
    if not folder.exists():
        given = ["--plan", str(plan), "--format", export_format, "--output", str(folder)]
        assert main(["export", *given, "--device", "cpu"]) == 0
    return folder


@pytest.fixture(scope="module")
def exported(plan: Path) -> Path:
    """The model that the plan cuts, with code of its own beside it."""
    return _export(plan, "hf")


@pytest.fixture
def finetune(
    exported: Path, records: str, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    """Runs the command in this process; an option given again wins."""

    def run(output: Path, *more: str) -> Outcome:
        capsys.readouterr()
        given = ["--model", str(exported), "--output", str(output), "--records", records]
        try:
            status = main(["finetune", *given, "--device", "cpu", *QUICK, *MORE, *more])
        except SystemExit as end:
            status = int(end.code or 0)
        return Outcome(status, *capsys.readouterr())

    return run


def _rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def _same_model(first: Path, second: Path) -> None:
    """Weights and metrics bit by bit, and everything else but when and how it was run."""
    weights, others = (load_file(folder / "model.safetensors") for folder in (first, second))
    assert weights.keys() == others.keys()
    assert all(torch.equal(value, others[name]) for name, value in weights.items())
    assert _rows(first / "metrics.csv") == _rows(second / "metrics.csv")
    results = [json.loads((folder / "finetune.json").read_text()) for folder in (first, second)]
    for result in results:
        for name in ("seconds", "provenance"):
            result.pop(name)
    assert results[0] == results[1]


def _signal_in_every_step(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """As a scheduler would: once in the first step that a process takes."""
    take_step = AdapterTraining._take_step

    def step(self: AdapterTraining) -> float:
        os.kill(os.getpid(), number)
        return take_step(self)

    monkeypatch.setattr(AdapterTraining, "_take_step", step)


def test_the_options_are_these_and_say_what_they_do() -> None:
    found = {
        action.option_strings[-1].removeprefix("--"): action.help or ""
        for action in finetune_parser()._actions
        if action.option_strings and action.dest not in ("help", "print_config")
    }
    assert found.keys() == set(OPTIONS.split())
    assert not [name for name, text in found.items() if len(text) < 20]


def test_stopped_after_every_step(
    finetune: Callable[..., Outcome],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pgprune_data: Path,
) -> None:
    """Dropout draws from the generator, so that its state counts too."""
    text = ("--text", str(pgprune_data / "tinystories" / "stories.txt"), "--tokens", "512")
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    outcome = finetune(whole, *text)
    assert outcome.status == 0, outcome.err
    for step in range(1, STEPS + 1):
        number = signal.SIGINT if step == 3 else signal.SIGTERM
        with monkeypatch.context() as patch:
            _signal_in_every_step(patch, number)
            outcome = finetune(stopped, *text, "--resume", "auto")
            assert outcome.status == (130 if step == 3 else 75), outcome.err
            assert f"Stopped after step {step} of {STEPS + 1}" in outcome.err
            assert not stopped.exists(), "a model stands there only when it is finished"
    outcome = finetune(stopped, *text, "--resume", "auto")
    assert outcome.status == 0, outcome.err
    assert "going on after step 5" in outcome.out
    _same_model(whole, stopped)
    assert not list(tmp_path.glob("*.unfinished"))
    assert "finished" in finetune(stopped, *text, "--resume", "auto").out
    _same_model(whole, stopped)


def test_it_is_the_training_that_compare_does(
    finetune: Callable[..., Outcome], exported: Path, records: str, tmp_path: Path
) -> None:
    output = tmp_path / "tuned"
    assert finetune(output).status == 0
    model = AutoModelForCausalLM.from_pretrained(exported)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    losses: list[float] = []
    tuned = finetune_lora(
        model,
        load_tokenizer(str(exported)),
        read_alpaca(records),
        LORA,
        on_step=lambda _, loss: losses.append(loss),
    )
    assert [float(row["loss"]) for row in _rows(output / "metrics.csv")] == losses
    assert len(losses) == 6
    reloaded = AutoModelForCausalLM.from_pretrained(output)
    expected = dict(tuned.named_parameters())
    for name, value in reloaded.named_parameters():
        assert torch.equal(value, expected[name]), name


def test_what_it_writes(
    finetune: Callable[..., Outcome], exported: Path, tmp_path: Path, pgprune_data: Path
) -> None:
    output = tmp_path / "tuned"
    text = ("--text", str(pgprune_data / "tinystories" / "stories.txt"), "--tokens", "512")
    outcome = finetune(output, *text, "--epochs", "4", "--target-modules", "q_proj", "down_proj")
    assert outcome.status == 0, outcome.err
    assert {path.name for path in exported.iterdir()} | {"finetune.json", "metrics.csv"} == {
        path.name for path in output.iterdir()
    }
    assert (output / "config.json").read_text() == (exported / "config.json").read_text()
    result = json.loads((output / "finetune.json").read_text())
    assert result["max_logit_difference"] == 0.0
    assert result["merge_logit_difference"] < 1e-3
    assert result["records"] == {
        "source": result["records"]["source"],
        "read": 9229,
        "drawn": 9,
        "without_answer": result["records"]["without_answer"],
    }
    assert result["last_loss"] < result["first_loss"]
    assert result["perplexity_before"] != result["perplexity_after"]
    assert f"{result['perplexity_before']:.2f} to {result['perplexity_after']:.2f}" in outcome.out
    assert len(_rows(output / "metrics.csv")) == result["steps"]
    export = json.loads((output / "export.json").read_text())
    assert export["finetuned"] == "finetune.json"
    assert export["max_logit_difference"] == 0.0
    assert export["bytes"] == (output / "model.safetensors").stat().st_size
    changed = {
        name
        for name, value in load_file(output / "model.safetensors").items()
        if not torch.equal(value, load_file(exported / "model.safetensors")[name])
    }
    assert {name.split(".")[-2] for name in changed} == {"q_proj", "down_proj"}


def test_zeros_of_a_padded_model_stay(
    finetune: Callable[..., Outcome], plan: Path, tmp_path: Path
) -> None:
    """All seven projections get adapters: those over zeros must leave none of themselves."""
    padded, output = _export(plan, "padded"), tmp_path / "tuned"
    modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    outcome = finetune(output, "--model", str(padded), "--target-modules", *modules)
    assert outcome.status == 0, outcome.err
    before, after = (load_file(folder / "model.safetensors") for folder in (padded, output))
    for name, value in before.items():
        assert torch.equal(value == 0, after[name] == 0), name
        learns = "_proj" in name and bool(value.any())
        assert learns == (not torch.equal(value, after[name])), name
    assert json.loads((output / "finetune.json").read_text())["merge_logit_difference"] < 1e-3


def test_a_uniform_export_stays_of_its_stock_class(
    finetune: Callable[..., Outcome], plan: Path, tmp_path: Path
) -> None:
    uniform, output = _export(plan, "uniform"), tmp_path / "tuned"
    outcome = finetune(output, "--model", str(uniform), "--dtype", "bfloat16")
    assert outcome.status == 0, outcome.err
    model = AutoModelForCausalLM.from_pretrained(output, dtype="auto")
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.dtype == torch.bfloat16
    before, after = (json.loads((f / "export.json").read_text()) for f in (uniform, output))
    assert after["parameters"] == before["parameters"] == model.num_parameters()
    assert after["bytes"] < 0.6 * before["bytes"]
    assert after["runtimes"] == before["runtimes"]


def test_killed_in_a_step_it_goes_on_from_the_last_checkpoint_that_loads(
    finetune: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert finetune(whole).status == 0

    def break_off(*_: Any) -> NoReturn:
        raise KeyboardInterrupt  # nothing is saved, as with a kill

    losses = adapter_training._add_gradients
    calls: list[int] = []

    def count(*arguments: Any) -> float:
        calls.append(1)
        return break_off() if len(calls) == 6 else losses(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(adapter_training, "_add_gradients", count)
        assert finetune(killed).status == 130
    checkpoints = sorted((tmp_path / "killed.unfinished" / "checkpoints").iterdir())
    assert [path.name for path in checkpoints] == ["step=00000002.ckpt", "step=00000004.ckpt"]
    content = bytearray(checkpoints[-1].read_bytes())
    content[len(content) // 2] ^= 1
    checkpoints[-1].write_bytes(content)

    refused(finetune(killed), "killed.unfinished holds a fine-tuning", "--resume auto")
    with pytest.warns(UserWarning, match="passed over"):
        other = finetune(killed, "--resume", "auto", "--lr", "0.5")
    refused(other, "another fine-tuning (lr: there 0.01, here 0.5)")
    with pytest.warns(UserWarning, match="passed over"):
        outcome = finetune(killed, "--resume", "auto")
    assert outcome.status == 0, outcome.err
    assert "going on after step 2" in outcome.out
    _same_model(whole, killed)


def test_a_full_disk_at_the_end_costs_nothing(
    finetune: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    output = tmp_path / "tuned"
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", full)
        refused(finetune(output), "cannot be written", "No space left", "--resume auto")
    assert not output.exists()
    outcome = finetune(output, "--resume", "auto")
    assert outcome.status == 0, outcome.err
    assert "going on after step 6" in outcome.out
    assert [path.name for path in tmp_path.iterdir()] == ["tuned"]


def test_an_output_is_replaced_only_when_asked(
    finetune: Callable[..., Outcome], tmp_path: Path
) -> None:
    output = tmp_path / "tuned"
    assert finetune(output).status == 0
    before = (output / "model.safetensors").read_bytes()
    refused(finetune(output, "--seed", "1"), "already exists", "--existing replace")
    refused(finetune(output, "--seed", "1", "--resume", "auto"), "tuned otherwise (seed: there 0")
    assert (output / "model.safetensors").read_bytes() == before
    assert finetune(output, "--seed", "1", "--existing", "replace").status == 0
    assert (output / "model.safetensors").read_bytes() != before
    assert [path.name for path in tmp_path.iterdir()] == ["tuned"]

    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "letter.txt").write_text("dear")
    refused(finetune(mine, "--existing", "replace"), "was not written by finetune")
    assert (mine / "letter.txt").read_text() == "dear"


@pytest.mark.parametrize(
    ("more", "phrases"),
    [
        (["--model", "{tmp}/none"], ["there is no folder", "export --format hf"]),
        (["--model", "{tmp}/empty"], ["has no config.json"]),
        (["--model", "{tmp}/several"], ["give one of its folders: keep50, keep70"]),
        (["--model", "{tmp}/plan"], ["is a run or a plan", "export --plan"]),
        (["--model", "{tmp}/run"], ["is a run or a plan"]),
        (["--model", "{tmp}/broken"], ["cannot be read as a model", "hf, uniform, padded"]),
        (["--records", "{tmp}/none.jsonl"], ["no such file"]),
        (["--records", "{tmp}/other.jsonl"], ["have no instruction"]),
        (["--max-length", "513"], ["the model takes 512 tokens at most, given 513"]),
        (["--max-length", "12"], ["none of 9 records has an answer within max_length = 12"]),
        (["--target-modules", "q_proj", "c_attn"], ["none of c_attn", "q_proj, k_proj, v_proj"]),
        (["--rank", "0"], ["rank is 0"]),
        (["--text", "{tmp}/none.txt"], ["no such file"]),
        (["--checkpoint-every", "0"], ["--checkpoint-every: must be at least 1"]),
        (["--tokens", "8"], ["--tokens: must be at least 128, given 8"]),
        (["--output", "{tmp}/letter/tuned"], ["cannot be written"]),
        (["--output", "{exported}"], ["is the model itself"]),
        (["--dtype", "int8"], ["int8"]),
    ],
)
def test_bad_input_is_refused_before_weights_are_loaded(
    finetune: Callable[..., Outcome],
    exported: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    more: list[str],
    phrases: list[str],
) -> None:
    def fail(*_: Any, **__: Any) -> NoReturn:
        pytest.fail("weights were loaded")

    monkeypatch.setattr(exported_folder, "load_frozen_model", fail)
    for name in ("empty", "plan", "run/plans", "broken", "several/keep50", "several/keep70"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "plan" / "plan.json").write_text("{}")
    for name in ("keep50", "keep70"):
        (tmp_path / "several" / name / "config.json").write_text("{}")
    (tmp_path / "broken" / "config.json").write_text('{"model_type": "nothing"}')
    (tmp_path / "other.jsonl").write_text('{"question": "?"}\n')
    (tmp_path / "letter").write_text("dear")
    given = [text.format(tmp=tmp_path, exported=exported) for text in more]
    refused(finetune(tmp_path / "tuned", *given), *phrases)
    assert not (tmp_path / "tuned").exists()
    assert not (tmp_path / "tuned.unfinished").exists()
