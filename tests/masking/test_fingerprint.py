"""A fingerprint follows what lies in the weight files, and nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from pgprune_lightning.masking import fingerprint
from pgprune_lightning.masking.fingerprint import (
    SAMPLES_PER_TENSOR,
    fingerprint_like,
    loaded_fingerprint,
    weights_fingerprint,
)
from pgprune_lightning.masking.frozen_model import load_frozen_model
from pgprune_lightning.masking.model_source import resolve_model_source

CPU = torch.device("cpu")
WEIGHTS = "model.safetensors"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def of(place: Path | str, dtype: torch.dtype = torch.float32) -> str:
    source = resolve_model_source(str(place))
    return weights_fingerprint(source, load_frozen_model(source, dtype=dtype, device=CPU))


@pytest.fixture
def folder(tiny_model: Callable[..., PreTrainedModel], tmp_path: Path) -> Path:
    tiny_model("llama_gqa").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def write(tensors: dict[str, Tensor], folder: Path) -> None:
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


@pytest.mark.parametrize("name", ["llama_gqa", "llama_mha"], ids=["untied", "tied"])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_it_does_not_matter_what_the_weights_are_loaded_as(
    tiny_model: Callable[..., PreTrainedModel], tmp_path: Path, name: str, stored: torch.dtype
) -> None:
    tiny_model(name).to(stored).save_pretrained(tmp_path)
    assert len({of(tmp_path, dtype) for dtype in (torch.float32, torch.bfloat16, torch.half)}) == 1


def test_the_lowest_bit_of_every_tensor_counts(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    seen = {of(folder)}
    for values in tensors.values():
        last = values.reshape(-1)[-1:].view(torch.int32)
        last ^= 1
        write(tensors, folder)
        seen.add(of(folder))
        last ^= 1
    write(tensors, folder)
    assert of(folder) in seen
    assert len(seen) == 1 + len(tensors)


def _sharded(tensors: dict[str, Tensor], folder: Path) -> None:
    source = resolve_model_source(str(folder))
    model = load_frozen_model(source, dtype=torch.float32, device=CPU)
    (folder / WEIGHTS).unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 2


def _as_torch_saves(tensors: dict[str, Tensor], folder: Path, **options: bool) -> None:
    (folder / WEIGHTS).unlink()
    torch.save(tensors, folder / "pytorch_model.bin", **options)


SAME: dict[str, Callable[[dict[str, Tensor], Path], None]] = {
    "in several files": _sharded,
    "as torch saves": _as_torch_saves,
    "as torch 1.5 saved": lambda tensors, folder: _as_torch_saves(
        tensors, folder, _use_new_zipfile_serialization=False
    ),
    "with what is computed now": lambda tensors, folder: write(
        tensors | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}, folder
    ),
    "without the prefix": lambda tensors, folder: write(
        {name.removeprefix("model."): values for name, values in tensors.items()}, folder
    ),
}


@pytest.mark.parametrize("case", SAME)
def test_files_of_another_kind_with_the_same_weights(folder: Path, case: str) -> None:
    expected = of(folder)
    SAME[case](load_file(folder / WEIGHTS), folder)
    assert of(folder) == expected


def test_a_tied_head_counts_once(
    tiny_model: Callable[..., PreTrainedModel], tmp_path: Path
) -> None:
    tiny_model("llama_mha").save_pretrained(tmp_path)
    expected, tensors = of(tmp_path), load_file(tmp_path / WEIGHTS)
    write(tensors | {HEAD: tensors[EMBEDDING].clone()}, tmp_path)
    assert of(tmp_path) == expected
    write({name if name != EMBEDDING else HEAD: v for name, v in tensors.items()}, tmp_path)
    assert of(tmp_path) == expected
    write(tensors | {HEAD: tensors[EMBEDDING] + 1}, tmp_path)
    assert of(tmp_path) != expected


def test_another_type_or_shape_is_another_model(
    tiny_model: Callable[..., PreTrainedModel], folder: Path, tmp_path: Path
) -> None:
    tiny_model("llama_gqa").bfloat16().save_pretrained(tmp_path / "half")
    wider = tiny_model("llama_gqa", num_hidden_layers=2)
    wider.save_pretrained(tmp_path / "other")
    assert len({of(folder), of(tmp_path / "half"), of(tmp_path / "other")}) == 3


def test_a_gguf_file_is_known_by_its_packed_weights(tiny_gguf: Path) -> None:
    before = of(tiny_gguf)
    content = bytearray(tiny_gguf.read_bytes())
    first = GGUFReader(tiny_gguf).tensors[0]
    content[first.data_offset] ^= 1
    tiny_gguf.write_bytes(content)
    assert of(tiny_gguf) != before


def test_a_model_of_the_hub_is_known_by_its_files(folder: Path) -> None:
    """As the hub's client keeps them: the branch names a snapshot, which has the files."""
    cached = Path(constants.HF_HUB_CACHE) / "models--some--model"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0123abc")
    shutil.copytree(folder, cached / "snapshots" / "0123abc")
    try:
        assert of("some/model") == of("some/model@0123abc") == of(folder)
    finally:
        shutil.rmtree(cached)


def test_files_are_read_once_for_each_state(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = of(folder)
    with monkeypatch.context() as patched:
        patched.setattr(fingerprint, "stored_tensors", None)
        assert of(folder, torch.bfloat16) == expected
    write({name: 2 * values for name, values in load_file(folder / WEIGHTS).items()}, folder)
    assert of(folder) != expected


@torch.no_grad()
def test_no_machine_or_release_may_change_it(
    tiny_model: Callable[..., PreTrainedModel], tmp_path: Path
) -> None:
    model = tiny_model("llama_gqa")
    for parameter in model.parameters():
        parameter.copy_(torch.arange(float(parameter.numel())).view_as(parameter) / 1024)
    model.save_pretrained(tmp_path)
    assert of(tmp_path) == "xxh3:d85267dee09df68221a29838e2c23703"


class TestEarlierReleases:
    """What they hashed: sampled values, as they were loaded."""

    @torch.no_grad()
    def test_every_tensor_counts(self, family_model: PreTrainedModel) -> None:
        original = loaded_fingerprint(family_model)
        seen = {original}
        for name, parameter in family_model.named_parameters():
            before = parameter.clone()
            parameter.mul_(1.02)
            seen.add(loaded_fingerprint(family_model))
            parameter.copy_(before)
            assert loaded_fingerprint(family_model) == original, name
        assert len(seen) == 1 + len(list(family_model.parameters()))

    @torch.no_grad()
    def test_wide_rows_are_read_in_many_columns(self) -> None:
        """A stride that divides the row length would read one column of 4,096."""
        model = torch.nn.Linear(4096, 1024, bias=False)
        before = loaded_fingerprint(model)
        model.weight[:, 8:] += 1
        assert loaded_fingerprint(model) != before
        assert model.weight.numel() > SAMPLES_PER_TENSOR

    def test_their_plans_still_fit(self, folder: Path) -> None:
        """The digest of fixed weights, written down: no machine or release may change it."""
        model = torch.nn.Linear(100, 40)
        model.weight.data = torch.arange(4000.0).view(40, 100)
        model.bias.data = torch.arange(40.0)
        expected = "50eace767281941c010c473940f5e2198d67e1ceb5e6d6adb6ee7cc813984ee9"
        source = resolve_model_source(str(folder))
        assert fingerprint_like(expected, source, model) == expected
