import csv
import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pgprune_lightning.training.loggers import WandbOptions, build_loggers
from tests.tiny_commands import TinyCommand

ROOT = Path(__file__).resolve().parents[2]
BLOCK, HEADER, RECORD_HEADER = 32 * 1024, 7, 7
FULL, FIRST, LAST = 1, 2, 4


def read_wandb_records(path: Path) -> list[Any]:
    """Records of an offline run: a LevelDB log of 32 KiB blocks after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, position, parts, records = path.read_bytes(), HEADER, b"", []
    while position + RECORD_HEADER <= len(content):
        left_in_block = BLOCK - position % BLOCK
        if left_in_block < RECORD_HEADER:
            position += left_in_block
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        position += RECORD_HEADER
        parts = parts * (kind not in (FULL, FIRST)) + content[position : position + length]
        position += length
        if kind in (FULL, LAST):
            record = Record()
            record.ParseFromString(parts)
            records.append(record)
    return records


def test_without_wandb_there_is_the_csv_file_alone(tmp_path: Path) -> None:
    assert [type(logger).__name__ for logger in build_loggers(tmp_path, WandbOptions())] == [
        "MetricsFile"
    ]
    assert not list(tmp_path.iterdir())


def test_the_id_of_the_run_is_kept_before_anything_is_logged(tmp_path: Path) -> None:
    online = WandbOptions(mode="online")
    first, again = (build_loggers(tmp_path, online)[1] for _ in range(2))
    assert (tmp_path / "wandb_run_id.txt").read_text() == first.version == again.version
    assert not (tmp_path / "wandb").exists()


def test_offline_runs_of_a_folder_have_their_own_ids_and_one_group(tmp_path: Path) -> None:
    offline = WandbOptions(mode="offline")
    first, again = (build_loggers(tmp_path, offline)[1] for _ in range(2))
    assert first.version != again.version
    groups = {logger._wandb_init["group"] for logger in (first, again)}  # type: ignore[attr-defined]
    assert groups == {(tmp_path / "wandb_run_id.txt").read_text()}


@pytest.mark.slow
def test_an_offline_run_holds_metrics_and_config(tiny_command: TinyCommand) -> None:
    arguments = ["--config", str(tiny_command.config), "--config", "configs/overlays/wandb.yaml"]
    run = subprocess.run(
        [sys.executable, "-m", "pgprune_lightning", "fit", *arguments, "--wandb.mode", "offline"],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    (path,) = tiny_command.run_dir.glob("wandb/offline-run-*/run-*.wandb")
    records = read_wandb_records(path)

    metrics = _metrics_by_step(records)
    assert {"train/loss", "train/baseline"} <= metrics[1].keys() & metrics[6].keys()
    for step in (0, 3, 6):
        names = {"val/perplexity", "sparsity/kv_group", "sparsity/mlp_channel"}
        by_layer = {f"sparsity/mlp_channel/layer_{layer:02d}" for layer in range(3)}
        assert names | by_layer <= metrics[step].keys()
    assert metrics.keys() == set(range(7))
    assert metrics == _metrics_of_csv(tiny_command.run_dir)

    config = _config(records)
    resolved = yaml.safe_load((tiny_command.run_dir / "config.yaml").read_text())
    assert config["model"]["lr"] == resolved["model"]["lr"] == 0.02
    assert config["data"]["train"]["path"] == resolved["data"]["train"]["path"]
    assert {record.run.project for record in records if record.HasField("run")} == {
        "pgprune-lightning"
    }


def _metrics_by_step(records: list[Any]) -> dict[int, dict[str, float]]:
    """Metrics by the trainer's step, as charts against `trainer/global_step` show them."""
    metrics: dict[int, dict[str, float]] = {}
    for record in records:
        if record.HasField("history"):
            items = record.history.item
            row = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in items}
            own = {name: value for name, value in row.items() if not name.startswith("_")}
            metrics.setdefault(int(own.pop("trainer/global_step")), {}).update(own)
    return metrics


def _metrics_of_csv(run_dir: Path) -> dict[int, dict[str, float]]:
    with (run_dir / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        int(row.pop("step")): {name: float(value) for name, value in row.items() if value}
        for row in rows
    }


def _config(records: list[Any]) -> dict[str, Any]:
    config: dict[str, Any] = {}
    for record in records:
        updates = [*record.run.config.update, *record.config.update]
        config |= {item.key: json.loads(item.value_json) for item in updates if item.key}
    return config
