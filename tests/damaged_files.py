"""Checkpoints and plans that must not be used, and metrics that a run must get by without."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Damage:
    """A way to spoil a file.

    Args:
        spoil: Changes a copy of the run's checkpoint, or of its best plan's folder.
        phrases: What the error says.
        options: Further options of the command.
    """

    spoil: Callable[[Path], None]
    phrases: tuple[str, ...]
    options: tuple[str, ...] = ()


def _cut(share: float) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def _flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0b100
    path.write_bytes(content)


def _flip_tensor(path: Path) -> None:
    """Change a bit of the probabilities, which torch alone would load."""
    checkpoint = torch.load(path, weights_only=True)
    s_U = checkpoint["state_dict"]["policy.keep_probabilities"]
    _flip(path, path.read_bytes().index(s_U.numpy().tobytes()) + 9)


def _change(**changes: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        checkpoint = torch.load(path, weights_only=True)
        for name, value in changes.items():
            checkpoint.pop(name) if value is None else checkpoint.update({name: value})
        torch.save(checkpoint, path)

    return change


class _Trap:
    """What a pickle can do when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("trap-was-sprung"),))


CHECKPOINTS = {
    "empty checkpoint": Damage(lambda path: path.write_bytes(b""), ("damaged",)),
    "a tenth of a checkpoint": Damage(_cut(0.1), ("damaged",)),
    "half a checkpoint": Damage(_cut(0.5), ("damaged",)),
    "checkpoint without its end": Damage(_cut(0.99), ("damaged",)),
    "flipped bit in a tensor": Damage(_flip_tensor, ("damaged",)),
    "flipped bit at the end": Damage(lambda path: _flip(path, -20), ("damaged",)),
    "checkpoint that runs code": Damage(lambda path: torch.save(_Trap(), path), ("damaged",)),
    "zeros as checkpoint": Damage(lambda path: path.write_bytes(bytes(5000)), ("damaged",)),
    "list as checkpoint": Damage(lambda path: torch.save([1], path), ("no pruning policy",)),
    "newer checkpoint": Damage(_change(checkpoint_version=99), ("version 99", "version 1")),
    "checkpoint without policy": Damage(_change(state_dict={}), ("no pruning policy",)),
    "checkpoint without optimizer": Damage(_change(optimizer_states=None), ("no pruning policy",)),
    "checkpoint without loops": Damage(_change(loops=None), ("no pruning policy",)),
    "checkpoint over other units": Damage(
        lambda path: None, ("78 units", "give 6"), ("--model.units.kinds=[kv_group]",)
    ),
    "checkpoint of another policy": Damage(
        lambda path: None,
        ("another policy", "FreeLogits"),
        ("--model.policy=pgprune_lightning.policy.FreeLogits",),
    ),
    "checkpoint of another estimator": Damage(
        lambda path: None,
        ("model.estimator", "estimator.num_updates"),
        ("--model.estimator=pgprune_lightning.policy.LeaveOneOut",),
    ),
    "checkpoint of another update": Damage(
        lambda path: None,
        ("model.update.optimizer ProjectedSGD, not Adam",),
        ("--model.update.optimizer=pgprune_lightning.policy.Adam",),
    ),
    "checkpoint of another model": Damage(
        _change(base_model={"fingerprint": "0" * 64, "source": "elsewhere"}),
        ("learned on 'elsewhere'",),
    ),
}
"""What is wrong with `--resume PATH`."""


