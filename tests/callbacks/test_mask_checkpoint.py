from dataclasses import replace
from pathlib import Path

import pytest
import torch

from callbacks import MaskCheckpoint, PerplexityValidation
from pgprune_lightning.atomic_write import TEMPORARY
from pgprune_lightning.errors import UserError
from pgprune_lightning.masking.fingerprint import loaded_fingerprint
from pgprune_lightning.plan import PruningPlan
from tests.tiny_runs import TinyRun


class Scripted(PerplexityValidation):
    """Reports given perplexities instead of measured ones."""

    def __init__(self, *perplexities: float) -> None:
        super().__init__()
        self.left = list(perplexities)

    def on_validation_epoch_end(self, trainer, pl_module) -> None:
        pl_module.log("val/perplexity", torch.tensor(self.left.pop(0)), logger=False)


def plans(run_dir: Path) -> dict[str, PruningPlan]:
    return {
        name: PruningPlan.load(run_dir / "plans" / name) for name in ("initial", "best", "last")
    }


@pytest.mark.parametrize(
    ("perplexities", "best_step"),
    [
        ((9.0, 8.0, 7.0), 4),
        ((9.0, 7.0, 8.0), 2),
        ((7.0, 8.0, 9.0), 0),
        ((7.0, 7.0, 7.0), 0),
        ((float("inf"), float("nan"), 8.0), 4),
        ((8.0, float("nan"), float("inf")), 0),
        ((float("nan"), 8.0, 9.0), 2),
        ((float("nan"), float("nan"), float("nan")), 0),
    ],
)
def test_the_best_plan_is_never_worse_than_the_untrained_one(
    tiny_run: TinyRun, perplexities: tuple[float, ...], best_step: int
) -> None:
    module = tiny_run.fit([Scripted(*perplexities), MaskCheckpoint(str(tiny_run.folder))])
    saved = plans(tiny_run.folder)
    assert [saved[name].step for name in ("initial", "best", "last")] == [0, best_step, 4]
    assert torch.equal(saved["last"].mask_U, module.current_mask())
    assert torch.equal(
        saved["last"].keep_probabilities_U, module.policy.keep_probabilities.detach()
    )
    assert saved["last"].base_model.fingerprint == module.masked_model.base_model.fingerprint
    assert saved["last"].validation["text"] == "validation text"
    assert saved["last"].validation["sequence_length"] == 16


def test_a_resumed_run_remembers_the_best(tiny_run: TinyRun) -> None:
    def callbacks(*perplexities: float) -> list[PerplexityValidation | MaskCheckpoint]:
        return [Scripted(*perplexities), MaskCheckpoint(str(tiny_run.folder))]

    first = tiny_run.trainer(callbacks(9.0, 5.0, 6.0))
    first.fit(tiny_run.module(), datamodule=tiny_run.datamodule())
    first.save_checkpoint(tiny_run.folder / "stopped.ckpt")
    resumed = tiny_run.trainer(callbacks(5.5, 5.2), max_steps=8)
    resumed.fit(
        tiny_run.module(),
        datamodule=tiny_run.datamodule(),
        ckpt_path=tiny_run.folder / "stopped.ckpt",
    )
    saved = plans(tiny_run.folder)
    assert [saved[name].step for name in ("initial", "best", "last")] == [0, 2, 8]


def test_a_run_whose_untrained_mask_is_not_measured_is_refused(tiny_run: TinyRun) -> None:
    with pytest.raises(UserError, match="num_sanity_val_steps"):
        tiny_run.fit(
            [PerplexityValidation(), MaskCheckpoint(str(tiny_run.folder))], num_sanity_val_steps=0
        )


def test_a_run_of_an_earlier_release_goes_on(tiny_run: TinyRun) -> None:
    """Its checkpoint and its plans know the model by its loaded values."""
    checkpoint = tiny_run.folder / "stopped.ckpt"
    first = tiny_run.trainer(
        [Scripted(9.0, 6.0, 5.0), MaskCheckpoint(str(tiny_run.folder))], max_steps=4
    )
    module = tiny_run.module()
    first.fit(module, datamodule=tiny_run.datamodule())
    first.save_checkpoint(checkpoint)
    known_by = loaded_fingerprint(module.masked_model.model)
    content = torch.load(checkpoint)
    content["base_model"]["fingerprint"] = known_by
    # The best plan is of later than the checkpoint, which was written before a kill.
    content["callbacks"] = {
        name: state | ({"best_perplexity": 6.0} if "MaskCheckpoint" in name else {})
        for name, state in content["callbacks"].items()
    }
    torch.save(content, checkpoint)
    best = PruningPlan.load(tiny_run.folder / "plans" / "best")
    old = replace(best.base_model, fingerprint=known_by)
    replace(best, base_model=old).save(tiny_run.folder / "plans" / "best")

    again = tiny_run.trainer([Scripted(5.5), MaskCheckpoint(str(tiny_run.folder))], max_steps=6)
    again.fit(tiny_run.module(), datamodule=tiny_run.datamodule(), ckpt_path=checkpoint)
    saved = plans(tiny_run.folder)
    assert saved["last"].step == 6
    assert saved["best"].validation["perplexity"] == 5.0


def test_a_validation_alone_writes_no_plan(tiny_run: TinyRun) -> None:
    trainer = tiny_run.trainer([PerplexityValidation(), MaskCheckpoint(str(tiny_run.folder))])
    trainer.validate(tiny_run.module(), datamodule=tiny_run.datamodule(), verbose=False)
    assert not (tiny_run.folder / "plans").exists()


def test_what_a_killed_process_left_beside_a_plan_is_gone_in_the_end(tiny_run: TinyRun) -> None:
    class Killed(Scripted):
        """Leaves what a process leaves that is killed after it has replaced the best plan."""

        def on_train_end(self, trainer, pl_module) -> None:
            best = tiny_run.folder / "plans" / "best"
            (best / "units-0123456789abcdef.safetensors").touch()
            (best / f"{TEMPORARY}0123456789abcdef").touch()

    tiny_run.fit([Killed(9.0, 8.0, 7.0), MaskCheckpoint(str(tiny_run.folder))])
    left = {path.suffix for path in (tiny_run.folder / "plans" / "best").iterdir()}
    assert left == {".json", ".safetensors"}
    assert len(list((tiny_run.folder / "plans" / "best").iterdir())) == 2
    assert plans(tiny_run.folder)["best"].step == 4
