"""Scores from a file: read as they are, or refused with what is wrong."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from pgprune_lightning.errors import UserError
from pgprune_lightning.initialization.scores_file import load_scores
from pgprune_lightning.policy import UnitLayout


def write(folder: Path, **tensors: Tensor) -> str:
    path = folder / "scores.safetensors"
    save_file(tensors, path)
    return str(path)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_reads_what_was_written(space: UnitLayout, tmp_path: Path, dtype: torch.dtype) -> None:
    scores = torch.linspace(-3, 3, space.num_units).to(dtype)
    loaded = load_scores(write(tmp_path, scores=scores), space)
    assert loaded.dtype == torch.float64
    assert torch.equal(loaded, scores.double())


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"importance": torch.ones(30)}, r"one tensor named 'scores'.*\['importance'\]"),
        ({"scores": torch.ones(30), "more": torch.ones(1)}, r"holds \['more', 'scores'\]"),
        ({"scores": torch.ones(29)}, r"shape \(29,\).*kv_group, mlp_channel\) need shape \(30,\)"),
        ({"scores": torch.ones(30, 1)}, r"shape \(30, 1\)"),
        ({"scores": torch.ones(30, dtype=torch.int64)}, r"int64.*floating point"),
        ({"scores": torch.ones(30).index_fill_(0, torch.tensor(15), float("nan"))}, "holds nan"),
        (
            {"scores": torch.ones(30).index_fill_(0, torch.tensor([15, 20]), float("-inf"))},
            "holds -inf for mlp_channel 1 of layer 1",
        ),
    ],
)
def test_wrong_scores(
    space: UnitLayout, tmp_path: Path, tensors: dict[str, Tensor], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        load_scores(write(tmp_path, **tensors), space)


def test_files_that_cannot_be_read(space: UnitLayout, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("0.1 0.2")
    for path in (tmp_path / "none.safetensors", tmp_path, tmp_path / "text"):
        with pytest.raises(UserError, match=r"scores: .* cannot be read: .*safetensors file"):
            load_scores(str(path), space)
