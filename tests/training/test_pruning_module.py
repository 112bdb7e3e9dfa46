import copy
import math
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

import callbacks
from pgprune_lightning.errors import UserError, warn_once
from pgprune_lightning.initialization import Initialization
from pgprune_lightning.masking.frozen_model import load_frozen_model
from pgprune_lightning.masking.model_source import resolve_model_source
from pgprune_lightning.plan import PruningPlan
from pgprune_lightning.policy import (
    Adam,
    Antithetic,
    DenseLossControlVariate,
    FreeLogits,
    LeaveOneOut,
    LinearSurrogate,
    MaskPolicy,
    MovingAverageBaseline,
    NaturalGradient,
    PGPEPolicy,
    PlainReinforce,
    ProjectedSGD,
    StructuredLogits,
    mask_generator,
    sample_masks,
)
from pgprune_lightning.training import PolicyGradientPruning
from pgprune_lightning.training.mask_losses import MaskLosses
from tests.tiny_models import make_tiny_model
from tests.tiny_runs import TinyRun


def probabilities(module: PolicyGradientPruning) -> torch.Tensor:
    return module.policy.keep_probabilities.detach().clone()


def observers(run_dir: Path) -> list[Any]:
    return [
        callbacks.PerplexityValidation(),
        callbacks.MaskCheckpoint(str(run_dir)),
        callbacks.BaselineTracker(),
        callbacks.SparsityTracker(),
        callbacks.OutcomeReport(str(run_dir), sample_tokens=4),
    ]


def test_steps_are_those_of_algorithm_1(tiny_run: TinyRun) -> None:
    """Two steps by hand, from the same parts: eqs. 5 to 8, A1 and A2."""
    trained = tiny_run.fit(max_steps=2)

    by_hand = tiny_run.module()
    datamodule = tiny_run.datamodule()
    tiny_run.trainer(max_steps=0, num_sanity_val_steps=0).fit(by_hand, datamodule=datamodule)
    s_U = probabilities(by_hand)
    assert not torch.equal(s_U, probabilities(trained))
    baseline = None
    for step, batch_BT in zip(range(2), datamodule.train_dataloader(), strict=False):
        generator = mask_generator(by_hand.seed, step, rank=0)
        masks_SU = torch.rand(2, len(s_U), dtype=torch.float64, generator=generator) < s_U
        losses = [
            by_hand.masked_model.token_nll(batch_BT, mask_U).mean().double() for mask_U in masks_SU
        ]
        mean_loss = (losses[0] + losses[1]) / 2
        baseline = mean_loss if baseline is None else baseline
        gradient_U = torch.zeros_like(s_U)
        for loss, mask_U in zip(losses, masks_SU.double(), strict=True):
            gradient_U += (loss - baseline) * (mask_U - s_U) / (s_U * (1 - s_U)) / 2
        s_U = by_hand.feasible_set.project(s_U - by_hand.update.lr * gradient_U)
        baseline = baseline * 4 / 5 + mean_loss / 5
    torch.testing.assert_close(s_U, probabilities(trained), rtol=0, atol=1e-12)
    torch.testing.assert_close(baseline, trained.estimator.baseline, rtol=0, atol=1e-12)


def test_the_model_is_only_read(tiny_run: TinyRun, parameter_bytes: Callable[[Any], bytes]) -> None:
    trained = tiny_run.fit()
    source = resolve_model_source(str(tiny_run.model))
    untouched = load_frozen_model(source, dtype=torch.float32, device=torch.device("cpu"))
    model = trained.masked_model.model
    assert parameter_bytes(model) == parameter_bytes(untouched)
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_a_checkpoint_holds_the_policy_and_nothing_of_the_model(tiny_run: TinyRun) -> None:
    module = tiny_run.module()
    trainer = tiny_run.trainer()
    trainer.fit(module, datamodule=tiny_run.datamodule())
    path = tiny_run.folder / "last.ckpt"
    trainer.save_checkpoint(path)
    state = torch.load(path, weights_only=True)["state_dict"]
    assert set(state) == {
        "policy.keep_probabilities",
        "estimator.baseline",
        "estimator.num_updates",
    }


