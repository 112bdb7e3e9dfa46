"""One loaded model for many runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pgprune_lightning.initialization import Initialization
from pgprune_lightning.masking.model_reuse import one_model_kept, open_frozen_model
from pgprune_lightning.masking.model_source import resolve_model_source
from tests.tiny_runs import TinyRun

FLOAT32 = {"dtype": torch.float32, "device": torch.device("cpu"), "attention": "sdpa"}


def test_the_same_request_gets_the_same_model(tiny_model_folder: Path) -> None:
    source = resolve_model_source(str(tiny_model_folder))
    with one_model_kept():
        first = open_frozen_model(source, **FLOAT32)
        assert open_frozen_model(source, **FLOAT32) is first
        eager = open_frozen_model(source, **(FLOAT32 | {"attention": "eager"}))
        assert eager is not first
        assert eager.config._attn_implementation == "eager"
        assert open_frozen_model(source, **FLOAT32) is not first, "only the last one is kept"
    outside = open_frozen_model(source, **FLOAT32)
    assert open_frozen_model(source, **FLOAT32) is not outside


@pytest.mark.parametrize("metric", ["wanda_sp", "taylor"])
def test_runs_on_a_kept_model_equal_runs_on_fresh_ones(
    tiny_run: TinyRun, metric: Any, parameter_bytes: Callable[[Any], bytes]
) -> None:
    def learned() -> torch.Tensor:
        module = tiny_run.module(initialization=Initialization(metric=metric, num_blocks=8))
        tiny_run.trainer().fit(module, datamodule=tiny_run.datamodule())
        return module.policy.keep_probabilities.detach().clone()

    fresh = [learned(), learned()]
    source = resolve_model_source(str(tiny_run.model))
    with one_model_kept():
        model = open_frozen_model(source, **FLOAT32)
        before = parameter_bytes(model)
        reused = [learned(), learned()]
        assert open_frozen_model(source, **FLOAT32) is model
        assert parameter_bytes(model) == before
    for with_reuse, without in zip(reused, fresh, strict=True):
        assert torch.equal(with_reuse, without)
