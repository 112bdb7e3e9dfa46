"""What a GGUF file says of its model, and llama.cpp measured beside transformers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pgprune_lightning.cli import main
from pgprune_lightning.errors import UserError
from pgprune_lightning.evaluation.llama_cpp import has_llama_cpp
from pgprune_lightning.masking.model_source import resolve_model_source
from pgprune_lightning.masking.tokenizer import load_tokenizer
from pgprune_lightning.model_table import llama_cpp_row
from pgprune_lightning.model_table.evaluation_run import prepare
from pgprune_lightning.model_table.llama_cpp_row import LlamaCppRow, gguf_facts
from pgprune_lightning.model_table.opening import Loading, tokenizer_of
from pgprune_lightning.model_table.protocol import Protocol, SpeedProtocol
from pgprune_lightning.model_table.row import Row

CPU = torch.device("cpu")


def test_facts_of_a_file(smollm2_gguf: Path) -> None:
    facts = gguf_facts(smollm2_gguf)
    assert facts.parameters == 134_515_008
    assert (facts.vocabulary, facts.max_positions) == (49_152, 8192)
    assert (facts.runtime, facts.dtype) == ("llama.cpp", "q4_1")
    # The file holds its description besides.
    assert 0.95 * smollm2_gguf.stat().st_size < facts.parameter_bytes < smollm2_gguf.stat().st_size


class _Recorder:
    """Stands in for llama.cpp."""

    def __init__(self, file: Path, *, context_length: int) -> None:
        self.calls: list[Any] = [(file.name, context_length)]

    def token_nll(self, tokens_BT: Tensor) -> Tensor:
        return tokens_BT[:, 1:].float()

    def prefill_seconds(self, prompt: list[int]) -> float:
        self.calls.append(prompt)
        return 1.0

    def decode_seconds(self, prompt: list[int], num_tokens: int) -> float:
        self.calls.append((prompt, num_tokens))
        return 2.0


def test_one_sequence_is_timed(smollm2_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_cpp_row, "LlamaCppModel", _Recorder)
    row = LlamaCppRow(smollm2_gguf, 64)
    recorder: Any = row._model
    assert row.timed_generation(torch.tensor([[5, 6]]), 7) == (1.0, 2.0)
    assert recorder.calls == [(smollm2_gguf.name, 64), [5, 6], ([5, 6], 7)]
    assert row.token_nll(torch.tensor([[5, 6]])).tolist() == [[6.0]]


def test_several_sequences_are_refused_at_once(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    row = Row("cut", str(file), "llama.cpp", resolve_model_source(str(file)))
    protocol = Protocol(speed=SpeedProtocol(batch_size=2))
    with pytest.raises(UserError, match=r"--batch-size: llama\.cpp reads one sequence"):
        prepare([row], protocol, Loading("float32", CPU))


def test_an_export_names_the_model_whose_tokenizer_it_has(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    row = Row("cut", str(file), "llama.cpp", resolve_model_source(str(file)))
    with pytest.raises(UserError, match="--tokenizer"):
        tokenizer_of(row, Loading("float32", CPU))
    vocabulary = load_tokenizer(str(tiny_model_folder)).get_vocab()
    given = Loading("float32", CPU, tokenizer=str(tiny_model_folder))
    assert tokenizer_of(row, given).get_vocab() == vocabulary
    record = {"plan": {"base_model": {"source": str(tiny_model_folder)}}}
    (tmp_path / "export.json").write_text(json.dumps(record))
    assert tokenizer_of(row, Loading("float32", CPU)).get_vocab() == vocabulary


@pytest.mark.slow
@pytest.mark.skipif(not has_llama_cpp(), reason="llama-cpp-python is not installed")
def test_llama_cpp_agrees_with_transformers(smollm2_gguf: Path, tmp_path: Path) -> None:
    """Activations are rounded in llama.cpp, so that the perplexities are near and not equal."""
    text, output = tmp_path / "text.txt", tmp_path / "result.json"
    text.write_text("The quick brown fox jumps over the lazy dog. It rains today. " * 20)
    models = [f"torch={smollm2_gguf}", f"llama=llama.cpp:{smollm2_gguf}"]
    speed = ["--speed", "--prompt-tokens", "16", "--new-tokens", "4", "--repetitions", "1"]
    given = ["evaluate", "--model", *models, "--texts", str(text), "--lengths", "64", *speed]
    assert main([*given, "--dtype", "float32", "--output", str(output)]) == 0
    ours, theirs = json.loads(output.read_text())["models"]
    values = [entry["perplexity"]["text at 64"] for entry in (ours, theirs)]
    assert math.log(values[1]) == pytest.approx(math.log(values[0]), rel=0.03)
    assert ours["parameters"] == theirs["parameters"]
    assert theirs["speed"]["decode_tokens_per_second"] > 0