def test_callbacks_change_no_trained_number(tiny_run: TinyRun) -> None:
    observed = tiny_run.fit(observers(tiny_run.folder / "run"))
    alone = tiny_run.fit(val_check_interval=3)
    assert torch.equal(probabilities(observed), probabilities(alone))
    assert torch.equal(observed.estimator.baseline, alone.estimator.baseline)


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tiny_run: TinyRun) -> None:
    whole = tiny_run.fit(max_steps=6)
    first = tiny_run.trainer(max_steps=3)
    first.fit(tiny_run.module(), datamodule=tiny_run.datamodule())
    first.save_checkpoint(tiny_run.folder / "stopped.ckpt")
    resumed = tiny_run.module()
    tiny_run.trainer(max_steps=6).fit(
        resumed, datamodule=tiny_run.datamodule(), ckpt_path=tiny_run.folder / "stopped.ckpt"
    )
    assert torch.equal(probabilities(whole), probabilities(resumed))
    assert torch.equal(whole.estimator.baseline, resumed.estimator.baseline)


def test_a_checkpoint_of_another_model_is_refused(tiny_run: TinyRun, tmp_path: Path) -> None:
    trainer = tiny_run.trainer()
    trainer.fit(tiny_run.module(), datamodule=tiny_run.datamodule())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    other = shutil.copytree(tiny_run.model, tmp_path / "other")
    make_tiny_model("llama_gqa", seed=2).save_pretrained(other)
    with pytest.raises(UserError, match="the policy was learned on"):
        tiny_run.trainer().fit(
            tiny_run.module(base_model=str(other)),
            datamodule=tiny_run.datamodule(),
            ckpt_path=tmp_path / "last.ckpt",
        )


@pytest.mark.usefixtures("no_weights_loaded")
def test_blocks_beyond_learned_positions_are_refused(tiny_run: TinyRun, tmp_path: Path) -> None:
    model = tmp_path / "opt"
    shutil.copytree(tiny_run.model, model, ignore=shutil.ignore_patterns("*.safetensors"))
    make_tiny_model("opt").config.save_pretrained(model)
    data = tiny_run.datamodule(evaluation_block_length=129, tokenizer=str(model))
    with pytest.raises(
        UserError, match=r"data\.evaluation_block_length is 129 .* learned positions"
    ):
        tiny_run.trainer().fit(tiny_run.module(base_model=str(model)), datamodule=data)


@pytest.mark.usefixtures("no_weights_loaded")
def test_blocks_beyond_rotary_positions_are_warned_of(tiny_run: TinyRun) -> None:
    warn_once.cache_clear()
    module = tiny_run.module()
    module.setup("fit")
    with pytest.warns(UserWarning, match=r"data\.block_length is 129 tokens, but the model .* 128"):
        module.check_lengths(tiny_run.datamodule(block_length=129))


