"""Runs of a small model in seconds each, and what of them is not as it should be."""

from __future__ import annotations

import shutil
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.faults.processes import HANGS_AFTER, last_words, start, wait
from tests.run_traces import files_of, steps_of


@dataclass(frozen=True)
class WarmRuns:
    """Runs of a small trained model, each in a process of its own.

    Args:
        config: The config file.
        folder: Where runs, logs and traces go.
    """

    config: Path
    folder: Path

    def start(self, name: str, *options: str, config: Path | None = None, **how: Any) -> int:
        """Fork a `fit` in the run's folder and return its process id.

        Args:
            name: The run; its second start appends to its log and trace.
            options: After the config on the command line.
            config: The config file, if it is another.
            how: More for `processes.start`.
        """
        own = ["--config", str(config or self.config), f"--run_dir={self.run_dir(name)}"]
        return start(["fit", *own, *options], self.log(name), trace=self.trace(name), **how)

    def run(self, name: str, *options: str, timeout: float = HANGS_AFTER, **how: Any) -> int:
        """Start a run, wait for it and return its status."""
        return wait(self.start(name, *options, **how), timeout)

    def whole(self, *options: str, **how: Any) -> None:
        """Make the run `whole`, which nothing happens to.

        Raises:
            RuntimeError: If it fails.
        """
        if self.run("whole", *options, **how):
            raise RuntimeError(last_words(self.log("whole")))

    def wait_for_steps(self, name: str, steps: int) -> None:
        """Wait, for a minute at most, until a run has taken so many steps."""
        trace, end = self.trace(name), time.monotonic() + 60
        while time.monotonic() < end:
            if trace.exists() and len(trace.read_text().splitlines()) >= steps:
                return
            time.sleep(0.01)

    def forget(self, name: str) -> None:
        """Remove a run, so that another may have its name."""
        shutil.rmtree(self.place(name), ignore_errors=True)
        for file in (self.log(name), self.trace(name)):
            file.unlink(missing_ok=True)

    def place(self, name: str) -> Path:
        """The folder around a run; ranks of one run, `NAME@RANK`, share it."""
        return self.folder / name.partition("@")[0]

    def run_dir(self, name: str) -> Path:
        """The folder of a run."""
        return self.place(name) / "run"

    def log(self, name: str) -> Path:
        """What a run has printed."""
        return self.folder / f"{name}.log"

    def trace(self, name: str) -> Path:
        """The steps of a run."""
        return self.folder / f"{name}.jsonl"

    def difference(self, name: str, whole: str = "whole", *, besides: Collection[str] = ()) -> str:
        """What of a run is not as in an uninterrupted one; empty if nothing is.

        Args:
            name: The run.
            whole: The uninterrupted one.
            besides: Parts that may differ.
        """
        try:
            if steps_of(self.trace(name)) != steps_of(self.trace(whole)):
                return "its steps differ"
            left, expected = self._left(name), self._left(whole)
        except (AssertionError, OSError, ValueError) as error:
            return str(error)
        return ", ".join(
            part for part in expected if part not in besides and left[part] != expected[part]
        )

    def _left(self, name: str) -> dict[str, Any]:
        """All that a run has left; of what others may share, the tokens, nothing is removed."""
        place, run_dir = self.place(name), self.run_dir(name)
        config = (run_dir / "config.yaml").read_text()
        paths = [path for path in run_dir.rglob("*") if path.suffix != ".ckpt"]
        beside = [path for path in place.iterdir() if path.name != "cache"]
        return files_of(run_dir) | {
            "names": sorted(str(path.relative_to(place)) for path in (*paths, *beside)),
            "config": yaml.safe_load(config.replace(str(place), "")) | {"resume": None},
        }


def make_warm_runs(data: Path, folder: Path, **trainer: Any) -> WarmRuns:
    """Write the config of a run of 12 steps of a trained Llama of 260,032 parameters.

    Args:
        data: The tests' data, with the model and its stories.
        folder: An empty folder.
        trainer: Options of the Trainer, over the defaults.
    """
    stories = {
        "path": str(data / "tinystories" / "stories.txt"),
        "document_separator": "<|endoftext|>",
        "num_blocks": 200,
    }
    config = {
        "model": {
            "base_model": str(data / "stories260K"),
            "keep_ratio": 0.7,
            "update": {"lr": 0.01},
            "initialization": {"num_blocks": 4},
            "execution": {"dtype": "float32"},
        },
        "data": {
            "train": stories | {"part": [0.0, 0.8]},
            "validation": stories | {"part": [0.8, 1.0], "num_blocks": 4},
            "block_length": 32,
            "evaluation_block_length": 32,
            "batch_size": 2,
            "cache_dir": str(folder / "cache"),
        },
        "trainer": {
            "accelerator": "cpu",
            "max_steps": 12,
            "val_check_interval": 4,
            "log_every_n_steps": 1,
        }
        | trainer,
        "checkpoint": {"every_n_train_steps": 2},
        "outcome_report": {"prompt": ""},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return WarmRuns(path, folder)
