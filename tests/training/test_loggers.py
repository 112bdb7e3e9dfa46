import csv
import json
import os
import re
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from pgprune_lightning.report.wandb_workspace import PANELS
from pgprune_lightning.training.loggers import WandbOptions, build_loggers, own_wandb_run
from tests.tiny_commands import TinyCommand

ROOT = Path(__file__).resolve().parents[2]
BLOCK, HEADER, RECORD_HEADER = 32 * 1024, 7, 7
FULL, FIRST, LAST = 1, 2, 4
SECONDS_TO_WRITE = 30.0


def read_wandb_records(path: Path) -> list[Any]:
    """Records of a finished offline run; a process of wandb's may still be writing the last."""
    end = time.monotonic() + SECONDS_TO_WRITE
    while not _exit_statuses(records := _records_in(path)) and time.monotonic() < end:
        time.sleep(0.1)
    return records


def _records_in(path: Path) -> list[Any]:
    """What a file holds: a LevelDB log of 32 KiB blocks after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, position, parts, records = path.read_bytes(), HEADER, b"", []
    while position + RECORD_HEADER <= len(content):
        left_in_block = BLOCK - position % BLOCK
        if left_in_block < RECORD_HEADER:
            position += left_in_block
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        position += RECORD_HEADER
        if position + length > len(content):
            break
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
    pictures = _take_pictures(metrics)
    assert metrics == _metrics_of_csv(tiny_command.run_dir)
    assert pictures.keys() == {0, 6}
    for step in pictures:
        assert pictures[step].keys() == {
            f"pictures/{what}/{kind}"
            for what in ("keep_probabilities", "sparsity_by_layer")
            for kind in ("kv_group", "mlp_channel")
        }
        for picture in pictures[step].values():
            assert picture["_type"] == "html-file"
            assert "<svg" in (path.parent / "files" / picture["path"]).read_text()

    names = {re.sub(r"layer_\d\d", "layer_NN", name) for name in metrics[0] | metrics[1]}
    names = {re.sub("kv_group|mlp_channel", "KIND", name) for name in names | pictures[0].keys()}
    page = (ROOT / "docs" / "wandb.md").read_text()
    explained = set(re.findall(r"`([a-z]+/[^` ]+)`", page)) - {"trainer/global_step"}
    assert names == explained, "docs/wandb.md says what every metric means"
    for panel in (panel for panels in PANELS.values() for panel in panels.values()):
        assert set(panel.get("y", [])) <= names
        pattern = panel.get("metric_regex")
        assert pattern is None or any(re.match(pattern, name) for name in names)
        pictures = panel.get("media_keys", [])
        assert all(re.sub(r"[a-z_]+$", "KIND", name) in names for name in pictures)

    config = _config(records)
    resolved = yaml.safe_load((tiny_command.run_dir / "config.yaml").read_text())
    assert config["model"]["update"]["lr"] == resolved["model"]["update"]["lr"] == 0.02
    assert config["data"]["train"]["path"] == resolved["data"]["train"]["path"]
    assert {record.run.project for record in records if record.HasField("run")} == {
        "pgprune-lightning"
    }


@pytest.mark.slow
def test_runs_of_one_process_are_runs_of_their_own(tiny_command: TinyCommand) -> None:
    for name in ("first", "second"):
        folder = str(tiny_command.run_dir.with_name(name))
        run = tiny_command("fit", "--run_dir", folder, "--wandb.mode", "offline")
        assert run.status == 0, run.err
    for name in ("first", "second"):
        (path,) = tiny_command.run_dir.with_name(name).glob("wandb/offline-run-*/run-*.wandb")
        records = read_wandb_records(path)
        steps = [
            json.loads(item.value_json)
            for record in records
            if record.HasField("history")
            for item in record.history.item
            if (item.key or item.nested_key[0]) == "trainer/global_step"
        ]
        assert steps == sorted(steps)
        assert set(steps) == set(range(7))
        assert _exit_statuses(records) == [0]


@pytest.mark.parametrize(("end", "status"), [(ValueError("x"), 1), (SystemExit(75), 75)])
def test_a_failed_run_is_closed_as_failed(tmp_path: Path, end: BaseException, status: int) -> None:
    import wandb

    def fail() -> None:
        with own_wandb_run():
            wandb.init(mode="offline", dir=tmp_path)
            raise end

    with pytest.raises(type(end)):
        fail()
    assert wandb.run is None
    (path,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert _exit_statuses(read_wandb_records(path)) == [status]


def test_a_run_that_was_open_before_stays_open(tmp_path: Path) -> None:
    import wandb

    with wandb.init(mode="offline", dir=tmp_path) as outer:
        with own_wandb_run():
            assert wandb.run is outer
        assert wandb.run is outer


def _exit_statuses(records: list[Any]) -> list[int]:
    return [record.exit.exit_code for record in records if record.HasField("exit")]


def _take_pictures(metrics: dict[int, dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Pictures by step, removed from the metrics."""
    pictures: dict[int, dict[str, Any]] = {}
    for step, row in metrics.items():
        for name in [name for name in row if name.startswith("pictures/")]:
            pictures.setdefault(step, {})[name] = row.pop(name)
    return pictures


def _metrics_by_step(records: list[Any]) -> dict[int, dict[str, Any]]:
    """Metrics by the trainer's step, as charts against `trainer/global_step` show them."""
    metrics: dict[int, dict[str, Any]] = {}
    for record in records:
        if record.HasField("history"):
            row: dict[str, Any] = {}
            for item in record.history.item:
                name, *inner = [item.key] if item.key else item.nested_key
                value = json.loads(item.value_json)
                row[name] = row.get(name, {}) | {inner[0]: value} if inner else value
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
