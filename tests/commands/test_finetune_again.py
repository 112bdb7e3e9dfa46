"""`finetune`: stopped after every step, or killed, it is the run that was not."""

from __future__ import annotations

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

from pgprune_lightning.recovery import finetuning_run
from pgprune_lightning.recovery.adapter_training import AdapterTraining
from tests.tiny_commands import Outcome, refused
from tests.tiny_finetuning import metric_rows

STEPS = 6


@pytest.fixture(autouse=True)
def _peft() -> None:
    pytest.importorskip("peft", reason="pip install -e '.[finetune]'")


def _same_model(first: Path, second: Path) -> None:
    """Weights and metrics bit by bit, and everything else but when and how it was run."""
    weights, others = (load_file(folder / "model.safetensors") for folder in (first, second))
    assert weights.keys() == others.keys()
    assert all(torch.equal(value, others[name]) for name, value in weights.items())
    assert metric_rows(first) == metric_rows(second)
    results = [json.loads((folder / "finetune.json").read_text()) for folder in (first, second)]
    for result in results:
        for name in ("seconds", "provenance"):
            result.pop(name)
    assert results[0] == results[1]


def _signal_in_every_step(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """As a scheduler would: once in the first step that a process takes."""
    take_step = AdapterTraining.training_step

    def step(self: AdapterTraining, *arguments: Any) -> dict[str, float]:
        os.kill(os.getpid(), number)
        return take_step(self, *arguments)

    monkeypatch.setattr(AdapterTraining, "training_step", step)


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
            assert f"Stopped after step {step}. Go on with --resume auto." in outcome.err
            assert not stopped.exists(), "a model stands there only when it is finished"
    outcome = finetune(stopped, *text, "--resume", "auto")
    assert outcome.status == 0, outcome.err
    assert "going on after step 6" in outcome.out
    _same_model(whole, stopped)
    assert not list(tmp_path.glob("*.unfinished"))
    assert "finished" in finetune(stopped, *text, "--resume", "auto").out
    _same_model(whole, stopped)


def test_killed_in_a_step_it_goes_on_from_the_last_checkpoint_that_loads(
    finetune: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert finetune(whole).status == 0

    def break_off(*_: Any) -> NoReturn:
        raise SystemExit(130)  # nothing is saved, as with a kill

    losses = AdapterTraining._add_gradients
    calls: list[int] = []

    def count(*arguments: Any) -> float:
        calls.append(1)
        return break_off() if len(calls) == 6 else losses(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(AdapterTraining, "_add_gradients", count)
        assert finetune(killed).status == 130
    checkpoints = sorted((tmp_path / "killed.unfinished" / "checkpoints").iterdir())
    assert [path.name for path in checkpoints] == [
        "last.ckpt",
        "step=00000002.ckpt",
        "step=00000004.ckpt",
    ]
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


def test_damaged_records_are_refused_before_anything_is_lost(
    finetune: Callable[..., Outcome],
    export_of: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    exported = Path(shutil.copytree(export_of("hf"), tmp_path / "exported"))
    (exported / "export.json").write_text('{"format": ')
    refused(finetune(tmp_path / "a", "--model", str(exported)), "export.json cannot be read")

    output = tmp_path / "tuned"
    assert finetune(output, "--epochs", "1").status == 0
    before = (output / "model.safetensors").read_bytes()
    (output / "finetune.json").write_text('{"lora": NaN}')
    again = finetune(output, "--epochs", "1", "--resume", "auto")
    refused(again, "finetune.json", "lora must be a finite number", "--existing replace")
    assert (output / "model.safetensors").read_bytes() == before
    replaced = finetune(output, "--epochs", "1", "--resume", "auto", "--existing", "replace")
    assert replaced.status == 0, replaced.err
    assert "lora" in json.loads((output / "finetune.json").read_text())


def test_a_checkpoint_of_something_else_is_refused(
    finetune: Callable[..., Outcome], tmp_path: Path
) -> None:
    folder = tmp_path / "a.unfinished" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save({"version": 1, "step": 2}, folder / "step=00000002.ckpt")
    refused(finetune(tmp_path / "a", "--resume", "auto"), "is no checkpoint of this version")


@pytest.mark.parametrize("left", ["all", "one checkpoint", "no checkpoint", "another's"])
def test_what_a_kill_at_the_very_end_left_is_removed(
    left: str, finetune: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is in place by then; what another fine-tuning goes on from stays."""
    output, work = tmp_path / "tuned", tmp_path / "tuned.unfinished"
    with monkeypatch.context() as patch:
        patch.setattr(finetuning_run, "remove_work_folder", lambda _: None)
        assert finetune(output).status == 0
    if left == "one checkpoint":
        max((work / "checkpoints").iterdir()).unlink()
    elif left == "no checkpoint":
        shutil.rmtree(work / "checkpoints")
    elif left == "another's":
        result = json.loads((output / "finetune.json").read_text())
        result["lora"]["lr"] = 0.5
        (output / "finetune.json").write_text(json.dumps(result))
    lr = ("--lr", "0.5") if left == "another's" else ()
    outcome = finetune(output, *lr, "--resume", "auto")
    assert outcome.status == 0, outcome.err
    assert "finished" in outcome.out
    assert work.exists() == (left == "another's")
