import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from callbacks import MaskCheckpoint, OutcomeReport, PerplexityValidation, RunCheckpoint
from pgprune_lightning.data.text_source import TextSource
from pgprune_lightning.plan import PruningPlan
from pgprune_lightning.slicing import cut_model
from tests.tiny_runs import TinyRun


def observers(run_dir: Path, **options: Any) -> list[Any]:
    return [
        PerplexityValidation(),
        MaskCheckpoint(str(run_dir)),
        OutcomeReport(str(run_dir), sample_tokens=3, **options),
    ]


def test_the_summary_holds_what_was_measured(
    tiny_run: TinyRun, capsys: pytest.CaptureFixture[str]
) -> None:
    module, datamodule = tiny_run.module(), tiny_run.datamodule()
    trainer = tiny_run.trainer(observers(tiny_run.folder))
    trainer.fit(module, datamodule=datamodule)
    summary = json.loads((tiny_run.folder / "summary.json").read_text())

    blocks_BT = torch.stack(list(datamodule.test_blocks[0]))
    model = module.masked_model.model
    masks = {"dense": None} | {
        key: PruningPlan.load(tiny_run.folder / "plans" / name).mask_U
        for key, name in (("initial", "initial"), ("learned", "best"))
    }
    for key, mask_U in masks.items():
        perplexity = math.exp(
            float(module.masked_model.token_nll(blocks_BT, mask_U).double().mean())
        )
        smaller = model if mask_U is None else cut_model(model, module.space, mask_U)
        assert summary[key]["perplexity"] == pytest.approx(perplexity, rel=1e-6)
        assert summary[key]["parameters"] == sum(p.numel() for p in smaller.parameters())
    assert summary["keep_ratio"] == 0.6
    assert summary["steps"] == 4
    assert summary["text"] == "test text"
    assert summary["training_tokens"] == 4 * 2 * 2 * 16
    assert summary["provenance"]["torch"] == torch.__version__
    assert summary["seconds"] > 0
    assert summary["peak_memory_bytes"] > summary["dense"]["parameters"]

    printed = capsys.readouterr().out
    assert f"{summary['learned']['perplexity']:,.1f}" in printed
    assert "plans/best" in printed


def test_every_test_text_is_reported(tiny_run: TinyRun) -> None:
    tests = [
        TextSource(str(tiny_run.texts / f"{name}.txt"), label=name) for name in ("test", "valid")
    ]
    tiny_run.trainer(observers(tiny_run.folder)).fit(
        tiny_run.module(), datamodule=tiny_run.datamodule(test=tests)
    )
    summary = json.loads((tiny_run.folder / "summary.json").read_text())
    assert summary["text"] == "test"
    assert set(summary["learned"]["other_texts"]) == {"valid"}


def test_without_a_test_text_the_validation_text_is_reported(tiny_run: TinyRun) -> None:
    tiny_run.trainer(observers(tiny_run.folder, prompt="")).fit(
        tiny_run.module(), datamodule=tiny_run.datamodule(test=None)
    )
    summary = json.loads((tiny_run.folder / "summary.json").read_text())
    assert summary["text"] == "validation text"
    assert summary["sample"] == {}


def test_a_resumed_run_counts_the_time_of_what_it_resumes(tiny_run: TinyRun) -> None:
    folder = tiny_run.folder
    saved = RunCheckpoint(str(folder), every_n_train_steps=2)
    first = tiny_run.trainer([*observers(folder), saved], enable_checkpointing=True, max_steps=2)
    first.fit(tiny_run.module(), datamodule=tiny_run.datamodule())
    path = folder / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    assert 0 < checkpoint["callbacks"]["OutcomeReport"]["seconds"] < 1000
    checkpoint["callbacks"]["OutcomeReport"]["seconds"] = 1000.0
    torch.save(checkpoint, path)
    tiny_run.trainer(observers(folder)).fit(
        tiny_run.module(), datamodule=tiny_run.datamodule(), ckpt_path=str(path)
    )
    seconds = json.loads((folder / "summary.json").read_text())["seconds"]
    assert 1000 < seconds < 2000
