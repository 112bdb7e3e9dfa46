"""Whole fits on the simulated accelerator, each with other parts of the program; every family.

`python -m tests.accelerator_runs FOLDER` prints a line of JSON: what failed, by case.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor, nn
from transformers import PreTrainedModel

from callbacks import (
    BaselineTracker,
    MaskCheckpoint,
    OutcomeReport,
    PerplexityValidation,
    RankAgreement,
    RunCheckpoint,
    SparsityTracker,
)
from pgprune_lightning.initialization import Initialization
from pgprune_lightning.masking.batched import BatchedExecution
from pgprune_lightning.masking.compact import CompactExecution
from pgprune_lightning.masking.dense_masked import DenseMaskedExecution
from pgprune_lightning.masking.gates import gate_gradient, gated
from pgprune_lightning.masking.model_units import unit_layout_of
from pgprune_lightning.masking.token_loss import token_nll
from pgprune_lightning.policy import (
    Adam,
    Antithetic,
    DenseLossControlVariate,
    FreeLogits,
    LeaveOneOut,
    LinearSurrogate,
    NaturalGradient,
    PGPEPolicy,
    StructuredLogits,
)
from pgprune_lightning.slicing import cut_model
from pgprune_lightning.training import PolicyGradientPruning
from pgprune_lightning.training.budget_schedule import Progressive
from research.backpropagation import BackpropagatedPruning, StraightThrough
from tests.simulated_accelerator import SimulatedAccelerator, simulated_accelerator
from tests.tiny_models import CONFIGS, make_tiny_model, random_tokens
from tests.tiny_runs import TinyRun, grouped, write_tiny_model, write_tiny_texts

CASES: dict[str, dict[str, Any]] = {
    "paper": {},
    "fast": {
        "mask_granularity": "sequence",
        "policy": PGPEPolicy(),
        "scope": "parameters",
        "initialization": Initialization(
            metric="fisher", normalization="per_parameter", num_blocks=8, refine_steps=3
        ),
    },
    "batched": {
        "mode": "batched",
        "lr_rule": "rms_change",
        "layer_keep_ratios": (0.2, 1.0),
        "round_to": 2,
    },
    "dense_masked": {
        "mode": "dense_masked",
        "loss": "kl_to_dense",
        "optimizer": NaturalGradient,
    },
    "structured": {
        "policy": StructuredLogits(),
        "optimizer": Adam,
        "mask_granularity": "sequence",
        "estimator": LinearSurrogate(DenseLossControlVariate(LeaveOneOut())),
    },
    "antithetic": {
        "policy": FreeLogits(),
        "estimator": Antithetic(),
        "mode": "auto",
    },
    "layers": {
        "kinds": ["layer"],
        "keep_ratio": 0.5,
        "initialization": Initialization(metric="block_influence", num_blocks=8),
    },
    "sub-layers": {
        "kinds": ["attention", "mlp"],
        "keep_ratio": 0.5,
        "initialization": Initialization(metric="bonsai", num_blocks=8),
    },
    "progressive": {
        "progressive": Progressive(start=0.8, step=0.1, steps_per_stage=1),
        "initialization": Initialization(metric="random"),
    },
}
"""Options of `PolicyGradientPruning`; the rest is as in `TinyRun`."""


class Whereabouts(Callback):
    """Notes where the policy and the model lie while a run learns."""

    def __init__(self) -> None:
        self.devices: set[torch.device] = set()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        del trainer
        tensors = (*pl_module.policy.parameters(), pl_module.masked_model.model.lm_head.weight)
        self.devices |= {tensor.device for tensor in tensors}


def fit(
    run: TinyRun, module: PolicyGradientPruning, device: torch.device, resume: str | None = None
) -> None:
    whereabouts, folder = Whereabouts(), str(run.folder)
    trainer = run.trainer(
        [
            PerplexityValidation(),
            BaselineTracker(),
            SparsityTracker(),
            RankAgreement(every_n_steps=2),
            MaskCheckpoint(folder),
            RunCheckpoint(folder, every_n_train_steps=2),
            OutcomeReport(folder, sample_tokens=3),
            whereabouts,
        ],
        accelerator=SimulatedAccelerator(),
        strategy=SingleDeviceStrategy(device=device),
        max_steps=4 if resume is None else 6,
        enable_checkpointing=True,
    )
    trainer.fit(module, datamodule=run.datamodule(), ckpt_path=resume)
    assert whereabouts.devices == {device}, whereabouts.devices


def fit_with(options: dict[str, Any], run: TinyRun, device: torch.device) -> None:
    fit(run, run.module(**options), device)


def resumed(run: TinyRun, device: torch.device) -> None:
    fit(run, run.module(**CASES["fast"]), device)
    checkpoint = str(run.folder / "checkpoints" / "last.ckpt")
    fit(run, run.module(**CASES["fast"]), device, resume=checkpoint)


def back_propagated(run: TinyRun, device: torch.device) -> None:
    module = BackpropagatedPruning(
        str(run.model),
        keep_ratio=0.6,
        gates=StraightThrough(),
        initialization=Initialization(num_blocks=8),
        **grouped({"num_mask_samples": 1, "dtype": "float32"}),
    )
    fit(run, module, device)


def losses_of(model: PreTrainedModel, tokens_BT: Tensor, mask_U: Tensor) -> dict[str, Tensor]:
    """Token losses under a mask by every execution, and of the cut model; gates besides."""
    space = unit_layout_of(model, ["kv_group", "mlp_channel"])
    batched = BatchedExecution(model, space, capture=False)
    gates_BU = mask_U[None].float().requires_grad_()
    with torch.enable_grad(), gated(model, space, gates_BU) as under_gates:
        gated_losses_B, _ = gate_gradient(under_gates, tokens_BT, gates_BU)
    found = {
        "batched": batched.token_losses(tokens_BT, mask_U.expand(len(tokens_BT), -1)),
        "cut": token_nll(cut_model(model, space, mask_U), tokens_BT),
    }
    for execution in (DenseMaskedExecution(model, space), CompactExecution(model, space)):
        with execution.masked(mask_U) as masked:
            found[type(execution).__name__] = token_nll(masked, tokens_BT)
    means = {name: losses_BT.mean(dim=1) for name, losses_BT in found.items()}
    return means | {"gated": gated_losses_B}


def family(name: str, run: TinyRun, device: torch.device) -> None:
    """Masked, cut and under gates a model has the losses that it has on the host."""
    del run
    tokens_BT = random_tokens(rows=2)
    model = make_tiny_model(name)
    num_units = unit_layout_of(model, ["kv_group", "mlp_channel"]).num_units
    mask_U = torch.rand(num_units, generator=torch.Generator().manual_seed(0)) < 0.6
    on_host = losses_of(model, tokens_BT, mask_U)
    nn.Module.to(model, device)
    for way, losses_B in losses_of(model, tokens_BT.to(device), mask_U.to(device)).items():
        assert losses_B.device == device, way
        torch.testing.assert_close(losses_B.cpu(), on_host[way], rtol=1e-4, atol=1e-4)


def main(folder: Path) -> None:
    model, texts = write_tiny_model(folder / "model"), write_tiny_texts(folder / "texts")
    runs: dict[str, Callable[[TinyRun, torch.device], None]] = {
        name: partial(fit_with, options) for name, options in CASES.items()
    }
    runs |= {"resumed": resumed, "back-propagated": back_propagated}
    runs |= {name: partial(family, name) for name in CONFIGS}
    failed: dict[str, str | None] = {}
    with simulated_accelerator() as device:
        for name, go in runs.items():
            run = TinyRun(model, texts, folder / name)
            run.folder.mkdir()
            try:
                go(run, device)
                failed[name] = None
            except Exception:
                failed[name] = traceback.format_exc()
    print(json.dumps(failed))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
