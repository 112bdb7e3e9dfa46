"""The pruning plan: which units of which model stay, with the probabilities behind the choice.

A plan is a folder with `plan.json`, which a person can read, and the safetensors file it names.
The tensors are written first and the JSON replaced last, so that a plan is always whole.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from pgprune_lightning import __version__
from pgprune_lightning.atomic_write import remove_temp_files, write_atomically
from pgprune_lightning.errors import UserError
from pgprune_lightning.policy import MaskSpace

FORMAT = "pgprune-plan"
VERSION = 1
PLAN_FILE = "plan.json"


@dataclass(frozen=True)
class BaseModel:
    """The dense model that a plan belongs to.

    Args:
        source: What it was loaded from, as the user wrote it.
        model_type: `config.model_type`.
        fingerprint: Hash of its weights.
        parameters: How many it has.
    """

    source: str
    model_type: str
    fingerprint: str
    parameters: int


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
    space: MaskSpace
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
        description = _read_description(folder / PLAN_FILE)
        try:
            tensors = _read_tensors(folder, description["tensors"])
            space = MaskSpace.from_dict(description["mask_space"])
            plan = cls(
                base_model=BaseModel(**description["base_model"]),
                space=space,
                keep_probabilities_U=tensors["keep_probabilities"],
                mask_U=tensors["mask"],
                budget=dict(description["budget"]),
                step=int(description["step"]),
                validation=dict(description["validation"]),
            )
        except UserError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"plan: {folder / PLAN_FILE} is damaged: {error!r}.") from error
        _check_tensors(plan, folder)
        return plan

    def check_base_model(self, fingerprint: str, source: str) -> None:
        """Refuse a model whose weights are not those the plan was learned on.

        Raises:
            UserError: If the fingerprints differ.
        """
        if fingerprint != self.base_model.fingerprint:
            raise UserError(
                f"plan: it was learned on {self.base_model.source!r} "
                f"(fingerprint {self.base_model.fingerprint[:12]}), but the model given is "
                f"{source!r} ({fingerprint[:12]}). A plan fits the weights it was learned on only."
            )


def find_plan(path: Path) -> Path:
    """The folder of a plan, given it or the folder of the run that made it.

    Raises:
        UserError: If there is no plan in either.
    """
    for folder in (path, path / "plans" / "best"):
        if (folder / PLAN_FILE).is_file():
            return folder
    raise UserError(f"plan: there is neither {path / PLAN_FILE} nor {path}/plans/best/{PLAN_FILE}.")


def _read_description(path: Path) -> dict[str, Any]:
    try:
        description = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"plan: there is no {PLAN_FILE} in {path.parent}.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"plan: {path} cannot be read: {error}.") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise UserError(f"plan: {path} is not a pruning plan.")
    if description.get("version") != VERSION:
        raise UserError(
            f"plan: {path} has version {description.get('version')!r}; this program reads "
            f"version {VERSION}. Use the release that wrote it "
            f"({description.get('written_by')!r}) or make the plan again."
        )
    return description


def _read_tensors(folder: Path, entry: dict[str, str]) -> dict[str, Tensor]:
    path = folder / entry["file"]
    if path.parent != folder:
        raise UserError(f"plan: {entry['file']!r} would lie outside of {folder}.")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"plan: {path} cannot be read: {error.strerror}.") from error
    if hashlib.sha256(content).hexdigest() != entry["sha256"]:
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
