"""A GGUF file is scored and timed as other models are.

Shapes: B sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from pgprune_lightning.errors import UserError
from pgprune_lightning.evaluation import llama_cpp
from pgprune_lightning.evaluation.llama_cpp import LlamaCppModel, has_llama_cpp
from pgprune_lightning.export.gguf import write_gguf

needs_llama_cpp = pytest.mark.skipif(
    not has_llama_cpp(), reason="llama-cpp-python is not installed: make test-llama builds it"
)


@pytest.fixture(scope="module")
def stories(pgprune_data: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(pgprune_data / "stories260K", dtype=torch.float32)


@pytest.fixture(scope="module")
def stories_gguf(
    stories: PreTrainedModel, pgprune_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(pgprune_data / "stories260K")
    file = tmp_path_factory.mktemp("gguf") / "stories.gguf"
    write_gguf(stories, file, "f32", tokenizer=tokenizer)
    return file


@needs_llama_cpp
def test_token_losses_are_those_of_torch(stories: PreTrainedModel, stories_gguf: Path) -> None:
    tokens_BT = torch.randint(3, 512, (3, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits_BTV = stories(tokens_BT).logits[:, :-1]
    expected_BT = F.cross_entropy(logits_BTV.mT, tokens_BT[:, 1:], reduction="none")
    exact = LlamaCppModel(stories_gguf, context_length=40, float32_cache=True)
    torch.testing.assert_close(exact.token_nll(tokens_BT), expected_BT, atol=1e-4, rtol=1e-5)
    served = LlamaCppModel(stories_gguf, context_length=64)
    torch.testing.assert_close(served.token_nll(tokens_BT), expected_BT, atol=0.05, rtol=0.05)
    exact.close()
    served.close()


@needs_llama_cpp
def test_writing_takes_longer_the_more_is_written(stories_gguf: Path) -> None:
    model = LlamaCppModel(stories_gguf, context_length=128, threads=1)
    assert model.prefill_seconds(list(range(3, 35))) > 0
    few, many = (model.decode_seconds([3, 4, 5], tokens) for tokens in (2, 100))
    assert many > few > 0
    model.close()


@needs_llama_cpp
def test_a_file_that_is_no_model_is_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(64))
    with pytest.raises(UserError, match=r"llama\.cpp cannot load .*model\.gguf: .*error") as raised:
        LlamaCppModel(tmp_path / "model.gguf", context_length=8)
    assert "\n" not in str(raised.value)
    assert capfd.readouterr() == ("", "")


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_cpp, "has_llama_cpp", lambda: False)
    with pytest.raises(UserError, match="pip install llama-cpp-python"):
        LlamaCppModel(tmp_path / "model.gguf", context_length=8)
