from typing import Any

import pytest

from pgprune_lightning.errors import UserError
from pgprune_lightning.policy import PlainReinforce
from pgprune_lightning.training import masked_model
from tests.tiny_runs import TinyRun


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep_ratio": 0.0}, "keep_ratio"),
        ({"keep_ratio": 1.01}, "keep_ratio"),
        ({"keep_ratio": float("nan")}, "keep_ratio"),
        ({"lr": 0.0}, "lr"),
        ({"num_mask_samples": 0}, "num_mask_samples"),
        (
            {
                "num_mask_samples": 1,
                "estimator": PlainReinforce(normalization="samples_minus_one"),
            },
            "at least 2 with the estimator's normalization samples_minus_one, given 1",
        ),
        ({"lr_factors": {"layer": 1.0}}, "lr_factors"),
        ({"lr_factors": {"mlp_channel": -1.0}}, "lr_factors"),
        ({"base_model": "no/such/model/folder"}, "no folder or file"),
    ],
)
def test_wrong_arguments_are_refused_at_once(
    tiny_run: TinyRun, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        tiny_run.module(**options)


def test_an_impossible_budget_is_refused_before_the_weights_are_loaded(
    tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(masked_model, "open_frozen_model", None)
    module = tiny_run.module(keep_ratio=0.5, protected_layers=[0, 1])
    with pytest.raises(UserError, match=r"0\.6"):
        tiny_run.trainer().fit(module, datamodule=tiny_run.datamodule())
