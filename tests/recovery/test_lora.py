"""The adapter learns, the weights below it stay, and merging changes no logit.

Shapes: U units, B sequences, T tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from pgprune_lightning.errors import UserError
from pgprune_lightning.masking import token_nll, unit_layout_of
from pgprune_lightning.masking.frozen_model import load_frozen_model
from pgprune_lightning.masking.model_source import resolve_model_source
from pgprune_lightning.masking.tokenizer import load_tokenizer
from pgprune_lightning.recovery import LoraOptions, finetune_lora, read_alpaca
from pgprune_lightning.recovery.adapter_training import AdapterTraining, StepLog, train_adapter
from pgprune_lightning.recovery.alpaca import NOT_SCORED
from pgprune_lightning.recovery.lora import attach_adapter, check_finetuning
from pgprune_lightning.slicing import cut_model
from tests.tiny_models import CONFIGS, make_tiny_model, random_tokens

OPTIONS = LoraOptions(rank=4, batch_size=4, micro_batch_size=2, epochs=8, lr=0.02)


@pytest.fixture(autouse=True)
def _peft() -> None:
    pytest.importorskip("peft", reason="pip install -e '.[finetune]'")


def _train(
    adapted: Any,
    examples: list[tuple[list[int], list[int]]],
    options: LoraOptions,
    on_step: Callable[[int, float], None] | None = None,
) -> None:
    train_adapter(AdapterTraining(adapted, examples, options), StepLog(on_step=on_step))


def _half(model: PreTrainedModel) -> PreTrainedModel:
    """The model cut by half, without the first attention and the second MLP."""
    space = unit_layout_of(model, ["kv_group", "mlp_channel"])
    mask_U = torch.rand(space.num_units, generator=torch.Generator().manual_seed(0)) < 0.5
    space.view(mask_U, 0, "kv_group").fill_(False)
    space.view(mask_U, 1, "mlp_channel").fill_(False)
    return cut_model(model, space, mask_U)


def _examples() -> list[tuple[list[int], list[int]]]:
    """Six sequences of three lengths, the last five tokens of each to be learned."""
    sequences = [row.tolist() for length in (12, 9, 15) for row in random_tokens(2, length, length)]
    return [(ids, [NOT_SCORED] * (len(ids) - 5) + ids[-5:]) for ids in sequences]


def _answer_loss(model: PreTrainedModel) -> float:
    losses = [token_nll(model, torch.tensor([ids]))[0, -5:] for ids, _ in _examples()]
    return float(torch.cat(losses).mean())


def _weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """By the names of the model without an adapter."""
    return {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): value.clone()
        for name, value in model.named_parameters()
        if "lora_" not in name
    }


def _same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(value, second[name]) for name, value in first.items()
    )


@pytest.mark.parametrize("name", ["llama_gqa", "qwen3", "llama_mha"])
def test_learns_above_weights_that_stay_and_merges_to_the_same_logits(name: str) -> None:
    dense = make_tiny_model(name)
    cut, before = _half(dense), _weights(dense)
    cut_before, loss_before = _weights(cut), _answer_loss(cut)
    tokens_BT = random_tokens()
    with torch.no_grad():
        logits_before = cut(tokens_BT).logits

    losses: list[float] = []
    adapted = attach_adapter(cut, OPTIONS)
    with torch.no_grad():
        assert torch.equal(adapted(tokens_BT).logits, logits_before), "a new adapter does nothing"
    _train(adapted, _examples(), OPTIONS, on_step=lambda _, loss: losses.append(loss))
    assert len(losses) == 8 * 2
    assert _same(_weights(adapted), cut_before)
    with torch.no_grad():
        adapted_logits = adapted(tokens_BT).logits

    merged = adapted.merge_and_unload()
    with torch.no_grad():
        assert torch.allclose(merged(tokens_BT).logits, adapted_logits, atol=1e-4)
    assert not torch.allclose(adapted_logits, logits_before, atol=1e-2)
    assert _answer_loss(merged) < loss_before - 0.3
    assert not _same(_weights(merged), cut_before)
    assert _same(_weights(dense), before)


def test_the_loss_is_the_mean_over_the_answers(
    tiny_model: Callable[..., PreTrainedModel],
) -> None:
    """Whatever is padded, and however a batch is divided: each token of the answers alike."""
    expected = _answer_loss(_half(tiny_model("llama_gqa")))
    trained = []
    for micro_batch_size in (1, 4, 6):
        options = dataclasses.replace(
            OPTIONS, batch_size=6, micro_batch_size=micro_batch_size, epochs=2, warmup=0.0
        )
        losses: dict[int, float] = {}
        torch.manual_seed(0)
        adapted = attach_adapter(_half(tiny_model("llama_gqa")), options)
        _train(adapted, _examples(), options, on_step=losses.__setitem__)
        assert losses[1] == pytest.approx(expected, rel=1e-5)
        trained.append(losses[2])
    assert trained == pytest.approx([trained[0]] * 3, rel=1e-3)
    assert trained[0] < expected


def test_warms_up_and_falls_to_zero(
    tiny_model: Callable[..., PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    step_sizes: list[float] = []
    step = torch.optim.AdamW.step

    def note(self: torch.optim.AdamW, *args: Any, **options: Any) -> Any:
        step_sizes.append(self.param_groups[0]["lr"])
        return step(self, *args, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", note)
    options = dataclasses.replace(OPTIONS, warmup=0.25, lr=1.0, epochs=2)
    _train(attach_adapter(tiny_model("llama_gqa"), options), _examples(), options)
    assert step_sizes == pytest.approx([0.0, 1.0, 2 / 3, 1 / 3])


def test_each_step_has_the_gradient_of_its_batch_alone_and_no_longer_than_allowed(
    tiny_model: Callable[..., PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    gradients: list[torch.Tensor] = []

    def note(self: torch.optim.AdamW, *_: Any, closure: Any) -> None:
        closure()
        values = [value.grad.flatten() for value in self.param_groups[0]["params"]]
        gradients.append(torch.cat(values).clone())

    monkeypatch.setattr(torch.optim.AdamW, "step", note)
    options = dataclasses.replace(OPTIONS, batch_size=6, epochs=2, max_grad_norm=1e9)
    adapted = attach_adapter(tiny_model("llama_gqa"), options)
    _train(adapted, _examples(), options)
    assert torch.allclose(gradients[1], gradients[0], atol=1e-6)
    length = float(gradients[0].norm())

    _train(adapted, _examples(), dataclasses.replace(options, max_grad_norm=length / 2))
    assert float(gradients[2].norm()) == pytest.approx(length / 2, rel=1e-3)


def test_tunes_a_cut_model_on_instructions(pgprune_data: Path) -> None:
    folder = str(pgprune_data / "stories260K")
    tokenizer = load_tokenizer(folder)
    dense = load_frozen_model(
        resolve_model_source(folder), dtype=torch.bfloat16, device=torch.device("cpu")
    )
    cut, before = _half(dense), _weights(dense)
    num_parameters = sum(value.numel() for value in cut.parameters())
    records = read_alpaca(str(pgprune_data / "alpaca" / "alpaca_9k.jsonl"))
    options = LoraOptions(
        num_records=8, max_length=250, batch_size=4, epochs=4, lr=1e-2, target_modules=["o_proj"]
    )
    losses: list[float] = []
    random_state = torch.get_rng_state()
    tuned = finetune_lora(
        cut, tokenizer, records, options, on_step=lambda _, loss: losses.append(loss)
    )
    assert torch.equal(torch.get_rng_state(), random_state)
    assert losses[-1] < losses[0] - 0.1
    assert type(tuned) is type(dense)
    assert sum(value.numel() for value in tuned.parameters()) == num_parameters
    assert all(value.dtype == torch.bfloat16 for value in tuned.parameters())
    assert not any(value.requires_grad for value in tuned.parameters())
    assert not tuned.training
    assert not any("lora" in name for name, _ in tuned.named_modules())
    assert _same(_weights(dense), before)

    again: list[float] = []
    finetune_lora(
        _half(dense), tokenizer, records, options, on_step=lambda _, loss: again.append(loss)
    )
    assert again == losses, "the same seed trains the same"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"micro_batch_size": 0}, "micro_batch_size is 0"),
        ({"lr": 0.0}, "lr is 0.0; it must be above 0"),
        ({"warmup": 1.0}, "warmup is 1.0; it is a share"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_finetuning(LoraOptions(**options))


def test_peft_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgprune_lightning.recovery.lora.find_spec", lambda _name: None)
    with pytest.raises(UserError, match=r"peft, which is not installed.*\[finetune\]"):
        check_finetuning(LoraOptions())


def test_a_projection_that_the_model_does_not_have(
    tiny_model: Callable[..., PreTrainedModel],
) -> None:
    options = LoraOptions(target_modules=["c_attn"])
    with pytest.raises(UserError, match="the model has none of c_attn"):
        attach_adapter(tiny_model("llama_gqa"), options)


@pytest.mark.parametrize("name", CONFIGS)
def test_by_default_queries_and_values_of_every_family(name: str) -> None:
    model = _half(make_tiny_model(name))
    adapted = attach_adapter(model, LoraOptions(rank=2))
    wrapped = {
        name.partition(".lora_A")[0].rpartition(".")[2]
        for name, _ in adapted.named_parameters()
        if "lora_A" in name
    }
    joint = {"phi3": {"qkv_proj"}, "gpt_neox": {"query_key_value"}}
    assert wrapped == joint.get(model.config.model_type, {"q_proj", "v_proj"})


def test_answers_beyond_the_length(pgprune_data: Path) -> None:
    folder = str(pgprune_data / "stories260K")
    records = read_alpaca(str(pgprune_data / "alpaca" / "alpaca_9k.jsonl"))
    options = LoraOptions(num_records=5, max_length=20)
    with pytest.raises(UserError, match="none of 5 records has an answer within max_length = 20"):
        finetune_lora(make_tiny_model("llama_gqa"), load_tokenizer(folder), records, options)


def test_a_loss_that_is_not_finite(tiny_model: Callable[..., PreTrainedModel]) -> None:
    model = tiny_model("llama_gqa")
    model.get_input_embeddings().weight.data.fill_(float("nan"))
    with pytest.raises(UserError, match="the loss is nan at step 1; lower lr"):
        _train(attach_adapter(model, OPTIONS), _examples(), OPTIONS)
