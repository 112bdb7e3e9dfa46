"""Takes the steps of a Dockerfile one by one in a fresh Debian, where there is no container engine.

    python docker/prove.py docker/Dockerfile.cpu --root FOLDER [--bind PATH ...] [-- ARGUMENT ...]

Needs root and debootstrap. FOLDER becomes the image's file system: Debian bookworm, of which the
base image is made too, with its Python 3.11; a Debian that lies there already is taken. At the end
the health check is run, and the entry point with the ARGUMENTs.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

PACKAGES = "python3,python3-venv,ca-certificates"


def instructions(dockerfile: Path) -> Iterator[tuple[str, str]]:
    """Yield each instruction of a Dockerfile and what stands behind it, continued lines joined."""
    joined = ""
    for line in dockerfile.read_text().splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            joined += line.strip().removesuffix("\\")
            if not line.endswith("\\"):
                name, _, rest = joined.partition(" ")
                yield name.upper(), rest.strip()
                joined = ""


@dataclass
class Image:
    """An image in the making.

    Args:
        root: Its file system.
        context: The folder that COPY takes from.
    """

    root: Path
    context: Path
    environment: dict[str, str] = field(
        default_factory=lambda: {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            **{name: value for name, value in os.environ.items() if name.startswith("PIP_")},
        }
    )
    folder: str = "/"
    user: str = "0:0"
    check: list[str] = field(default_factory=list)
    entry: list[str] = field(default_factory=list)

    def take(self, name: str, rest: str) -> None:
        """Take one step."""
        step = getattr(self, f"_{name.lower()}", None)
        if step is None:
            raise SystemExit(f"prove: there is no step {name} here")
        step(rest)

    def run(self, *command: str) -> None:
        """Run a command as the image's user would.

        Raises:
            CalledProcessError: If it fails.
        """
        script = f"cd {shlex.quote(self.folder)} && exec {shlex.join(command)}"
        environment = {"HOME": "/tmp"} | self.environment
        subprocess.run(
            ["chroot", f"--userspec={self.user}", self.root, "/bin/sh", "-c", script],
            env=environment,
            check=True,
        )

    def _from(self, rest: str) -> None:
        assert rest.startswith("python:3.11"), f"Debian bookworm has Python 3.11, not {rest}"
        if not (self.root / "usr/bin/python3").exists():
            options = ["--variant=minbase", f"--include={PACKAGES}"]
            subprocess.run(["debootstrap", *options, "bookworm", self.root], check=True)

    def _env(self, rest: str) -> None:
        for pair in shlex.split(rest):
            name, _, value = pair.partition("=")
            self.environment[name] = value.replace("$PATH", self.environment["PATH"])

    def _arg(self, rest: str) -> None:
        name, _, default = rest.partition("=")
        self.environment[name] = os.environ.get(name, default)

    def _run(self, rest: str) -> None:
        self.run("/bin/sh", "-c", rest)

    def _workdir(self, rest: str) -> None:
        self.folder = rest
        self._inside(rest).mkdir(parents=True, exist_ok=True)

    def _copy(self, rest: str) -> None:
        *sources, target = rest.split()
        for name in sources:
            source = self.context / name
            goal = self._inside(target)
            if source.is_dir():
                shutil.copytree(source, goal, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, goal / source.name if target.endswith("/") else goal)

    def _user(self, rest: str) -> None:
        self.user = rest

    def _volume(self, rest: str) -> None:
        assert self._inside(rest).is_dir(), rest

    def _healthcheck(self, rest: str) -> None:
        self.check = json.loads(rest.partition("CMD ")[2])

    def _entrypoint(self, rest: str) -> None:
        self.entry = json.loads(rest)

    def _cmd(self, rest: str) -> None:
        self.run(*self.entry, *json.loads(rest))

    def _inside(self, path: str) -> Path:
        return self.root / str(Path(self.folder) / path).lstrip("/")


def prove(dockerfile: Path, root: Path, binds: list[Path], arguments: list[str]) -> None:
    """Take all steps, then check the health and run the entry point."""
    image = Image(root, dockerfile.resolve().parents[1])
    for number, (name, rest) in enumerate(instructions(dockerfile), start=1):
        print(f"prove: {number} {name} {rest}", flush=True)
        start = time.monotonic()
        image.take(name, rest)
        if name == "FROM":
            _mount(root, binds)
        print(f"prove: {number} done in {time.monotonic() - start:.0f} s", flush=True)
    print(f"prove: the health check {shlex.join(image.check)}", flush=True)
    image.run(*image.check)
    if arguments:
        print(f"prove: the entry point with {shlex.join(arguments)}", flush=True)
        image.run(*image.entry, *arguments)
    print("prove: every step was taken", flush=True)


def _mount(root: Path, binds: list[Path]) -> None:
    """What an engine mounts, and what the package index needs; gone with this process."""
    shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
    subprocess.run(["mount", "-t", "proc", "proc", root / "proc"], check=True)
    subprocess.run(["mount", "--rbind", "/dev", root / "dev"], check=True)
    for path in binds:
        inside = root / str(path).lstrip("/")
        if path.is_dir():
            inside.mkdir(parents=True, exist_ok=True)
        else:
            inside.parent.mkdir(parents=True, exist_ok=True)
            inside.touch()
        # Read-only, or a step that writes there would write outside of the image.
        subprocess.run(["mount", "--options", "bind,ro", path, inside], check=True)


def main() -> None:
    """Read the command line; mounts are made in a name space of their own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dockerfile", type=Path)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--bind", type=Path, action="append", default=[])
    parser.add_argument("arguments", nargs="*")
    options = parser.parse_args()
    if os.environ.get("PROVE_OWN_MOUNTS") != "1":
        os.environ["PROVE_OWN_MOUNTS"] = "1"
        command = ["unshare", "--mount", "--propagation", "private", sys.executable, *sys.argv]
        os.execvp("unshare", command)
    prove(options.dockerfile, options.root, options.bind, options.arguments)


if __name__ == "__main__":
    main()
