"""Many runs of the program in seconds each: forked from a process that has imported everything."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from pgprune_lightning.cli import main
from tests.run_traces import files_of, recorded_steps, steps_of

HANGS_AFTER = 120.0
"""Seconds after which a run counts as hanging."""


@dataclass(frozen=True)
class WarmRuns:
    """Runs of a small trained model, each in a process of its own.

    Args:
        config: The config file.
        folder: Where runs, logs and traces go.
    """

    config: Path
    folder: Path

    def start(
        self,
        name: str,
        *options: str,
        prepare: Callable[[], None] | None = None,
        environment: dict[str, str] | None = None,
    ) -> int:
        """Fork a `fit` in the folder `name` and return its process id.

        Args:
            name: The run; its second start appends to its log and trace.
            options: After the config on the command line.
            prepare: Called in the new process before the program.
            environment: Variables of the new process.
        """
        sys.stdout.flush()
        sys.stderr.flush()
        process = os.fork()
        if process:
            return process
        status = 1
        try:
            log = os.open(self.log(name), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
            os.environ.update(environment or {})
            faulthandler.register(signal.SIGQUIT)
            # Its own lock is shared by all that were forked: one that is killed keeps it for ever.
            tqdm.set_lock(threading.RLock())
            if prepare is not None:
                prepare()
            with recorded_steps(self.trace(name)):
                own = ["--config", str(self.config), f"--run_dir={self.run_dir(name)}"]
                status = main(["fit", *own, *options])
        except SystemExit as end:
            status = int(end.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            with suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)  # what pytest or the caller would do at exit is not for this process

    def run(self, name: str, *options: str, timeout: float = HANGS_AFTER, **how: Any) -> int:
        """Start a run, wait for it and return its status."""
        return wait(self.start(name, *options, **how), timeout)

    def run_dir(self, name: str) -> Path:
        """The folder of a run; ranks of one run, `NAME@RANK`, share it."""
        return self.folder / name.partition("@")[0] / "run"

    def log(self, name: str) -> Path:
        """What a run has printed."""
        (self.folder / name.partition("@")[0]).mkdir(exist_ok=True)
        return self.folder / name.partition("@")[0] / f"{name}.log"

    def trace(self, name: str) -> Path:
        """The steps of a run."""
        return self.log(name).with_suffix(".jsonl")

    def difference(self, name: str, whole: str) -> str:
        """What of a run is not as in an uninterrupted one; empty if nothing is."""
        try:
            if steps_of(self.trace(name)) != steps_of(self.trace(whole)):
                return "its steps differ"
            left, expected = files_of(self.run_dir(name)), files_of(self.run_dir(whole))
        except (AssertionError, OSError, ValueError) as error:
            return str(error)
        return ", ".join(part for part in expected if left[part] != expected[part])


def wait(process: int, timeout: float = HANGS_AFTER) -> int:
    """Wait for a process and return its status; kill what hangs, whose status is then -9."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(process, signal.SIGQUIT)  # its log then says where it hangs
    time.sleep(1.0)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return -signal.SIGKILL


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
            "lr": 0.01,
            "initialization": {"num_blocks": 4},
            "dtype": "float32",
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
