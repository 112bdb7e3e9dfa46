"""Importing this package costs nothing of transformers, and lets it load pruned models.

The order of the imports must not matter, and neither must what is imported first.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pgprune_lightning.export import ExportOptions
from pgprune_lightning.export.formats import FORMATS
from pgprune_lightning.masking import unit_layout_of
from tests.tiny_exports import prune
from tests.tiny_models import make_tiny_model

ROOT = Path(__file__).resolve().parents[1]
LOAD = "AutoModelForCausalLM.from_pretrained({folder!r}, trust_remote_code=False)"
ORDERS = {
    "ours first": f"""
import sys
import pgprune_lightning
assert "transformers" not in sys.modules and "torch" not in sys.modules
from transformers import AutoModelForCausalLM
model = {LOAD}
""",
    "theirs first": f"""
from transformers import AutoModelForCausalLM
import pgprune_lightning
model = {LOAD}
""",
    "a family first": f"""
import pgprune_lightning
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers import AutoModelForCausalLM
model = {LOAD}
""",
}


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose layers have different widths."""
    folder = tmp_path_factory.mktemp("uneven")
    model = make_tiny_model("llama_gqa")
    pruned = prune(model, unit_layout_of(model, ["attention"]), torch.tensor([True, False, True]))
    FORMATS["hf"].write(pruned, folder, ExportOptions(torch.float32))
    return folder


@pytest.mark.parametrize("order", ORDERS)
def test_any_order_of_imports_will_do(order: str, uneven: Path) -> None:
    program = ORDERS[order].replace("{folder!r}", repr(str(uneven)))
    check = "\nassert type(model).__module__ == 'pgprune_lightning.modeling_pruned', type(model)"
    subprocess.run([sys.executable, "-c", program + check], cwd=ROOT, check=True)
