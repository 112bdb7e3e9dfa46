"""Where a number comes from: program, libraries, machine and command."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import transformers

from pgprune_lightning import __version__
from pgprune_lightning.credentials import without_secrets


def provenance(device: torch.device) -> dict[str, Any]:
    """Describe what makes a result again.

    Args:
        device: Where the model ran.

    Returns:
        Primitives: program version and commit (null outside a checkout), library versions,
        device, threads, and the command line.
    """
    return {
        "pgprune_lightning": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": _device_name(device),
        "threads": torch.get_num_threads(),
        "command": without_secrets(
            shlex.join(["python", "-m", "pgprune_lightning", *sys.argv[1:]])
        ),
    }


def _commit() -> str | None:
    """The checkout's commit, with `+changes` if files differ from it."""
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / ".git").exists():
        return None
    try:
        commit = _git(checkout, "rev-parse", "--short=12", "HEAD")
        return commit + ("+changes" if _git(checkout, "status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(checkout: Path, *arguments: str) -> str:
    command = ["git", "-C", str(checkout), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {len(names) or 1} cores"
