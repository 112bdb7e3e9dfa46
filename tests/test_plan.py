"""A plan comes back bit for bit, or it is refused: nothing in between.

Shapes: U units.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from pgprune_lightning import plan as plan_module
from pgprune_lightning.atomic_write import write_atomically
from pgprune_lightning.errors import UserError
from pgprune_lightning.plan import PLAN_FILE, BaseModel, PruningPlan
from pgprune_lightning.policy import UnitLayout

Edit = Callable[[dict[str, Any]], object]


@pytest.fixture
def plan() -> PruningPlan:
    space = UnitLayout.build(
        [(0, "kv_group", 2, 70, 5), (0, "mlp_channel", 5, 9, 4)], total_parameters=300
    )
    s_U = torch.tensor([0.0, 1.0, 0.1, 1 / 3, 0.7, 1e-300, 1 - 2**-53], dtype=torch.float64)
    return PruningPlan(
        base_model=BaseModel("some-one/some-model", "llama", "f" * 64, 300),
        space=space,
        keep_probabilities_U=s_U,
        mask_U=s_U > 0.5,
        budget={"keep_ratio": 0.7, "scope": "per_kind", "protected_layers": [0]},
        step=120,
        validation={"text": "wiki", "sequence_length": 128, "perplexity": 12.345678901234567},
    )


@pytest.fixture
def folder(plan: PruningPlan, tmp_path: Path) -> Path:
    plan.save(tmp_path / "plan")
    return tmp_path / "plan"


def edit(folder: Path, change: Edit) -> None:
    description = json.loads((folder / PLAN_FILE).read_text())
    change(description)
    (folder / PLAN_FILE).write_text(json.dumps(description))


def tensor_file(folder: Path) -> Path:
    return folder / json.loads((folder / PLAN_FILE).read_text())["tensors"]["file"]


def put_tensors(folder: Path, **changed: Tensor) -> None:
    """Exchange tensors with a matching checksum, as another program could have written them."""
    content = save(load_file(tensor_file(folder)) | changed)
    tensor_file(folder).write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    edit(folder, lambda description: description["tensors"].update(sha256=digest))


def test_round_trip_bit_for_bit(plan: PruningPlan, folder: Path) -> None:
    loaded = PruningPlan.load(folder)
    for member in dataclasses.fields(PruningPlan):
        before, after = getattr(plan, member.name), getattr(loaded, member.name)
        if isinstance(before, Tensor):
            assert after.dtype == before.dtype
            assert torch.equal(after, before), member.name
        else:
            assert after == before, member.name


def test_a_person_can_read_it(plan: PruningPlan, folder: Path) -> None:
    description = json.loads((folder / PLAN_FILE).read_text())
    assert description["format"] == "pgprune-plan"
    assert description["version"] == 1
    assert description["kept_units"] == {"kv_group": 1, "mlp_channel": 2}
    assert description["kept_parameters"] == plan.kept_parameters == 300 - 70 - 3 * 9


def test_fits_its_own_base_model_only(plan: PruningPlan) -> None:
    plan.check_base_model("f" * 64, "a copy of it")
    with pytest.raises(UserError, match=r"learned on 'some-one/some-model'.*'another' \(0000"):
        plan.check_base_model("0" * 64, "another")


def test_a_new_plan_replaces_the_old_one(plan: PruningPlan, folder: Path) -> None:
    old_tensors = tensor_file(folder)
    dataclasses.replace(plan, mask_U=~plan.mask_U, step=121).save(folder)
    assert PruningPlan.load(folder).step == 121
    assert not old_tensors.exists()
    assert len(list(folder.iterdir())) == 2


def test_a_crash_between_the_two_writes_leaves_the_old_plan(
    plan: PruningPlan, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash_at_json(path: Path, content: bytes) -> None:
        if path.name == PLAN_FILE:
            raise KeyboardInterrupt
        write_atomically(path, content)

    newer = dataclasses.replace(plan, mask_U=~plan.mask_U, step=121)
    with monkeypatch.context() as patch:
        patch.setattr(plan_module, "write_atomically", crash_at_json)
        with pytest.raises(KeyboardInterrupt):
            newer.save(folder)
    loaded = PruningPlan.load(folder)
    assert loaded.step == 120
    assert torch.equal(loaded.mask_U, plan.mask_U)
    newer.save(folder)
    assert len(list(folder.iterdir())) == 2


def test_a_full_disk_is_the_users_to_mend(
    plan: PruningPlan, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(_handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(UserError, match="No space left on device"):
        dataclasses.replace(plan, step=121).save(folder)
    assert PruningPlan.load(folder).step == 120


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(version=2, written_by="pgprune 9"), r"version 2;.*pgprune 9"),
        (lambda d: d.pop("version"), "version None"),
        (lambda d: d.update(format="other"), "is not a pruning plan"),
        (lambda d: d.pop("base_model"), "is damaged.*base_model"),
        (lambda d: d["base_model"].update(colour="blue"), "is damaged.*colour"),
        (lambda d: d["base_model"].pop("fingerprint"), "is damaged.*fingerprint"),
        (lambda d: d.update(step="many"), "is damaged.*many"),
        (lambda d: d.update(budget=["keep_ratio"]), "is damaged"),
        (lambda d: d.update(tensors=None), "is damaged"),
        (lambda d: d["tensors"].pop("sha256"), "is damaged.*sha256"),
        (lambda d: d["tensors"].update(file="../x.safetensors"), "would lie outside"),
        (lambda d: d["tensors"].update(file="/x.safetensors"), "would lie outside"),
        (lambda d: d["tensors"].update(file=".."), "cannot be read"),
        (lambda d: d["tensors"].update(file="gone.safetensors"), "cannot be read: No such file"),
        (lambda d: d["tensors"].update(sha256="0" * 64), "its checksum"),
        (lambda d: d["mask_space"]["groups"][0].update(count=3), "prunable units is damaged"),
        (lambda d: d["mask_space"]["groups"].pop(), r"is damaged: a tensor is \(7,\)"),
    ],
)
def test_a_description_that_is_not_right(folder: Path, change: Edit, message: str) -> None:
    edit(folder, change)
    with pytest.raises(UserError, match=message):
        PruningPlan.load(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"null", b'"pgprune-plan"'])
def test_a_description_that_is_no_description(folder: Path, content: bytes) -> None:
    (folder / PLAN_FILE).write_bytes(content)
    with pytest.raises(UserError, match=r"cannot be read|is not a pruning plan"):
        PruningPlan.load(folder)


def test_no_plan_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no plan\.json in"):
        PruningPlan.load(tmp_path)


def test_every_flipped_bit_is_noticed(folder: Path) -> None:
    path = tensor_file(folder)
    content = path.read_bytes()
    for position in range(len(content)):
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        with pytest.raises(UserError, match="its checksum"):
            PruningPlan.load(folder)


@pytest.mark.parametrize("kept_bytes", [0, 7, 100])
def test_truncated_tensors(folder: Path, kept_bytes: int) -> None:
    path = tensor_file(folder)
    path.write_bytes(path.read_bytes()[:kept_bytes])
    with pytest.raises(UserError, match="its checksum"):
        PruningPlan.load(folder)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mask": torch.ones(6, dtype=torch.bool)}, r"a tensor is \(6,\)"),
        ({"mask": torch.ones(7, dtype=torch.uint8)}, "uint8.*need .* of torch.bool"),
        ({"keep_probabilities": torch.ones(7)}, r"float32.*need \(7,\) of torch.float64"),
    ],
)
def test_tensors_of_another_shape_or_type(
    folder: Path, changed: dict[str, Tensor], message: str
) -> None:
    put_tensors(folder, **changed)
    with pytest.raises(UserError, match=message):
        PruningPlan.load(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), -1e-9, 1 + 1e-9])
def test_probabilities_that_are_none(folder: Path, plan: PruningPlan, value: float) -> None:
    s_U = plan.keep_probabilities_U.clone()
    s_U[3] = value
    put_tensors(folder, keep_probabilities=s_U)
    with pytest.raises(UserError, match=r"a keep probability is not in \[0, 1\]"):
        PruningPlan.load(folder)


def test_a_pickle_is_never_opened(folder: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(folder / "sprung"),))

    content = pickle.dumps(Trap())
    tensor_file(folder).write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    edit(folder, lambda description: description["tensors"].update(sha256=digest))
    with pytest.raises(UserError, match="is damaged"):
        PruningPlan.load(folder)
    assert not (folder / "sprung").exists()
