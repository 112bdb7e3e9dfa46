"""A run on models of the other families: what it reads, and that its plan fits its model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from pgprune_lightning.export import open_planned_model
from pgprune_lightning.slicing import cut_model
from tests.tiny_commands import TinyCommand
from tests.tiny_runs import write_tiny_model


@pytest.mark.parametrize(
    ("name", "begins_with_bos"),
    [("gemma3", True), ("gemma2", True), ("phi3", False), ("opt", False), ("gpt_neox", False)],
)
def test_a_fit_prunes_every_family(
    tiny_command: TinyCommand, tmp_path: Path, name: str, begins_with_bos: bool
) -> None:
    """With the BOS token that Gemma needs, written down where a plan and a config are read."""
    folder = write_tiny_model(tmp_path / "model", name)
    run = tiny_command("fit", f"--model.base_model={folder}", "--model.execution.mode=compact")
    assert run.status == 0, run.err
    config = yaml.safe_load((tiny_command.run_dir / "config.yaml").read_text())
    assert config["data"]["bos_per_block"] is begins_with_bos
    planned = open_planned_model(tiny_command.run_dir, device=torch.device("cpu"))
    assert planned.plan.validation["bos_per_block"] is begins_with_bos
    cut = cut_model(planned.model, planned.plan.space, planned.plan.mask_U)
    assert cut.num_parameters() == planned.plan.kept_parameters
