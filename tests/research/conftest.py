"""Models of the families that SliceGPT slices, and the experiment file of `compare`'s tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.comparison.conftest import experiment_file
from tests.tiny_models import make_tiny_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["experiment_file"]


@pytest.fixture(
    scope="session",
    params=["llama_mha", "llama_biased", "mistral_sliding", "qwen2_mixed", "qwen3"],
)
def sliceable(request: pytest.FixtureRequest) -> PreTrainedModel:
    """A tiny model of each family that SliceGPT slices; a test must leave it as it was."""
    return make_tiny_model(request.param)
