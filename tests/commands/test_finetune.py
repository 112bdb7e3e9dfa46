"""`finetune`: what it writes reloads, and what it cannot do it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from pgprune_lightning.cli import main
from pgprune_lightning.commands.finetune import finetune_parser
from pgprune_lightning.masking.tokenizer import load_tokenizer
from pgprune_lightning.recovery import (
    LoraOptions,
    exported_folder,
    finetune_lora,
    read_alpaca,
)
from tests.tiny_commands import Outcome, refused
from tests.tiny_finetuning import metric_rows
from tests.tiny_models import claim_tied, make_tiny_model

OPTIONS = """model output records rank alpha dropout target-modules num-records max-length epochs
    batch-size micro-batch-size lr warmup max-grad-norm seed text block-length tokens bos-per-block
    dtype device checkpoint-every resume existing"""
"""Every option: a change here is a change for users and their scripts."""
LORA = LoraOptions(
    num_records=9, batch_size=4, epochs=2, max_length=250, dropout=0.1, lr=1e-2, warmup=0.4
)


@pytest.fixture(autouse=True)
def _peft() -> None:
    pytest.importorskip("peft", reason="pip install -e '.[finetune]'")


@pytest.fixture
def exported(export_of: Callable[[str], Path]) -> Path:
    """The model that the plan cuts, with code of its own beside it."""
    return export_of("hf")


def test_the_options_are_these_and_say_what_they_do() -> None:
    found = {
        action.option_strings[-1].removeprefix("--"): action.help or ""
        for action in finetune_parser()._actions
        if action.option_strings and action.dest not in ("help", "print_config")
    }
    assert found.keys() == set(OPTIONS.split())
    assert not [name for name, text in found.items() if len(text) < 20]


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
    assert [float(row["loss"]) for row in metric_rows(output)] == losses
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
    assert len(metric_rows(output)) == result["steps"]
    export = json.loads((output / "export.json").read_text())
    assert export["finetuned"] == "finetune.json"
    assert export["max_logit_difference"] == 0.0
    assert export["bytes"] == (output / "model.safetensors").stat().st_size
    assert set(result["files"]) == {path.name for path in output.iterdir()}
    given = ("--plan", "nowhere", "--format", "hf", "--existing", "replace")
    assert main(["export", *given, "--output", str(output)]) == 2, "it is no longer an export"
    changed = {
        name
        for name, value in load_file(output / "model.safetensors").items()
        if not torch.equal(value, load_file(exported / "model.safetensors")[name])
    }
    assert {name.split(".")[-2] for name in changed} == {"q_proj", "down_proj"}


def test_zeros_of_a_padded_model_stay(
    finetune: Callable[..., Outcome], export_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """All seven projections get adapters: those over zeros must leave none of themselves."""
    padded, output = export_of("padded"), tmp_path / "tuned"
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
    finetune: Callable[..., Outcome], export_of: Callable[[str], Path], tmp_path: Path
) -> None:
    uniform, output = export_of("uniform"), tmp_path / "tuned"
    outcome = finetune(output, "--model", str(uniform), "--dtype", "bfloat16")
    assert outcome.status == 0, outcome.err
    model = AutoModelForCausalLM.from_pretrained(output, dtype="auto")
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.dtype == torch.bfloat16
    before, after = (json.loads((f / "export.json").read_text()) for f in (uniform, output))
    assert after["parameters"] == before["parameters"] == model.num_parameters()
    assert after["bytes"] < 0.6 * before["bytes"]
    assert after["runtimes"] == before["runtimes"]


def test_a_head_beside_the_embedding_is_told_of(
    finetune: Callable[..., Outcome], tmp_path: Path, pgprune_data: Path
) -> None:
    model, output = tmp_path / "model", tmp_path / "tuned"
    shutil.copytree(pgprune_data / "stories260K", model)
    weights = load_file(model / "model.safetensors")
    weights["lm_head.weight"] = 2 * weights["model.embed_tokens.weight"]
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    claim_tied(model)
    assert finetune(output, "--model", str(model)).status == 0
    assert json.loads((output / "config.json").read_text())["tie_word_embeddings"] is False
    assert "lm_head.weight" in load_file(output / "model.safetensors")


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
    (output / "notes.md").write_text("mine")
    replaced = finetune(output, "--seed", "2", "--existing", "replace")
    refused(replaced, "finetune did not write: notes.md. Move them elsewhere")

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
        (["--records", "{tmp}/none.jsonl"], ["--records: ", "none.jsonl: no such file"]),
        (
            ["--records", "{tmp}/other.jsonl"],
            ["--records: ", "other.jsonl: no field "],
        ),
        (
            ["--model", "{tmp}/opt", "--max-length", "129"],
            ["--max-length is 129 tokens", "learned positions for 128 and none beyond them"],
        ),
        (
            ["--model", "{tmp}/opt", "--text", "{tmp}/letter.txt", "--block-length", "129"],
            ["--block-length is 129 tokens", "learned positions for 128 and none beyond them"],
        ),
        (["--max-length", "12"], ["none of 9 records has an answer within max_length = 12"]),
        (["--target-modules", "q_proj", "c_attn"], ["none of c_attn", "q_proj, k_proj, v_proj"]),
        (["--rank", "0"], ["rank is 0"]),
        (
            ["--model", "{tmp}/more_tokens"],
            ["finetuning: a record: it holds the token '▁Instruction'"],
        ),
        (["--text", "{tmp}/none.txt"], ["--text: ", "none.txt: no such file"]),
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
    more_tokens = tmp_path / "more_tokens"
    shutil.copytree(exported, more_tokens)
    tokenizer = AutoTokenizer.from_pretrained(exported)
    tokenizer.add_tokens("Instruction")
    tokenizer.save_pretrained(more_tokens)
    for name in ("empty", "plan", "run/plans", "broken", "several/keep50", "several/keep70"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "plan" / "plan.json").write_text("{}")
    for name in ("keep50", "keep70"):
        (tmp_path / "several" / name / "config.json").write_text("{}")
    (tmp_path / "broken" / "config.json").write_text('{"model_type": "nothing"}')
    make_tiny_model("opt").config.save_pretrained(tmp_path / "opt")
    (tmp_path / "other.jsonl").write_text('{"question": "?"}\n')
    (tmp_path / "letter").write_text("dear")
    given = [text.format(tmp=tmp_path, exported=exported) for text in more]
    refused(finetune(tmp_path / "tuned", *given), *phrases)
    assert not (tmp_path / "tuned").exists()
    assert not (tmp_path / "tuned.unfinished").exists()