def test_the_divergence_from_the_dense_model_is_a_loss(tiny_run: TinyRun) -> None:
    """One dense forward a step, whatever the number of masks; the losses are the divergences."""
    steps: list[dict[str, Any]] = []
    forwards: list[None] = []

    class Recorder(Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, *_: Any) -> None:
            if not steps:
                backbone = module.masked_model.model.model
                backbone.register_forward_hook(lambda *_: forwards.append(None))

        def on_train_batch_end(
            self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            steps.append({"losses": outputs["losses"], "batch": batch})

    module = tiny_run.module(loss="kl_to_dense", num_mask_samples=3)
    trainer = tiny_run.trainer([Recorder()], max_steps=2, val_check_interval=2)
    start = tiny_run.module()
    tiny_run.trainer(max_steps=0).fit(start, datamodule=tiny_run.datamodule())
    trainer.fit(module, datamodule=tiny_run.datamodule(), ckpt_path=None)
    validations = len(trainer.val_dataloaders)
    assert len(forwards) == 2 * (1 + 3) + validations

    masks_SU = sample_masks(probabilities(start), 3, mask_generator(start.seed, 0, rank=0))
    batch_BT, masked_model = steps[0]["batch"], module.masked_model
    dense_BTV = masked_model.model(batch_BT).logits[:, :-1].log_softmax(-1)
    for mask_U, loss in zip(masks_SU, steps[0]["losses"], strict=True):
        with masked_model.masked(mask_U) as model, torch.no_grad():
            masked_BTV = model(batch_BT).logits[:, :-1].log_softmax(-1)
        expected = (dense_BTV.exp() * (dense_BTV - masked_BTV)).sum(-1).mean()
        assert float(loss) == pytest.approx(float(expected), abs=1e-5)
    assert not torch.equal(probabilities(module), probabilities(tiny_run.fit(max_steps=2)))


def test_a_cosine_schedule_ends_at_zero_and_resumes(tiny_run: TinyRun) -> None:
    def fit(last_step: int, ckpt_path: Path | None = None) -> tuple[Any, list[float]]:
        class Recorder(Callback):
            def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
                rates.append(trainer.optimizers[0].param_groups[0]["lr"])
                trainer.should_stop = trainer.global_step == last_step

        rates: list[float] = []
        module = tiny_run.module(lr_schedule="cosine", lr=0.04)
        trainer = tiny_run.trainer([Recorder()], max_steps=8)
        trainer.fit(module, datamodule=tiny_run.datamodule(), ckpt_path=ckpt_path)
        return (module, trainer), rates

    (whole, _), rates = fit(8)
    expected = [0.04 * (1 + math.cos(math.pi * step / 8)) / 2 for step in range(1, 9)]
    assert rates == pytest.approx(expected)
    stopped = tiny_run.folder / "stopped.ckpt"
    (_, trainer), _ = fit(3)
    trainer.save_checkpoint(stopped)
    (resumed, _), later_rates = fit(8, stopped)
    assert later_rates == pytest.approx(expected[3:])
    assert torch.equal(probabilities(whole), probabilities(resumed))


def test_a_factor_slows_the_units_of_its_kind_alone(tiny_run: TinyRun) -> None:
    def moved(**options: Any) -> torch.Tensor:
        start, end = tiny_run.module(**options), tiny_run.module(**options)
        tiny_run.trainer(max_steps=0).fit(start, datamodule=tiny_run.datamodule())
        # The baseline starts at the first losses' mean, so even the first step has a gradient.
        tiny_run.trainer(max_steps=1).fit(end, datamodule=tiny_run.datamodule())
        return probabilities(end) - probabilities(start)

    plain_U, factored_U = moved(lr=1e-4), moved(lr=1e-4, lr_factors={"mlp_channel": 0.25})
    space = tiny_run.fit(max_steps=0).space
    heads, channels = space.units_of("kv_group"), space.units_of("mlp_channel")
    assert plain_U[channels].abs().sum() > 0
    torch.testing.assert_close(factored_U[heads], plain_U[heads])
    torch.testing.assert_close(factored_U[channels], plain_U[channels] / 4)


WITH_MEMORY: dict[str, dict[str, Any]] = {
    "moving average": {"estimator": MovingAverageBaseline()},
    "leave one out": {"estimator": LeaveOneOut()},
    "plain": {"estimator": PlainReinforce()},
    "antithetic": {"estimator": Antithetic()},
    "dense loss": {"estimator": DenseLossControlVariate(MovingAverageBaseline())},
    "linear": {"estimator": LinearSurrogate(LeaveOneOut())},
    "momentum": {"optimizer": partial(ProjectedSGD, momentum=0.9), "layer_keep_ratios": (0.3, 0.9)},
    "by change": {"optimizer": NaturalGradient, "lr_rule": "rms_change"},
    "logits": {"policy": FreeLogits(final_sharpness=3.0), "scope": "parameters"},
    "structured": {"policy": StructuredLogits(free_after=1), "optimizer": Adam},
    "explored": {"policy": PGPEPolicy(), "scope": "parameters", "mask_granularity": "sequence"},
    "explored blocks": {"policy": PGPEPolicy(), "round_to": 4, "optimizer": Adam},
}


def _break(patch: pytest.MonkeyPatch, policy: MaskPolicy, part: str, value: float) -> None:
    """Let a part of every step from now on fail, after it has done its work."""
    if part == "loss":
        for name in ("losses_of_masks", "losses_of_sequences"):
            read = getattr(MaskLosses, name)

            def losses(*arguments: Any, read: Any = read) -> torch.Tensor:
                losses_S: torch.Tensor = read(*arguments)
                losses_S[1] = value
                return losses_S

            patch.setattr(MaskLosses, name, losses)
    elif part == "gradient":
        mean = PolicyGradientPruning._mean_over_ranks
        patch.setattr(
            PolicyGradientPruning, "_mean_over_ranks", lambda *arguments: mean(*arguments) * value
        )
    else:
        project = policy.project

        def broken(*arguments: Any) -> None:
            project(*arguments)
            raise RuntimeError("in the midst of a step")

        patch.setattr(policy, "project", broken)


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("loss", math.nan, "mask sample 1 in step 2 is nan"),
        ("loss", math.inf, "mask sample 1 in step 2 is inf"),
        ("gradient", math.nan, "gradient of the keep probabilities is not finite"),
        ("projection", 0.0, "in the midst of a step"),
    ],
)
@pytest.mark.parametrize("name", WITH_MEMORY)
def test_a_refused_step_leaves_everything_as_it_was(
    tiny_run: TinyRun, name: str, part: str, value: float, message: str
) -> None:
    states: list[Any] = []

    class BreakTheThird(Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, *_: Any) -> None:
            states.append(copy.deepcopy((module.state_dict(), trainer.optimizers[0].state_dict())))
            if trainer.global_step == 2:
                _break(patch, module.policy, part, value)

    module = tiny_run.module(**copy.deepcopy(WITH_MEMORY[name]))
    trainer = tiny_run.trainer([BreakTheThird()], val_check_interval=4, num_sanity_val_steps=0)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Exception, match=message):
        trainer.fit(module, datamodule=tiny_run.datamodule())
    _, before_second, before_third = states
    after = (module.state_dict(), trainer.optimizers[0].state_dict())
    torch.testing.assert_close(after, before_third, rtol=0, atol=0)
    key = "policy.keep_probabilities"
    assert not torch.equal(before_second[0][key], before_third[0][key])
    assert module.global_step == 2


