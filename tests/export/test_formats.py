"""Every family in every format: the masked, the cut and the reloaded model are one.

Shapes: U units.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from pgprune_lightning.errors import UserError
from pgprune_lightning.export import ExportFormat, ExportOptions
from pgprune_lightning.export.decilm_reader import DeciReader
from pgprune_lightning.export.export_record import check_export, write_export
from pgprune_lightning.export.formats import FORMATS
from pgprune_lightning.export.padded import padded_model
from pgprune_lightning.masking import DenseMaskedExecution, unit_layout_of
from pgprune_lightning.masking.frozen_model import load_frozen_model
from pgprune_lightning.masking.model_source import resolve_model_source
from pgprune_lightning.policy import UnitLayout
from tests.tiny_exports import prune
from tests.tiny_models import claim_tied, make_tiny_model, masks_of, random_tokens

OPTIONS = ExportOptions(torch.float32)


def load(path: Path) -> PreTrainedModel:
    source = resolve_model_source(str(path))
    return load_frozen_model(source, dtype=torch.float32, device=torch.device("cpu"))


def uneven_mask(space: UnitLayout) -> Tensor:
    """A random mask without the first group, such as the first layer's attention."""
    return dict(masks_of(space))[f"no {space.groups[0].kind} in layer 0"]


def test_masked_equals_cut_equals_reloaded(
    family_model: PreTrainedModel, units: dict[str, Any], tmp_path: Path
) -> None:
    space = unit_layout_of(family_model, **units)
    pruned = prune(family_model, space, uneven_mask(space))
    FORMATS["hf"].check(family_model.config, pruned.widths, OPTIONS)
    FORMATS["hf"].write(pruned, tmp_path, OPTIONS)
    check = check_export(pruned, FORMATS["hf"], tmp_path, OPTIONS)
    assert check.reloaded is not None
    assert check.reloaded < 1e-4
    assert check.cut < 1e-4


@torch.no_grad()
def test_zeros_stand_for_what_was_dropped(
    family_model: PreTrainedModel, units: dict[str, Any]
) -> None:
    space = unit_layout_of(family_model, **units)
    tokens_BT = random_tokens()
    # They leave with their sub-layer, but need not be zero.
    norms = sum(w.numel() for name, w in family_model.named_parameters() if "norm" in name)
    for name, mask_U in masks_of(space):
        padded = padded_model(family_model, space, mask_U)
        with DenseMaskedExecution(family_model, space).masked(mask_U) as masked:
            expected = masked(tokens_BT, use_cache=False).logits
        found = padded(tokens_BT, use_cache=False).logits
        assert torch.allclose(found, expected, atol=1e-4), name
        dropped = space.total_parameters - space.kept_parameters(mask_U)
        zeros = sum(int((parameter == 0).sum()) for parameter in padded.parameters())
        assert dropped - norms <= zeros <= dropped, name


@pytest.mark.parametrize("name", FORMATS)
def test_the_record_says_what_was_written(name: str, tmp_path: Path) -> None:
    model = make_tiny_model("llama_gqa")
    pruned = prune(model, unit_layout_of(model, ["layer"]), torch.tensor([True, False, True]))
    record = write_export(pruned, FORMATS[name], OPTIONS, tmp_path)
    assert json.loads((tmp_path / "export.json").read_text()) == record
    assert record["format"] == name
    assert record["dense_parameters"] == model.num_parameters()
    assert record["kept_share"] == pytest.approx(2 / 3)
    kept = pruned.plan.space.kept_parameters(pruned.mask_U)
    assert record["parameters"] == (model.num_parameters() if name == "padded" else kept)
    files = [*tmp_path.glob("*.safetensors"), *tmp_path.glob("*.gguf")]
    assert record["bytes"] == sum(file.stat().st_size for file in files)
    assert set(record["runtimes"]["transformers"]) == {"accepts", "reason"}
    assert record["provenance"]["torch"] == torch.__version__


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("stored", ["both", "embedding", "head"])
def test_the_files_say_whether_the_head_is_the_embedding(
    name: str, stored: str, tmp_path: Path
) -> None:
    """A configuration that ties them may lie beside two matrices, or beside either of them."""
    dense, saved = make_tiny_model("llama_gqa"), tmp_path / "saved"
    dense.save_pretrained(saved)
    tensors = load_file(saved / "model.safetensors")
    if stored != "both":
        del tensors["lm_head.weight" if stored == "embedding" else "model.embed_tokens.weight"]
    save_file(tensors, saved / "model.safetensors", metadata={"format": "pt"})

    model = load(claim_tied(saved))
    assert model.config.tie_word_embeddings == (stored != "both")
    pruned = prune(model, unit_layout_of(model, ["layer"]), torch.tensor([True, False, True]))
    (tmp_path / "out").mkdir()
    record = write_export(pruned, FORMATS[name], OPTIONS, tmp_path / "out")
    head = 0 if stored == "both" else 97 * 32
    assert record["dense_parameters"] == dense.num_parameters() - head
    if name == "plan":
        return
    with DenseMaskedExecution(model, pruned.plan.space).masked(pruned.mask_U) as masked:
        expected = masked(random_tokens(), use_cache=False).logits
    if name == "decilm":
        read: Any = DeciReader(tmp_path / "out", torch.device("cpu"), torch.float32).logits
        found = read(random_tokens())
    else:
        file = tmp_path / "out" / "model.gguf"
        found = load(file if name == "gguf" else tmp_path / "out")(random_tokens()).logits
    assert torch.allclose(found, expected, atol=1e-2 if name == "gguf" else 1e-4)


class Careless(ExportFormat):
    """Writes something else than it was given."""

    name = "careless"
    purpose = "a mistake"

    def __init__(self, shift: float) -> None:
        self.shift = shift

    def check(self, config: Any, widths: Any, options: Any) -> None:
        """Everything goes."""

    def write(self, pruned: Any, folder: Path, options: Any) -> None:
        """Write nothing."""

    def reload(self, folder: Path, pruned: Any, device: Any) -> Any:
        """Logits with a shift."""
        return lambda tokens_BT: pruned.cut(tokens_BT).logits + self.shift


@pytest.mark.parametrize("shift", [0.1, float("nan")])
def test_another_model_on_the_disk_is_an_error(shift: float, tmp_path: Path) -> None:
    model = make_tiny_model("llama_gqa")
    pruned = prune(model, unit_layout_of(model, ["layer"]), torch.tensor([True, False, True]))
    assert check_export(pruned, Careless(0.0), tmp_path, OPTIONS).reloaded == pytest.approx(0)
    with pytest.raises(UserError, match="the reloaded model's logits differ"):
        check_export(pruned, Careless(shift), tmp_path, OPTIONS)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_small_types_are_checked_in_float32_and_stay_small(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    model = make_tiny_model("qwen3")
    for parameter in model.parameters():  # as `from_pretrained` does, which leaves buffers alone
        parameter.data = parameter.data.to(dtype)
    frequencies = model.model.rotary_emb.inv_freq.clone()
    space = unit_layout_of(model, ["kv_group", "mlp_channel"])
    record = write_export(prune(model, space), FORMATS["hf"], ExportOptions(dtype), tmp_path)
    assert record["checked_in"] == "float32"
    assert record["max_logit_difference"] < 1e-4
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert torch.equal(model.model.rotary_emb.inv_freq, frequencies)
    assert record["dense_bytes"] == 2 * model.num_parameters()
