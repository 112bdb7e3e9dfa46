from collections.abc import Callable
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser

from pgprune_lightning.data.data_module import TokenBlocksDataModule, TrainingBatchSampler
from pgprune_lightning.data.text_source import SourceUnavailable, TextSource
from pgprune_lightning.errors import UserError

BOS = 1001

MakeModule = Callable[..., TokenBlocksDataModule]


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
    with pytest.raises(UserError, match=r"26 blocks are .* data\.train \(train\) has only 25"):
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
    make_module: MakeModule, tmp_path: Path, stage: str, validation: int, tests: int
) -> None:
    data = make_module()
    _attach(data, fn=stage)
    data.prepare_data()
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 1 + validation + tests
    data.setup(stage)
    assert data.train_blocks is not None
    assert (data.validation_blocks is not None) == bool(validation)
    assert len(data.test_blocks) == tests


def test_one_text_may_serve_for_training_and_validation(
    make_module: MakeModule, sources: dict[str, TextSource]
) -> None:
    data = make_module(validation=sources["train"])
    data.prepare_data()
    data.setup("fit")
    assert data.train_blocks is not None
    assert data.validation_blocks is not None
    assert data.train_blocks.array.shape == (25, 8)
    assert data.validation_blocks.array.shape == (50, 4)


def test_a_bos_token_in_every_block(make_module: MakeModule) -> None:
    data = make_module(bos_per_block=True)
    data.prepare_data()
    data.setup("fit")
    for blocks in (data.train_blocks, data.validation_blocks, *data.test_blocks):
        assert blocks is not None
        assert (blocks.array[:, 0] == BOS).all()


def test_an_optional_text_that_is_missing_is_left_out(
    make_module: MakeModule, sources: dict[str, TextSource], tmp_path: Path
) -> None:
    tests = [
        TextSource("allenai/c4", optional=True),
        sources["first"],
        TextSource(str(tmp_path / "missing.txt"), optional=True),
    ]
    data = make_module(test=tests)
    with pytest.warns(UserWarning, match="optional and left out") as caught:
        data.prepare_data()
    assert len(caught) == 2
    data.setup("fit")
    assert data.test_labels == ["first"]
    assert len(data.test_dataloader()) == 1


def test_a_text_that_is_missing_and_not_optional_is_an_error(make_module: MakeModule) -> None:
    for role in ({"test": [TextSource("allenai/c4")]}, {"validation": TextSource("allenai/c4")}):
        data = make_module(**role)
        with pytest.raises(SourceUnavailable, match="cannot be had from the hub"):
            data.prepare_data()


def test_an_optional_text_that_is_wrong_is_an_error(
    make_module: MakeModule, sources: dict[str, TextSource]
) -> None:
    wrong = TextSource(sources["first"].path, field="content", optional=True)
    data = make_module(test=[wrong])
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
        ({"train": TextSource("missing.txt")}, r"data\.train: missing.txt: no such file"),
        ({"validation": TextSource("a/b", part=(1, 0))}, r"^data\.validation: a/b: part must be"),
        (
            {"test": [TextSource("a/b"), TextSource("missing.jsonl")]},
            r"^data\.test\[1\]: missing.jsonl: no such file",
        ),
        ({"train": TextSource("a/b", optional=True)}, r"data\.train: the text cannot be optional"),
        ({"test": [TextSource("a/b"), TextSource("c/b")]}, r"data\.test: two texts are called 'b'"),
    ],
)
def test_bad_settings_are_found_at_construction(
    make_module: MakeModule, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        make_module(tokenizer=None, **settings)


def test_texts_that_share_documents(
    make_module: MakeModule, sources: dict[str, TextSource], tmp_path: Path
) -> None:
    def part(start: float, end: float, label: str) -> TextSource:
        return TextSource(sources["train"].path, part=(start, end), label=label)

    train, validation, test = part(0, 0.8, "a"), part(0.7, 0.9, "b"), part(0.9, 1, "c")
    with pytest.warns(UserWarning, match=r"data\.train and data\.validation share") as caught:
        make_module(train=train, validation=validation, test=[test])
    assert len(caught) == 1
    assert f"parts [0, 0.8] and [0.7, 0.9] of {train.path}" in str(caught[0].message)
    with pytest.warns(UserWarning, match=r"data\.validation and data\.test\[1\] share documents"):
        make_module(test=[sources["first"], sources["validation"]])


def test_no_tokenizer(make_module: MakeModule) -> None:
    with pytest.raises(UserError, match=r"data\.tokenizer: no tokenizer; name"):
        make_module(tokenizer=None).prepare_data()


def test_a_tokenizer_is_loaded_by_name(make_module: MakeModule, pgprune_data: Path) -> None:
    data = make_module(tokenizer=str(pgprune_data / "stories260K"))
    data.prepare_data()
    data.setup("fit")
    assert data.train_blocks is not None
    assert int(data.train_blocks.array.max()) < 512


def test_setup_without_prepare_data(make_module: MakeModule) -> None:
    data = make_module()
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
