"""A plan is opened with the model that it was learned on, and with no other."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file, save_file

from callbacks import MaskCheckpoint, PerplexityValidation
from pgprune_lightning.errors import UserError
from pgprune_lightning.export import open_planned_model
from pgprune_lightning.masking.fingerprint import loaded_fingerprint
from tests.tiny_runs import write_tiny_model

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


@pytest.mark.parametrize("learned_in", ["float16", "bfloat16"])
def test_it_does_not_matter_what_the_weights_were_loaded_as(
    tiny_run: TinyRun, learned_in: str
) -> None:
    observers = [PerplexityValidation(), MaskCheckpoint(str(tiny_run.folder))]
    trainer = tiny_run.trainer(observers, max_steps=1)
    trainer.fit(tiny_run.module(dtype=learned_in), datamodule=tiny_run.datamodule())
    for dtype in ("float32", "bfloat16", "float16"):
        open_planned_model(tiny_run.folder, device=CPU, dtype=dtype)


def test_a_plan_of_an_earlier_release_is_compared_as_it_was(
    planned_run: TinyRun, tmp_path: Path
) -> None:
    folder = planned_run.folder / "plans" / "best"
    planned = open_planned_model(folder, device=CPU, dtype="float32")
    old = replace(planned.plan.base_model, fingerprint=loaded_fingerprint(planned.model))
    replace(planned.plan, base_model=old).save(folder)
    open_planned_model(folder, device=CPU, dtype="float32")
    open_planned_model(folder, device=CPU, dtype="bfloat16")
    other = write_tiny_model(tmp_path / "other", seed=2)
    with pytest.raises(UserError, match=r"learned on only\. It is of an earlier release.*--dtype"):
        open_planned_model(folder, device=CPU, dtype="float32", base_model=str(other))


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
