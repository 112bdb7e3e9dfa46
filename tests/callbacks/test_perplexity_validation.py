import csv
import math

import pytest
import torch

from callbacks import PerplexityValidation
from pgprune_lightning.data.text_source import TextSource
from pgprune_lightning.masking.token_loss import token_nll
from pgprune_lightning.training.metrics_file import MetricsFile
from tests.tiny_runs import TinyRun


def logged(tiny_run: TinyRun) -> list[tuple[int, float]]:
    with (tiny_run.folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [(int(row["step"]), float(row["val/perplexity"])) for row in rows]


def test_every_full_block_counts_by_its_tokens(tiny_run: TinyRun) -> None:
    """130 words make 8 blocks; batches of 3, 3 and 2 must not weigh alike."""
    module = tiny_run.module()
    datamodule = tiny_run.datamodule(evaluation_batch_size=3)
    trainer = tiny_run.trainer([PerplexityValidation()], logger=MetricsFile(tiny_run.folder))
    trainer.fit(module, datamodule=datamodule)
    blocks_BT = torch.stack(list(datamodule.validation_blocks))
    assert blocks_BT.shape == (8, 16)
    with module.masked_model.masked(module.current_mask()) as model:
        expected = math.exp(float(token_nll(model, blocks_BT).double().mean()))
    assert [step for step, _ in logged(tiny_run)] == [0, 2, 4]
    assert logged(tiny_run)[-1][1] == pytest.approx(expected, rel=1e-6)
    assert float(trainer.callback_metrics["val/perplexity"]) == pytest.approx(expected, rel=1e-6)


def test_the_untrained_mask_is_measured_at_step_0(tiny_run: TinyRun) -> None:
    untrained = tiny_run.module()
    tiny_run.trainer(max_steps=0).fit(untrained, datamodule=tiny_run.datamodule())
    (result,) = tiny_run.trainer([PerplexityValidation()]).validate(
        tiny_run.module(), datamodule=tiny_run.datamodule(), verbose=False
    )
    tiny_run.fit([PerplexityValidation()], logger=MetricsFile(tiny_run.folder))
    assert logged(tiny_run)[0] == (0, pytest.approx(result["val/perplexity"], rel=1e-9))


def test_each_test_text_has_its_own_perplexity(tiny_run: TinyRun) -> None:
    tests = [
        TextSource(str(tiny_run.texts / "test.txt"), label="one"),
        TextSource(str(tiny_run.texts / "valid.txt"), label="two"),
    ]
    module, datamodule = tiny_run.module(), tiny_run.datamodule(test=tests)
    results = tiny_run.trainer([PerplexityValidation()]).test(
        module, datamodule=datamodule, verbose=False
    )
    merged = {key: value for result in results for key, value in result.items()}
    for label, blocks in zip(("one", "two"), datamodule.test_blocks, strict=True):
        nll_BT = module.masked_model.token_nll(torch.stack(list(blocks)), module.current_mask())
        expected = math.exp(float(nll_BT.double().mean()))
        assert merged[f"test/{label}/perplexity"] == pytest.approx(expected, rel=1e-6)