def _edit(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        plan = json.loads((folder / "plan.json").read_text())
        for name, value in changes.items():
            plan.pop(name) if value is None else plan.update({name: value})
        (folder / "plan.json").write_text(json.dumps(plan))

    return edit


def _point_to(name: str) -> Callable[[Path], None]:
    def point(folder: Path) -> None:
        outside = folder.parent / "outside.safetensors"
        shutil.copy(next(folder.glob("units-*")), outside)
        entry = {"file": name, "sha256": hashlib.sha256(outside.read_bytes()).hexdigest()}
        _edit(tensors=entry)(folder)

    return point


def _tensors(change: Callable[[Path], None]) -> Callable[[Path], None]:
    return lambda folder: change(next(folder.glob("units-*")))


PLANS = {
    "plan without description": Damage(lambda folder: (folder / "plan.json").unlink(), ("plan",)),
    "half a description": Damage(
        lambda folder: _cut(0.5)(folder / "plan.json"), ("cannot be read",)
    ),
    "plan of another format": Damage(_edit(format="other"), ("not a pruning plan",)),
    "newer plan": Damage(_edit(version=99), ("version 99", "version 1")),
    "plan without units": Damage(_edit(mask_space=None), ("damaged",)),
    "plan without tensors": Damage(
        lambda folder: next(folder.glob("units-*")).unlink(), ("cannot be read",)
    ),
    "half the tensors": Damage(_tensors(_cut(0.5)), ("checksum",)),
    "flipped bit in a plan": Damage(_tensors(lambda path: _flip(path, -3)), ("checksum",)),
    "plan that leaves its folder": Damage(_point_to("../outside.safetensors"), ("outside of",)),
    "plan that names its parent": Damage(_point_to(".."), ("plan",)),
    "plan that names a root": Damage(_point_to("/etc/hostname"), ("outside of",)),
    "plan that names a number": Damage(_edit(tensors={"file": 3, "sha256": ""}), ("damaged",)),
    "plan for other units": Damage(
        lambda folder: None, ("kv_group, mlp_channel",), ("--model.units.kinds=[mlp_channel]",)
    ),
}
"""What is wrong with `--model.initialization.plan PATH`."""


def spoiled(name: str, run_dir: Path, folder: Path) -> tuple[list[str], tuple[str, ...]]:
    """Spoil a copy of a run's file.

    Args:
        name: A key of `CHECKPOINTS` or `PLANS`.
        run_dir: The finished run, which stays as it is.
        folder: Where the copy goes.

    Returns:
        Options of a `fit` that uses it, and what the error must say.
    """
    folder.mkdir(parents=True)
    if name in CHECKPOINTS:
        damage, copy = CHECKPOINTS[name], folder / "last.ckpt"
        shutil.copy(run_dir / "checkpoints" / "last.ckpt", copy)
        given = f"--resume={copy}"
    else:
        damage, copy = PLANS[name], folder / "plan"
        shutil.copytree(run_dir / "plans" / "best", copy)
        given = f"--model.initialization.plan={copy}"
    damage.spoil(copy)
    return [given, *damage.options], damage.phrases


def _rewrite(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(change(path.read_bytes()))


def _lines(change: Callable[[list[bytes]], list[bytes]]) -> Callable[[Path], None]:
    return _rewrite(lambda content: b"".join(change(content.splitlines(keepends=True))))


def _make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "notes.txt").write_text("of a user\n")


METRICS: dict[str, Callable[[Path], None]] = {
    "empty": _rewrite(lambda content: b""),
    "bytes that are no UTF-8": _rewrite(lambda content: content + b"\xff\xfe\xe9\n"),
    "UTF-16": _rewrite(lambda content: content.decode().encode("utf-16")),
    "random bytes": _rewrite(lambda content: random.Random(0).randbytes(len(content))),
    "NULs at the end, as after a power cut": _rewrite(lambda content: content + bytes(4096)),
    "a step that is no number": _lines(
        lambda rows: [*rows, "²,".encode() + rows[-1].partition(b",")[2]]
    ),
    "no column `step`": _lines(lambda rows: [rows[0].replace(b"step", b"steps"), *rows[1:]]),
    "no header": _lines(lambda rows: rows[1:]),
    "a header in the middle": _lines(lambda rows: [*rows[:3], rows[0], *rows[3:]]),
    "a field of a megabyte": _lines(lambda rows: [*rows, b"6," + b"1" * 2**20 + b"\n"]),
    "half a row": _rewrite(lambda content: content[:-9]),
    "a row too long": _lines(lambda rows: [*rows[:-1], rows[-1].rstrip() + b",1,2,3\n"]),
    "a folder in its place": _make_folder,
}
"""How a run's `metrics.csv` is spoilt, whose checkpoint is whole."""
