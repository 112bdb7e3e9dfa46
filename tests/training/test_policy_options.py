"""Whole runs with each policy and update: they resume, follow the stages, start at the metric."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback

import callbacks
from pgprune_lightning.errors import UserError
from pgprune_lightning.initialization import Initialization
from pgprune_lightning.policy import Adam, FreeLogits, NaturalGradient, PGPEPolicy, ProjectedSGD
from pgprune_lightning.policy import StructuredLogits as Structured
from pgprune_lightning.training import PolicyGradientPruning
from pgprune_lightning.training.budget_schedule import Progressive
from tests.policy_points import is_feasible
from tests.tiny_commands import TinyCommand
from tests.tiny_runs import TinyRun


def momentum_sgd(*arguments: Any) -> ProjectedSGD:
    return ProjectedSGD(*arguments, momentum=0.9)


COMBINATIONS = {
    "probabilities_momentum": {"optimizer": momentum_sgd},
    "probabilities_adam": {"optimizer": Adam, "lr_rule": "rms_change", "lr_schedule": "cosine"},
    "logits_natural": {"policy": FreeLogits(final_sharpness=3.0), "optimizer": NaturalGradient},
    "structured_adam": {
        "policy": Structured(features=["flap"], free_kinds=["kv_group"], free_after=2),
        "optimizer": Adam,
        "lr": 0.1,
    },
    "explored_pairs": {
        "policy": PGPEPolicy(features=["flap"]),
        "num_mask_samples": 2,
        "mask_granularity": "sequence",
        "lr": 2.0,
    },
}


def state(module: PolicyGradientPruning) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.policy.state_dict().items()}


class Stop(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        trainer.should_stop = trainer.global_step == self.step


@pytest.mark.parametrize("name", COMBINATIONS)
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tiny_run: TinyRun, name: str) -> None:
    def fit(stop: int, ckpt_path: Path | None = None) -> tuple[Any, PolicyGradientPruning]:
        options: dict[str, Any] = COMBINATIONS[name]
        module = tiny_run.module(**options)
        trainer = tiny_run.trainer([Stop(stop)], max_steps=5, num_sanity_val_steps=0)
        trainer.fit(module, datamodule=tiny_run.datamodule(), ckpt_path=ckpt_path)
        return trainer, module

    _, whole = fit(5)
    trainer, first = fit(3)
    trainer.save_checkpoint(tiny_run.folder / "stopped.ckpt")
    _, resumed = fit(5, tiny_run.folder / "stopped.ckpt")
    ended, stopped = state(whole), state(first)
    assert not torch.equal(ended["keep_probabilities"], stopped["keep_probabilities"])
    assert is_feasible(whole.feasible_set, ended["keep_probabilities"])
    for key, tensor in state(resumed).items():
        assert torch.equal(tensor, ended[key]), key


@pytest.mark.parametrize("policy", [FreeLogits(), Structured()])
def test_a_falling_keep_ratio_is_followed(tiny_run: TinyRun, policy: Any) -> None:
    class Recorder(Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, *_: Any) -> None:
            s_U = module.policy.keep_probabilities.detach()
            assert is_feasible(module.feasible_set, s_U)
            kept.append(round(module.feasible_set.expected_keep_ratio(s_U), 6))

    kept: list[float] = []
    stages = Progressive(start=0.9, step=0.15, steps_per_stage=1)
    module = tiny_run.module(policy=policy, progressive=stages, scope="units", lr=0.1)
    trainer = tiny_run.trainer([Recorder()], max_steps=3, val_check_interval=3)
    trainer.fit(module, datamodule=tiny_run.datamodule())
    assert kept == pytest.approx([70 / 78, 58 / 78, 46 / 78], abs=1e-6)


def test_structured_logits_start_at_the_initial_policy_and_measure_features(
    tiny_run: TinyRun,
) -> None:
    """The same metric once more as a feature is the first; bounds of 0 and 1 bend nothing."""
    options = {"probability_bounds": (0.0, 1.0), "fill": True}
    start = Initialization(num_blocks=8, slope=2.0)
    modules = [
        tiny_run.module(policy=policy, initialization=start, **options)
        for policy in (Structured(features=["wanda_sp", "flap"]), FreeLogits())
    ]
    for module in modules:
        tiny_run.trainer(max_steps=0).fit(module, datamodule=tiny_run.datamodule())
    structured, free = (state(module) for module in modules)
    torch.testing.assert_close(
        structured["keep_probabilities"], free["keep_probabilities"], rtol=0, atol=1e-9
    )
    first, again, other = structured["features_FU"]
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(modules[0].current_mask(), modules[1].current_mask())


def test_a_plan_starts_logits_where_its_run_ended(tiny_run: TinyRun) -> None:
    run_dir = tiny_run.folder / "run"
    observers = [callbacks.PerplexityValidation(), callbacks.MaskCheckpoint(str(run_dir))]
    ended = tiny_run.module(policy=FreeLogits(), lr=0.2)
    tiny_run.trainer(observers).fit(ended, datamodule=tiny_run.datamodule())
    start = Initialization(plan=str(run_dir / "plans" / "last"))
    for policy in (FreeLogits(), Structured()):
        continued = tiny_run.module(policy=policy, initialization=start)
        tiny_run.trainer(max_steps=0).fit(continued, datamodule=tiny_run.datamodule())
        torch.testing.assert_close(
            continued.policy.keep_probabilities, ended.policy.keep_probabilities, atol=1e-9, rtol=0
        )
        assert torch.equal(continued.current_mask(), ended.current_mask())


def test_a_checkpoint_of_another_policy_is_refused_before_the_weights_are_loaded(
    tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = tiny_run.trainer(max_steps=1, num_sanity_val_steps=0)
    trainer.fit(tiny_run.module(policy=FreeLogits()), datamodule=tiny_run.datamodule())
    path = tiny_run.folder / "last.ckpt"
    trainer.save_checkpoint(path)
    monkeypatch.setattr("pgprune_lightning.training.masked_model.open_frozen_model", None)
    again, module = tiny_run.trainer(), tiny_run.module(policy=Structured())
    again.ckpt_path = path  # as the command line does: given to fit() it comes too late
    with pytest.raises(UserError, match=r"another policy than this model\.policy, Structured"):
        again.fit(module, datamodule=tiny_run.datamodule())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": Structured(features=["wanda"])}, "no metric 'wanda'; give some of wanda_sp"),
        ({"policy": Structured(features=["layerwise_ppl"])}, "layerwise_ppl measures units"),
        ({"policy": Structured(free_kinds=["layer"])}, "free_kinds: layer"),
        ({"policy": FreeLogits(), "layer_keep_ratios": (0.3, 0.9)}, "layer_keep_ratios"),
        ({"policy": FreeLogits(final_sharpness=2.0)}, "trainer.max_steps"),
        ({"optimizer": lambda *given: ProjectedSGD(*given, momentum=1.0)}, "momentum"),
    ],
)
def test_what_cannot_work_is_refused_before_the_weights_are_loaded(
    tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr("pgprune_lightning.training.masked_model.open_frozen_model", None)
    with pytest.raises(UserError, match=message):
        tiny_run.trainer(max_steps=-1).fit(
            tiny_run.module(**options), datamodule=tiny_run.datamodule()
        )


def test_policy_and_update_are_named_on_the_command_line(tiny_command: TinyCommand) -> None:
    named = (
        "--model.policy=pgprune_lightning.policy.StructuredLogits",
        "--model.policy.init_args.features=[flap]",
        "--model.update.optimizer=pgprune_lightning.policy.Adam",
        "--model.update.optimizer.init_args.mean_decay=0.5",
        "--model.update.lr_rule=rms_change",
    )
    run = tiny_command("fit", *named)
    assert run.status == 0, run.err
    config = yaml.safe_load((tiny_command.run_dir / "config.yaml").read_text())["model"]
    assert config["policy"]["class_path"] == "pgprune_lightning.policy.StructuredLogits"
    assert config["policy"]["init_args"]["features"] == ["flap"]
    assert config["update"]["optimizer"] == {
        "class_path": "pgprune_lightning.policy.Adam",
        "init_args": {"mean_decay": 0.5, "square_decay": 0.999},
    }
    last = str(tiny_command.run_dir / "checkpoints" / "last.ckpt")
    assert tiny_command("validate", *named, "--ckpt_path", last).status == 0
