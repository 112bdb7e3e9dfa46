"""The harness on our task files against log-likelihoods summed by hand.

Shapes: U units, T tokens.
"""

from __future__ import annotations

import copy
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pgprune_lightning.errors import UserError
from pgprune_lightning.evaluation.zero_shot import ZeroShotScore, evaluate_zero_shot
from pgprune_lightning.evaluation.zero_shot_tasks import (
    ZERO_SHOT_TASKS,
    ZeroShotTask,
    check_zero_shot_tasks,
    local_task_definition,
)
from pgprune_lightning.masking import DenseMaskedExecution, token_nll, unit_layout_of
from pgprune_lightning.masking.frozen_model import load_frozen_model
from pgprune_lightning.masking.model_source import resolve_model_source
from pgprune_lightning.masking.tokenizer import load_tokenizer
from pgprune_lightning.slicing import cut_model

NUM_EXAMPLES = 20
NOT_INSTALLED = "pip install -e '.[zero-shot]'"
FIND_SPEC = "pgprune_lightning.evaluation.zero_shot_tasks.find_spec"


def _load_stories(data: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    folder = str(data / "stories260K")
    source, cpu = resolve_model_source(folder), torch.device("cpu")
    model = load_frozen_model(source, dtype=torch.float32, device=cpu)
    return model, load_tokenizer(folder)


@pytest.fixture(scope="module")
def stories(pgprune_data: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    return _load_stories(pgprune_data)


def _examples(folder: Path, task: str) -> list[dict[str, Any]]:
    with (folder / f"{task}.jsonl").open() as lines:
        return [json.loads(line) for _, line in zip(range(NUM_EXAMPLES), lines, strict=False)]


def _question(task: str, example: dict[str, Any]) -> tuple[list[tuple[str, str]], int]:
    """Pairs of a context and what is scored after it, and which of them is right."""
    match task:
        case "hellaswag":
            return [(example["query"], choice) for choice in example["choices"]], example["gold"]
        case "winogrande":
            head, tail = example["sentence"].split("_")
            options = example["option1"], example["option2"]
            right = {"1": 0, "2": 1}[example["answer"]]
            return [(head + option, tail.strip()) for option in options], right
        case "piqa":
            prompt = "Question: " + example["goal"] + "\nAnswer:"
            return [(prompt, example["sol1"]), (prompt, example["sol2"])], example["label"]
        case _:
            prompt = "Question: " + example["question"] + "\nAnswer:"
            return [(prompt, choice) for choice in example["choices"]], example["gold"]


def _log_likelihood(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, context: str, continuation: str
) -> float:
    """Summed over the tokens of the continuation; a context that is too long loses its head."""
    ids = tokenizer(f"{context} {continuation}").input_ids
    num_scored = len(ids) - len(tokenizer(context).input_ids)
    ids = ids[-(model.config.max_position_embeddings + 1) :]
    # The harness never feeds the last token, so that one more than all positions fit.
    nll_T = token_nll(model, torch.tensor([ids]))[0]
    return -float(nll_T[-num_scored:].double().sum())


def _scores_by_hand(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, task: str
) -> tuple[float, float]:
    """Accuracy, and accuracy by likelihood per character of the choice."""
    right = right_by_length = 0
    for example in _examples(folder, task):
        pairs, gold = _question(task, example)
        sums = [_log_likelihood(model, tokenizer, *pair) for pair in pairs]
        means = [value / len(pair[1]) for value, pair in zip(sums, pairs, strict=True)]
        right += sums.index(max(sums)) == gold
        right_by_length += means.index(max(means)) == gold
    return right / NUM_EXAMPLES, right_by_length / NUM_EXAMPLES


def test_tokens_without_a_row_are_refused(
    stories: tuple[PreTrainedModel, PreTrainedTokenizerBase], pgprune_data: Path
) -> None:
    pytest.importorskip("lm_eval", reason=NOT_INSTALLED)
    model, tokenizer = stories
    longer = copy.deepcopy(tokenizer)
    longer.add_tokens("Question")
    with pytest.raises(UserError, match="zero_shot: a question: it holds the token '▁Question'"):
        evaluate_zero_shot(model, longer, ["piqa"], local_folder=pgprune_data / "zeroshot", limit=2)


@pytest.mark.parametrize("task", ZERO_SHOT_TASKS)
def test_agrees_with_summed_log_likelihoods(
    stories: tuple[PreTrainedModel, PreTrainedTokenizerBase], pgprune_data: Path, task: ZeroShotTask
) -> None:
    pytest.importorskip("lm_eval", reason=NOT_INSTALLED)
    folder = pgprune_data / "zeroshot"
    scores = evaluate_zero_shot(
        *stories, [task], local_folder=folder, limit=NUM_EXAMPLES, batch_size=3
    )
    accuracy, normalized = _scores_by_hand(*stories, folder, task)
    assert set(scores) == {task}
    assert scores[task].num_examples == NUM_EXAMPLES
    assert scores[task].accuracy == accuracy
    assert scores[task].normalized_accuracy == (None if task == "winogrande" else normalized)
    stderr = math.sqrt(accuracy * (1 - accuracy) / (NUM_EXAMPLES - 1))
    assert scores[task].stderr == pytest.approx(stderr)


def test_prompts_are_the_harness_own() -> None:
    """Otherwise both sides of the comparison above could be wrong alike."""
    lm_eval_tasks = pytest.importorskip("lm_eval.tasks", reason=NOT_INSTALLED)
    folder = Path(lm_eval_tasks.__file__).parent
    places: dict[ZeroShotTask, str] = {"piqa": "piqa", "hellaswag": "hellaswag", "arc_easy": "arc"}
    for task, place in places.items():
        text = (folder / place / f"{task}.yaml").read_text().replace("!function ", "")
        theirs, ours = yaml.safe_load(text), local_task_definition(task, Path())
        assert ours["doc_to_text"] == theirs["doc_to_text"], task
        assert ours["metric_list"] == theirs["metric_list"], task
    assert "include: arc_easy.yaml" in (folder / "arc" / "arc_challenge.yaml").read_text()


def test_winogrande_is_split_as_the_harness_does(pgprune_data: Path) -> None:
    theirs = pytest.importorskip(
        "lm_eval.tasks.winogrande.preprocess_winogrande", reason=NOT_INSTALLED
    )
    ours = local_task_definition("winogrande", Path())
    for example in _examples(pgprune_data / "zeroshot", "winogrande"):
        for part in ("doc_to_text", "doc_to_choice", "doc_to_target"):
            assert ours[part](example) == getattr(theirs, part)(example)


def _measure(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> dict[str, ZeroShotScore]:
    return evaluate_zero_shot(model, tokenizer, ["arc_easy", "piqa"], local_folder=folder, limit=20)


def test_a_mask_scores_as_the_model_cut_by_it(
    stories: tuple[PreTrainedModel, PreTrainedTokenizerBase], pgprune_data: Path
) -> None:
    """The mask empties the first attention too, by which a cache would count positions."""
    pytest.importorskip("lm_eval", reason=NOT_INSTALLED)
    (model, tokenizer), folder = stories, pgprune_data / "zeroshot"
    space = unit_layout_of(model, ["kv_group", "mlp_channel"])
    mask_U = torch.rand(space.num_units, generator=torch.Generator().manual_seed(0)) < 0.5
    space.view(mask_U, 0, "kv_group").fill_(False)

    dense = _measure(model, tokenizer, folder)
    with DenseMaskedExecution(model, space).masked(mask_U):
        masked = _measure(model, tokenizer, folder)
    assert list(masked) == ["arc_easy", "piqa"]
    assert masked == _measure(cut_model(model, space, mask_U), tokenizer, folder)
    assert masked != dense
    assert _measure(model, tokenizer, folder) == dense, "the mask stayed on the model"


def test_leaves_everything_as_it_was(
    pgprune_data: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("lm_eval", reason=NOT_INSTALLED)
    model, tokenizer = _load_stories(pgprune_data)
    tokenizer.pad_token = None
    before = model.config.use_cache, None, torch.get_rng_state().tolist()
    capfd.readouterr()
    _measure(model, tokenizer, pgprune_data / "zeroshot")
    assert (model.config.use_cache, tokenizer.pad_token, torch.get_rng_state().tolist()) == before
    printed = capfd.readouterr()
    assert printed.out + printed.err == "", "the harness talks into the log"
    assert not caplog.records


def test_no_task_needs_no_harness(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FIND_SPEC, lambda _name: None)
    check_zero_shot_tasks([], None)


def test_unknown_task() -> None:
    with pytest.raises(UserError, match=r"'boolq' is not one of piqa, hellaswag, .*arc_challenge"):
        check_zero_shot_tasks(["piqa", "boolq"], None)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no file .*piqa\.jsonl.*from the hub"):
        check_zero_shot_tasks(["piqa"], tmp_path)


@pytest.mark.parametrize("content", ["", "no json\n", "[1]\n", '{"goal": "a", "sol1": "b"}\n'])
def test_file_of_another_shape(tmp_path: Path, content: str) -> None:
    (tmp_path / "piqa.jsonl").write_text(content)
    with pytest.raises(UserError, match=r"piqa\.jsonl is no .* fields goal, sol1, sol2, label"):
        check_zero_shot_tasks(["piqa"], tmp_path)


def test_tasks_are_decoded_as_texts_are(
    stories: tuple[PreTrainedModel, PreTrainedTokenizerBase], pgprune_data: Path, tmp_path: Path
) -> None:
    pytest.importorskip("lm_eval", reason=NOT_INSTALLED)
    shared = pgprune_data / "zeroshot"
    lines = (shared / "piqa.jsonl").read_text().splitlines(keepends=True)[:20]
    (tmp_path / "piqa.jsonl").write_bytes("".join(lines).encode("utf-16"))
    scores = [
        evaluate_zero_shot(*stories, ["piqa"], local_folder=folder, limit=20)
        for folder in (shared, tmp_path)
    ]
    assert scores[0] == scores[1]


def test_a_task_in_windows_1252(tmp_path: Path) -> None:
    example = '{"goal": "caf\u00e9", "sol1": "a", "sol2": "b", "label": 0}\n'
    (tmp_path / "piqa.jsonl").write_bytes(example.encode("cp1252"))
    with pytest.warns(UserWarning, match=r"piqa\.jsonl: it is no UTF-8, and was read as"):
        check_zero_shot_tasks(["piqa"], tmp_path)


def test_harness_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FIND_SPEC, lambda _name: None)
    with pytest.raises(UserError, match=r"lm-eval, which is not installed.*\[zero-shot\]"):
        check_zero_shot_tasks(["piqa"], None)


def test_one_example_has_no_standard_error(
    stories: tuple[PreTrainedModel, PreTrainedTokenizerBase], pgprune_data: Path
) -> None:
    pytest.importorskip("lm_eval", reason=NOT_INSTALLED)
    with pytest.raises(UserError, match=r"limit is 1; .* at least 2"):
        evaluate_zero_shot(*stories, ["piqa"], local_folder=pgprune_data / "zeroshot", limit=1)


def test_a_damaged_line_is_one_error(
    stories: tuple[PreTrainedModel, PreTrainedTokenizerBase], pgprune_data: Path, tmp_path: Path
) -> None:
    pytest.importorskip("lm_eval", reason=NOT_INSTALLED)
    shutil.copy(pgprune_data / "zeroshot" / "piqa.jsonl", tmp_path)
    (tmp_path / "piqa.jsonl").chmod(0o644)
    with (tmp_path / "piqa.jsonl").open("a") as file:
        file.write('{"goal": \n')
    with pytest.raises(UserError, match=r"the data of piqa cannot be read from .*Check the files"):
        evaluate_zero_shot(*stories, ["piqa"], local_folder=tmp_path)


def test_offline_without_a_folder_is_one_error(
    stories: tuple[PreTrainedModel, PreTrainedTokenizerBase],
) -> None:
    pytest.importorskip("lm_eval", reason=NOT_INSTALLED)
    with pytest.raises(UserError, match=r"the data of piqa cannot be read from the hub"):
        evaluate_zero_shot(*stories, ["piqa"], limit=4)