@pytest.mark.slow
def test_training_finds_a_better_mask_of_a_trained_model(
    tiny_run: TinyRun, pgprune_data: Path
) -> None:
    """A really trained Llama of 260k parameters on the stories it was trained to write."""
    from pgprune_lightning.data.text_source import TextSource

    stories = str(pgprune_data / "tinystories" / "stories.txt")
    model = str(pgprune_data / "stories260K")

    def part(start: float, end: float) -> TextSource:
        return TextSource(stories, document_separator="<|endoftext|>", part=(start, end))

    module = tiny_run.module(
        base_model=model,
        keep_ratio=0.5,
        lr=0.02,
        lr_factors={"mlp_channel": 0.25},
        num_mask_samples=4,
        fill=True,
        initialization=Initialization(num_blocks=64),
    )
    datamodule = tiny_run.datamodule(
        tokenizer=model,
        train=part(0, 0.7),
        validation=part(0.7, 0.85),
        test=[part(0.85, 1)],
        block_length=64,
        evaluation_block_length=128,
        batch_size=8,
    )
    run_dir = tiny_run.folder / "run"
    trainer = tiny_run.trainer(observers(run_dir), max_steps=120, val_check_interval=40)
    trainer.fit(module, datamodule=datamodule)
    perplexity = {
        name: PruningPlan.load(run_dir / "plans" / name).validation["perplexity"]
        for name in ("initial", "best")
    }
    assert perplexity["best"] < 0.8 * perplexity["initial"], perplexity
