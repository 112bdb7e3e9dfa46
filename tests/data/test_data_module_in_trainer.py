"""Lightning is given the blocks in the order that the data module defines, resumed or not."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from pgprune_lightning.data.data_module import TokenBlocksDataModule, TrainingBatchSampler

BOS = 1001


class _Recorder(LightningModule):
    """Writes down the batches it is given; its one weight moves once a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.trained: list[list[list[int]]] = []
        self.evaluated: list[list[int]] = []

    def training_step(self, batch: Tensor, batch_index: int) -> Tensor:
        self.trained.append(batch.tolist())
        return self.weight * 1.0

    def validation_step(self, batch: Tensor, batch_index: int) -> None:
        self.evaluated += batch.tolist()

    def test_step(self, batch: Tensor, batch_index: int, dataloader_idx: int = 0) -> None:
        self.evaluated += batch.tolist()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def _trainer(folder: Path, max_steps: int) -> Trainer:
    return Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_steps=max_steps,
        max_epochs=-1,
        check_val_every_n_epoch=None,
        val_check_interval=5,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


@pytest.mark.parametrize(
    ("needs_bos", "given", "begins"),
    [(True, None, True), (False, None, False), (True, False, False), (False, True, True)],
)
def test_the_model_says_whether_blocks_begin_with_bos(
    make_module: Callable[..., TokenBlocksDataModule],
    tmp_path: Path,
    needs_bos: bool,
    given: bool | None,
    begins: bool,
) -> None:
    """Unless the user does."""
    data, model = make_module(bos_per_block=given), _Recorder()
    model.needs_bos = needs_bos
    _trainer(tmp_path, 2).fit(model, datamodule=data)
    assert data.bos_per_block is begins
    assert all((row[0] == BOS) == begins for row in model.trained[0])


@pytest.fixture
def trained(make_module: Callable[..., TokenBlocksDataModule], tmp_path: Path) -> Any:
    def train(max_steps: int, num_workers: int = 0, resume: Path | None = None) -> Any:
        data = make_module(num_workers=num_workers)
        model, trainer = _Recorder(), _trainer(tmp_path, max_steps)
        trainer.fit(model, data, ckpt_path=resume)
        return model, trainer, data

    return train


@pytest.mark.parametrize("num_workers", [0, 2])
def test_lightning_sees_the_defined_order_and_a_resumed_run_goes_on_with_it(
    trained: Any, tmp_path: Path, num_workers: int
) -> None:
    model, _, data = trained(max_steps=23, num_workers=num_workers)
    blocks = data.train_blocks.array
    expected = [
        blocks[indices].tolist() for indices in islice(TrainingBatchSampler(25, 3, seed=5), 23)
    ]
    assert model.trained == expected
    assert model.evaluated == data.validation_blocks.array.tolist() * 4

    _, trainer, _ = trained(max_steps=9, num_workers=num_workers)
    trainer.save_checkpoint(tmp_path / "step9.ckpt")
    resumed, _, _ = trained(max_steps=23, num_workers=num_workers, resume=tmp_path / "step9.ckpt")
    assert resumed.trained == expected[9:]


def test_lightning_tests_every_text(module: TokenBlocksDataModule, tmp_path: Path) -> None:
    model = _Recorder()
    _trainer(tmp_path, max_steps=1).test(model, module, verbose=False)
    expected = [block for blocks in module.test_blocks for block in blocks.array.tolist()]
    assert model.evaluated == expected
