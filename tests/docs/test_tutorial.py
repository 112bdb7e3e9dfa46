"""What the tutorial does in Python works on an export."""

from pathlib import Path

import pytest
import torch

from pgprune_lightning.export import ExportOptions
from pgprune_lightning.export.formats import FORMATS
from pgprune_lightning.masking import unit_layout_of
from tests.documentation import ROOT, blocks
from tests.tiny_exports import prune
from tests.tiny_models import make_tiny_model


def test_the_export_generates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = make_tiny_model("llama_gqa")
    pruned = prune(model, unit_layout_of(model, ["kv_group", "mlp_channel"]))
    FORMATS["hf"].write(pruned, tmp_path, ExportOptions(torch.float32))
    (source,) = blocks((ROOT / "docs" / "tutorial.md").read_text(), "python")
    assert "exports/keep80" in source
    exec(source.replace("exports/keep80", str(tmp_path)), {})
    assert len(capsys.readouterr().out.split()) > 40  # a word a token, and those of the prompt
