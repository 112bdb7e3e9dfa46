import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from pgprune_lightning.data.batch_order import TrainingBatchSampler
from pgprune_lightning.data.data_module import TokenBlocksDataModule
from pgprune_lightning.data.text_source import SourceUnavailable, TextSource
from pgprune_lightning.errors import UserError

BOS = 1001


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, TextSource]:
    def source(name: str, num_words: int) -> TextSource:
        rows = [{"text": f"w{index}"} for index in range(num_words)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return TextSource(str(tmp_path / f"{name}.jsonl"))

    lengths = {"train": 100, "validation": 30, "first": 20, "second": 10}
    return {name: source(name, length) for name, length in lengths.items()}


def _module(
    sources: dict[str, TextSource],
    tokenizer: PreTrainedTokenizerFast | str | None,
    cache_dir: Path,
    **settings: Any,
) -> TokenBlocksDataModule:
    arguments: dict[str, Any] = {
        "train": sources["train"],
        "validation": sources["validation"],
        "test": [sources["first"], sources["second"]],
        "tokenizer": tokenizer,
        "block_length": 8,
        "evaluation_block_length": 4,
        "batch_size": 3,
        "evaluation_batch_size": 4,
        "seed": 5,
        "cache_dir": str(cache_dir),
    }
    return TokenBlocksDataModule(**{**arguments, **settings})


@pytest.fixture
def module(
    sources: dict[str, TextSource], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> TokenBlocksDataModule:
    data = _module(sources, tokenizer, tmp_path / "cache")
    data.prepare_data()
    data.setup("fit")
    return data


def _attach(data: TokenBlocksDataModule, fn: str | None = None, **state: Any) -> None:
    defaults = {"global_rank": 0, "world_size": 1, "global_step": 0}
    data.trainer = SimpleNamespace(state=SimpleNamespace(fn=fn), **{**defaults, **state})


def test_training_batches(module: TokenBlocksDataModule) -> None:
    blocks = module.train_blocks
    assert blocks is not None
    assert blocks.array.shape == (25, 8)
    order = TrainingBatchSampler(25, 3, seed=5)
    for batch, indices in islice(zip(module.train_dataloader(), order, strict=False), 20):
        assert batch.dtype == torch.int64
        assert batch.tolist() == blocks.array[indices].tolist()


def test_evaluation_batches_hold_every_full_block(module: TokenBlocksDataModule) -> None:
    loader = module.val_dataloader()
    assert [tuple(batch.shape) for batch in loader] == [(4, 4)] * 3 + [(3, 4)]
    seen = torch.cat(list(loader)).tolist()
    assert module.validation_blocks is not None
    assert seen == module.validation_blocks.array.tolist()
    assert seen[0] == [0, 1002, 1, 1002]
    assert module.test_labels == ["first", "second"]
    assert [len(torch.cat(list(loader))) for loader in module.test_dataloader()] == [10, 5]


def test_ranks_share_the_blocks(module: TokenBlocksDataModule) -> None:
    trained, evaluated = [], []
    for rank in range(2):
        _attach(module, global_rank=rank, world_size=2)
        trained.append(next(iter(module.train_dataloader())))
        evaluated += torch.cat(list(module.val_dataloader())).tolist()
    assert module.validation_blocks is not None
    assert sorted(evaluated) == sorted(module.validation_blocks.array.tolist())
    _attach(module)
    alone = list(islice(module.train_dataloader(), 2))
    assert torch.equal(torch.cat(trained), torch.cat(alone))


def test_calibration_batches_are_the_same_on_every_rank(module: TokenBlocksDataModule) -> None:
    first = list(module.calibration_batches(num_blocks=7, batch_size=3))
    assert [len(batch) for batch in first] == [3, 3, 1]
    _attach(module, global_rank=1, world_size=2, global_step=9)
    again = list(module.calibration_batches(num_blocks=7, batch_size=4))
    assert torch.equal(torch.cat(first), torch.cat(again))
    assert len(torch.unique(torch.cat(first), dim=0)) == 7
    with pytest.raises(UserError, match="26 blocks are wanted for calibration, but train has only"):
        next(module.calibration_batches(num_blocks=26, batch_size=4))


def test_loaders_leave_the_global_random_state_alone(module: TokenBlocksDataModule) -> None:
    before = torch.get_rng_state()
    next(iter(module.train_dataloader()))
    list(module.val_dataloader())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("stage", "validation", "tests"), [("fit", 1, 2), ("validate", 1, 0), ("test", 0, 2)]
)
def test_a_stage_reads_only_what_it_needs(
    sources: dict[str, TextSource],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    stage: str,
    validation: int,
    tests: int,
) -> None:
    data = _module(sources, tokenizer, tmp_path / "cache")
    _attach(data, fn=stage)
    data.prepare_data()
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 1 + validation + tests
    data.setup(stage)
    assert data.train_blocks is not None
    assert (data.validation_blocks is not None) == bool(validation)
    assert len(data.test_blocks) == tests


def test_one_text_may_serve_for_training_and_validation(
    sources: dict[str, TextSource], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    data = _module(sources, tokenizer, tmp_path / "cache", validation=sources["train"])
    data.prepare_data()
    data.setup("fit")
    assert data.train_blocks is not None
    assert data.validation_blocks is not None
    assert data.train_blocks.array.shape == (25, 8)
    assert data.validation_blocks.array.shape == (50, 4)


def test_a_bos_token_in_every_block(
    sources: dict[str, TextSource], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    data = _module(sources, tokenizer, tmp_path / "cache", bos_per_block=True)
    data.prepare_data()
    data.setup("fit")
    for blocks in (data.train_blocks, data.validation_blocks, *data.test_blocks):
        assert blocks is not None
        assert (blocks.array[:, 0] == BOS).all()


def test_an_optional_text_that_is_missing_is_left_out(
    sources: dict[str, TextSource], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    tests = [
        TextSource("allenai/c4", optional=True),
        sources["first"],
        TextSource(str(tmp_path / "missing.txt"), optional=True),
    ]
    data = _module(sources, tokenizer, tmp_path / "cache", test=tests)
    with pytest.warns(UserWarning, match="optional and left out") as caught:
        data.prepare_data()
    assert len(caught) == 2
    data.setup("fit")
    assert data.test_labels == ["first"]
    assert len(data.test_dataloader()) == 1


def test_a_text_that_is_missing_and_not_optional_is_an_error(
    sources: dict[str, TextSource], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    for role in ({"test": [TextSource("allenai/c4")]}, {"validation": TextSource("allenai/c4")}):
        data = _module(sources, tokenizer, tmp_path / "cache", **role)
        with pytest.raises(SourceUnavailable, match="cannot be had from the hub"):
            data.prepare_data()


def test_an_optional_text_that_is_wrong_is_an_error(
    sources: dict[str, TextSource], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    wrong = TextSource(sources["first"].path, field="content", optional=True)
    data = _module(sources, tokenizer, tmp_path / "cache", test=[wrong])
    with pytest.raises(UserError, match="no field 'content'"):
        data.prepare_data()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"block_length": 1}, "block_length must be at least 2, not 1"),
        ({"evaluation_block_length": 0}, "evaluation_block_length must be at least 2"),
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"evaluation_batch_size": -1}, "evaluation_batch_size must be at least 1"),
        ({"num_workers": -1}, "num_workers must be at least 0"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"train": TextSource("missing.txt")}, "missing.txt: no such file"),
        ({"validation": TextSource("a/b", part=(1, 0))}, "b: part must be"),
        ({"test": [TextSource("missing.jsonl")]}, "missing.jsonl: no such file"),
        ({"train": TextSource("a/b", optional=True)}, "train text cannot be optional"),
        ({"test": [TextSource("a/b"), TextSource("c/b")]}, "two test texts are called 'b'"),
    ],
)
def test_bad_settings_are_found_at_construction(
    sources: dict[str, TextSource], tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        _module(sources, None, tmp_path / "cache", **settings)


def test_no_tokenizer(sources: dict[str, TextSource], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no tokenizer"):
        _module(sources, None, tmp_path / "cache").prepare_data()


def test_a_tokenizer_is_loaded_by_name(
    sources: dict[str, TextSource], tmp_path: Path, pgprune_data: Path
) -> None:
    data = _module(sources, str(pgprune_data / "stories260K"), tmp_path / "cache")
    data.prepare_data()
    data.setup("fit")
    assert data.train_blocks is not None
    assert int(data.train_blocks.array.max()) < 512


def test_setup_without_prepare_data(
    sources: dict[str, TextSource], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    data = _module(sources, tokenizer, tmp_path / "cache")
    with pytest.raises(RuntimeError, match="call prepare_data"):
        data.setup("fit")
    with pytest.raises(RuntimeError, match="call prepare_data"):
        data.train_dataloader()


def test_the_command_line_makes_it(sources: dict[str, TextSource]) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(TokenBlocksDataModule, "data")
    config = parser.parse_object(
        {
            "data": {
                "train": {"path": sources["train"].path, "part": [0, 0.9], "num_blocks": 5},
                "validation": {"path": sources["train"].path, "part": [0.9, 1]},
                "test": [{"path": "Salesforce/wikitext", "join": "blank_line", "optional": True}],
            }
        }
    )
    data = parser.instantiate(config).data
    assert data.train == TextSource(sources["train"].path, part=(0, 0.9), num_blocks=5)
    assert data.test == [TextSource("Salesforce/wikitext", join="blank_line", optional=True)]


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


@pytest.fixture
def trained(
    sources: dict[str, TextSource], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> Iterator[Any]:
    def train(max_steps: int, num_workers: int = 0, resume: Path | None = None) -> Any:
        data = _module(sources, tokenizer, tmp_path / "cache", num_workers=num_workers)
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
