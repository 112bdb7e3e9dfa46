"""Fixtures that fine-tune a tiny export through the command line."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.tiny_commands import Outcome

QUICK = ("--num-records", "9", "--batch-size", "4", "--epochs", "2", "--max-length", "250")
MORE = ("--dropout", "0.1", "--lr", "1e-2", "--warmup", "0.4", "--checkpoint-every", "2")


@pytest.fixture(scope="session")
def records(pgprune_data: Path) -> str:
    """Instructions with answers."""
    return str(pgprune_data / "alpaca" / "alpaca_9k.jsonl")


@pytest.fixture(scope="session")
def export_of(
    pgprune_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Exports one plan in a format: `export_of("padded")`.

    Its layers differ in width, one is without attention and one without MLP.
    """
    from pgprune_lightning.cli import main
    from pgprune_lightning.masking import unit_layout_of
    from pgprune_lightning.masking.fingerprint import weights_fingerprint
    from pgprune_lightning.masking.frozen_model import load_frozen_model
    from pgprune_lightning.masking.model_source import resolve_model_source
    from pgprune_lightning.plan import BaseModel, PruningPlan

    found = resolve_model_source(str(pgprune_data / "stories260K"))
    dense = load_frozen_model(found, dtype=torch.float32, device=torch.device("cpu"))
    space = unit_layout_of(dense, ["kv_group", "mlp_channel"])
    generator = torch.Generator().manual_seed(0)
    probabilities_U = torch.rand(space.num_units, generator=generator, dtype=torch.float64)
    mask_U = probabilities_U > 0.3
    space.view(mask_U, 1, "kv_group").fill_(False)
    space.view(mask_U, 3, "mlp_channel").fill_(False)
    identity = weights_fingerprint(found, dense)
    base = BaseModel(found.given, "llama", identity, dense.num_parameters())
    budget = {"keep_ratio": 0.7, "scope": "units", "protected_layers": []}
    plan = tmp_path_factory.mktemp("plan") / "best"
    PruningPlan(base, space, probabilities_U, mask_U, budget, step=1).save(plan)

    def export(export_format: str) -> Path:
        folder = plan.with_name(export_format)
        if not folder.exists():
            given = ["--plan", str(plan), "--format", export_format, "--output", str(folder)]
            assert main(["export", *given, "--device", "cpu"]) == 0
        return folder

    return export


@pytest.fixture
def finetune(
    export_of: Callable[[str], Path], records: str, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    """Runs the command in this process; an option given again wins."""
    from pgprune_lightning.cli import main

    exported = export_of("hf")

    def run(output: Path, *more: str) -> Outcome:
        capsys.readouterr()
        given = ["--model", str(exported), "--output", str(output), "--records", records]
        try:
            status = main(["finetune", *given, "--device", "cpu", *QUICK, *MORE, *more])
        except SystemExit as end:
            status = int(end.code or 0)
        return Outcome(status, *capsys.readouterr())

    return run


def metric_rows(folder: Path) -> list[dict[str, str]]:
    """What was logged of each step of a fine-tuning."""
    with (folder / "metrics.csv").open(newline="") as opened:
        return list(csv.DictReader(opened))
