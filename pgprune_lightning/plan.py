"""The pruning plan: which units of which model stay, with the probabilities behind the choice.

A plan is a folder with `plan.json`, which a person can read, and the safetensors file it names.
The tensors are written first and the JSON replaced last, so that a plan is always whole.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import safetensors.torch
import torch
from pydantic import Field
from safetensors import SafetensorError
from torch import Tensor

from pgprune_lightning import __version__
from pgprune_lightning.atomic_write import remove_temp_files, write_atomically
from pgprune_lightning.errors import UserError
from pgprune_lightning.policy import BudgetScope, UnitKind, UnitLayout
from pgprune_lightning.record_file import (
    Count,
    Name,
    PositiveCount,
    Record,
    Share,
    checked,
    damaged,
    read_object,
)

FORMAT = "pgprune-plan"
VERSION = 1
PLAN_FILE = "plan.json"


@dataclass(frozen=True)
class BaseModel:
    """The dense model that a plan belongs to.

    Args:
        source: What it was loaded from, as the user wrote it.
        model_type: `config.model_type`.
        fingerprint: Hash of its weights, as `masking.fingerprint` makes it.
        parameters: How many it has.
    """

    source: str
    model_type: str
    fingerprint: str
    parameters: int

    @property
    def short_fingerprint(self) -> str:
        """Enough of the fingerprint to tell models apart on a page."""
        return _shortened(self.fingerprint)


@dataclass(frozen=True)
class PruningPlan:
    """A mask, the policy it came from, and what both belong to.

    Args:
        base_model: Identity of the dense model.
        space: The units.
        keep_probabilities_U: The policy, (U,), float64.
        mask_U: Which units stay, (U,), bool.
        budget: `keep_ratio`, `scope`, `protected_layers` and `layer_keep_ratios` it was learned
            under; `round_to` and `tensor_parallel` where they are not 1.
        step: Training steps before it; 0 is the untrained mask.
        validation: `text`, `sequence_length` (tokens), `bos_per_block` and `perplexity` of its
            validation; empty if it was not validated.
    """

    base_model: BaseModel
    space: UnitLayout
    keep_probabilities_U: Tensor
    mask_U: Tensor
    budget: dict[str, Any]
    step: int
    validation: dict[str, Any] = field(default_factory=dict)

    @property
    def kept_parameters(self) -> int:
        """Parameters of the model that this plan cuts."""
        return self.space.kept_parameters(self.mask_U)

    def save(self, folder: Path) -> None:
        """Write the plan; an older one in the same folder is replaced as a whole.

        What a killed process left there, which no other may write to meanwhile, is removed.

        Raises:
            UserError: If the folder cannot be written.
        """
        tensors = safetensors.torch.save(
            {
                "keep_probabilities": self.keep_probabilities_U.cpu().contiguous(),
                "mask": self.mask_U.cpu().contiguous(),
            }
        )
        digest = hashlib.sha256(tensors).hexdigest()
        tensor_file = f"units-{digest[:16]}.safetensors"
        write_atomically(folder / tensor_file, tensors)
        text = json.dumps(self._description(tensor_file, digest), indent=1)
        write_atomically(folder / PLAN_FILE, text.encode())
        for stale in folder.glob("units-*.safetensors"):
            if stale.name != tensor_file:
                stale.unlink(missing_ok=True)
        remove_temp_files(folder)

    def _description(self, tensor_file: str, digest: str) -> dict[str, Any]:
        kept = self.space.kept_by_kind(self.mask_U)
        return {
            "format": FORMAT,
            "version": VERSION,
            "written_by": f"pgprune-lightning {__version__}",
            "base_model": asdict(self.base_model),
            "budget": self.budget,
            "step": self.step,
            "validation": self.validation,
            "kept_units": kept,
            "kept_parameters": self.kept_parameters,
            "tensors": {"file": tensor_file, "sha256": digest},
            "mask_space": self.space.to_dict(),
        }

    @classmethod
    def load(cls, folder: Path) -> PruningPlan:
        """Read a plan and check that it is whole.

        Args:
            folder: A plan's folder.

        Raises:
            UserError: If it is missing, damaged, of another format or of a newer version.
        """
        path = folder / PLAN_FILE
        record = _read_record(path)
        description = checked(_Description, record, path, "plan")
        if record["validation"]:
            checked(_Validation, record["validation"], path, "plan", "validation")
        tensors = _read_tensors(folder, description.tensors)
        try:
            plan = cls(
                base_model=BaseModel(**record["base_model"]),
                space=UnitLayout.from_dict(record["mask_space"]),
                keep_probabilities_U=tensors["keep_probabilities"],
                mask_U=tensors["mask"],
                budget=record["budget"],
                step=description.step,
                validation=record["validation"],
            )
        except KeyError as error:
            sentence = f"{description.tensors.file} holds no tensor {error}"
            raise UserError(damaged(path, "plan", sentence)) from error
        except UserError as error:
            raise UserError(f"plan: {path}: {error}") from error
        _check_tensors(plan, folder)
        _check_agreement(plan, description, path)
        return plan

    def check_base_model(self, fingerprint: str, source: str) -> None:
        """Refuse a model whose weights are not those the plan was learned on.

        Args:
            fingerprint: The model's, in the form of the plan's own.
            source: Where the model lies, as the user wrote it.

        Raises:
            UserError: If the fingerprints differ.
        """
        recorded = self.base_model.fingerprint
        if fingerprint == recorded:
            return
        hint = ""
        if ":" not in recorded:
            hint = (
                " It is of an earlier release, which compared weights as they were loaded: if "
                "these are the right ones, give the type that its run loaded them in (--dtype)."
            )
        raise UserError(
            f"plan: it was learned on {self.base_model.source!r} (fingerprint "
            f"{_shortened(recorded)}), but the model given is {source!r} "
            f"({_shortened(fingerprint)}). A plan fits the weights it was learned on only.{hint}"
        )


def _shortened(fingerprint: str) -> str:
    return fingerprint.rpartition(":")[2][:12]


def find_plan(path: Path) -> Path:
    """The folder of a plan, given it or the folder of the run that made it.

    Raises:
        UserError: If there is no plan in either.
    """
    for folder in (path, path / "plans" / "best"):
        if (folder / PLAN_FILE).is_file():
            return folder
    raise UserError(f"plan: there is neither {path / PLAN_FILE} nor {path}/plans/best/{PLAN_FILE}.")


class _Budget(Record):
    keep_ratio: Annotated[float, Field(gt=0, le=1)]
    scope: BudgetScope
    protected_layers: list[int]
    layer_keep_ratios: Annotated[
        list[Share], Field(min_length=2, max_length=2, default_factory=lambda: [0.0, 1.0])
    ]
    round_to: PositiveCount = 1
    tensor_parallel: PositiveCount = 1


class _Validation(Record):
    text: str
    sequence_length: Annotated[PositiveCount, Field(ge=2)]
    perplexity: Annotated[float, Field(gt=0)] | None
    bos_per_block: bool = False


class _Model(Record):
    source: Name
    model_type: Name
    fingerprint: Name
    parameters: PositiveCount


class _Tensors(Record):
    file: Name
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Group(Record):
    layer: Count
    kind: UnitKind
    start: Count
    count: PositiveCount
    unit_cost: PositiveCount
    remnant_cost: Count


class _Space(Record):
    groups: list[_Group]
    total_parameters: PositiveCount


class _Description(Record):
    """What `plan.json` holds, but for the fields of `validation`, which may be empty."""

    format: str
    version: int
    written_by: str
    base_model: _Model
    budget: _Budget
    step: Count
    validation: dict[str, Any]
    kept_units: dict[UnitKind, Count]
    kept_parameters: Count
    tensors: _Tensors
    mask_space: _Space


def _read_record(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise UserError(f"plan: there is no {PLAN_FILE} in {path.parent}.")
    record = read_object(path, "plan")
    if record.get("format") != FORMAT:
        raise UserError(f"plan: {path} is not a pruning plan.")
    if record.get("version") != VERSION:
        raise UserError(
            f"plan: {path} has version {record.get('version')!r}; this program reads "
            f"version {VERSION}. Use the release that wrote it "
            f"({record.get('written_by')!r}) or make the plan again."
        )
    return record


def _read_tensors(folder: Path, entry: _Tensors) -> dict[str, Tensor]:
    path = folder / entry.file
    if path.parent != folder:
        raise UserError(f"plan: {entry.file!r} would lie outside of {folder}.")
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as error:  # a name may hold a NUL
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"plan: {path} cannot be read: {reason}.") from error
    if hashlib.sha256(content).hexdigest() != entry.sha256:
        raise UserError(f"plan: {path} is damaged: its checksum is not the one in {PLAN_FILE}.")
    try:
        return safetensors.torch.load(content)
    except SafetensorError as error:
        raise UserError(f"plan: {path} is damaged: {error}.") from error


def _check_tensors(plan: PruningPlan, folder: Path) -> None:
    shape = (plan.space.num_units,)
    for tensor, dtype in ((plan.keep_probabilities_U, torch.float64), (plan.mask_U, torch.bool)):
        if tensor.shape != shape or tensor.dtype != dtype:
            raise UserError(
                f"plan: {folder} is damaged: a tensor is {tuple(tensor.shape)} of {tensor.dtype}, "
                f"its units need {shape} of {dtype}."
            )
    # "not all inside", so that NaN is outside.
    s_U = plan.keep_probabilities_U
    if not bool(((s_U >= 0) & (s_U <= 1)).all()):
        raise UserError(f"plan: {folder} is damaged: a keep probability is not in [0, 1].")


def _check_agreement(plan: PruningPlan, description: _Description, path: Path) -> None:
    """Refuse fields that contradict one another; the units and the mask decide."""
    space, last = plan.space, plan.space.num_layers - 1
    layers = {group.layer for group in space.groups}
    if len(layers) <= last:
        sentence = f"mask_space.groups must have every layer from 0 to {last}, given {len(layers)}"
        raise UserError(damaged(path, "plan", sentence))
    for layer in description.budget.protected_layers:
        if not -last - 1 <= layer <= last:
            sentence = f"budget.protected_layers must lie in [{-last - 1}, {last}], given {layer}"
            raise UserError(damaged(path, "plan", sentence))
    for name, given, right in (
        ("base_model.parameters", plan.base_model.parameters, space.total_parameters),
        ("kept_parameters", description.kept_parameters, plan.kept_parameters),
        ("kept_units", description.kept_units, space.kept_by_kind(plan.mask_U)),
    ):
        if given != right:
            sentence = f"{name} must be {right} by its units and mask, given {given}"
            raise UserError(damaged(path, "plan", sentence))
