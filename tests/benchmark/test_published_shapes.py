"""The shapes have the sizes that were published."""

import pytest

from pgprune_lightning.benchmark import SHAPES, shape_config
from pgprune_lightning.errors import UserError
from pgprune_lightning.masking.frozen_model import model_on_meta

PARAMETERS = {
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-3-8b": 8_030_261_248,
    "mistral-7b": 7_248_023_552,
    "smollm2-135m": 134_515_008,
}


@pytest.mark.parametrize("name", SHAPES)
def test_the_number_of_parameters_is_the_published_one(name: str) -> None:
    model = model_on_meta(shape_config(name))
    assert sum(weight.numel() for weight in model.parameters()) == PARAMETERS[name]


def test_an_unknown_shape_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(UserError, match=r"'gpt-2' is not one of llama-2-7b, .*smollm2-135m"):
        shape_config("gpt-2")
