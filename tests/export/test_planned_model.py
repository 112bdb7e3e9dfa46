"""A plan is opened with the model that it was learned on, and with no other."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file, save_file

from callbacks import MaskCheckpoint, PerplexityValidation
from pgprune_lightning.errors import UserError
from pgprune_lightning.export import open_planned_model

if TYPE_CHECKING:
    from tests.tiny_runs import TinyRun

CPU = torch.device("cpu")


@pytest.fixture
def planned_run(tiny_run: TinyRun) -> TinyRun:
    """A run whose folder holds plans."""
    tiny_run.fit([PerplexityValidation(), MaskCheckpoint(str(tiny_run.folder))])
    return tiny_run


def test_a_run_opens_as_its_best_plan_with_the_dense_model(planned_run: TinyRun) -> None:
    planned = open_planned_model(planned_run.folder, device=CPU, dtype="float32")
    assert planned.plan.kept_parameters < planned.plan.base_model.parameters
    assert planned.model.num_parameters() == planned.plan.base_model.parameters
    assert planned.tokenizer.eos_token == "</s>"
    assert not any(parameter.requires_grad for parameter in planned.model.parameters())


def test_a_model_that_was_moved_is_named(planned_run: TinyRun, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(planned_run.model, moved)
    planned = open_planned_model(
        planned_run.folder, device=CPU, dtype="float32", base_model=str(moved)
    )
    assert planned.model.name_or_path == str(moved)


def test_other_weights_are_refused(planned_run: TinyRun, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(planned_run.model, other)
    weights = load_file(other / "model.safetensors")
    save_file({name: 2 * value for name, value in weights.items()}, other / "model.safetensors")
    with pytest.raises(UserError, match="A plan fits the weights it was learned on only"):
        open_planned_model(planned_run.folder, device=CPU, dtype="float32", base_model=str(other))
