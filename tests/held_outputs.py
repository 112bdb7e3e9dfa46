"""An output that another process writes, and what a refused process must not have changed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOLDER = """
import os, sys
from pathlib import Path
from pgprune_lightning.folder_lock import exclusive_output
with exclusive_output(Path(sys.argv[1]), "--output"):
    if sys.argv[2:] == ["fork"] and os.fork() == 0:
        import time
        time.sleep(30)
    print(os.getpid(), flush=True)
    sys.stdin.read()
"""

Hold = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def hold() -> Iterator[Hold]:
    """Starts a process that locks an output until its stdin is closed; "fork": with a worker."""
    processes: list[subprocess.Popen[str]] = []

    def start(output: Path, *more: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(output), *more],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline().strip() == str(process.pid)
        return process

    yield start
    for process in processes:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # with what it has forked
        process.communicate()


def traces(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder, with its time and size."""
    paths = (folder, *folder.rglob("*"))
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in paths}
