"""Low-rank adapters: their options, how they are put on a model, and how they are merged into it.

Shapes: B sequences, T tokens, V vocabulary, C columns of a projection.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pgprune_lightning.errors import UserError

QUERIES_AND_VALUES = (("q_proj", "v_proj"), ("qkv_proj",), ("query_key_value",))
"""The projections of queries and values, by their names in the families."""

PROBE_SHAPE = (2, 32)
"""Sequences and tokens that a model is compared on before and after."""


@dataclass(frozen=True)
class LoraOptions:
    """A low-rank adapter and its training.

    Rank, alpha, number and length of the records are the paper's (A.6), which leaves the rest of
    the adapter at PEFT's defaults and does not name optimizer, steps or batch: those are
    LLM-Pruner's, whose idea it follows, but for the warm-up, there 100 steps whatever their number.

    Args:
        rank: Inner width of the adapter.
        alpha: Its output is multiplied by alpha / rank.
        dropout: Share of the adapter's inputs that is zeroed while training, 0 to 1.
        target_modules: Projections that get an adapter, by name. By default those that make queries
            and values, as PEFT has it: q_proj and v_proj, or the one that makes both. LLM-Pruner
            and SliceGPT adapt all seven of Llama.
        num_records: Records that are trained on, drawn by the seed; all, if there are fewer.
        max_length: Tokens of a record at most; the rest is cut off.
        epochs: Passes over the records.
        batch_size: Records behind one step.
        micro_batch_size: Records in one forward pass; gradients add up to those of a batch.
        lr: Step size of AdamW at its highest; it falls linearly to 0.
        warmup: Share of the steps in which it first rises, 0 to 1.
        max_grad_norm: Longer gradients are shortened to this norm.
        seed: Of the adapter's initial values, the drawn records and their order.
    """

    rank: int = 16
    alpha: int = 10
    dropout: float = 0.0
    target_modules: Sequence[str] | None = None
    num_records: int = 4000
    max_length: int = 1024
    epochs: int = 2
    batch_size: int = 64
    micro_batch_size: int = 4
    lr: float = 1e-4
    warmup: float = 0.1
    max_grad_norm: float = 1.0
    seed: int = 0


def check_finetuning(options: LoraOptions) -> None:
    """Refuse what fine-tuning could not do, before a model is loaded.

    Raises:
        UserError: If PEFT is not installed or an option is out of range.
    """
    for name in ("rank", "alpha", "num_records", "epochs", "batch_size", "micro_batch_size"):
        if getattr(options, name) < 1:
            raise UserError(
                f"finetuning: {name} is {getattr(options, name)}; it must be at least 1."
            )
    for name in ("lr", "max_grad_norm"):
        if not getattr(options, name) > 0:
            raise UserError(f"finetuning: {name} is {getattr(options, name)}; it must be above 0.")
    for name in ("dropout", "warmup"):
        if not 0 <= getattr(options, name) < 1:
            raise UserError(
                f"finetuning: {name} is {getattr(options, name)}; it is a share, 0 to below 1."
            )
    if find_spec("peft") is None:
        raise UserError(
            "finetuning: adapters are made by peft, which is not installed; install it with: "
            "pip install -c constraints.txt -e '.[finetune]'"
        )


def attach_adapter(model: PreTrainedModel, options: LoraOptions) -> Any:
    """Put an adapter that does nothing yet on a model, and freeze all but it.

    Args:
        model: The model; its projections are wrapped in place.
        options: The adapter.

    Returns:
        The `peft.PeftModel`.

    Raises:
        UserError: If the model has none of the projections.
    """
    from peft import LoraConfig, get_peft_model

    names = target_modules_of(model, options)
    check_target_modules(model, names)
    configuration = LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=list(names),
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, configuration)


def target_modules_of(model: nn.Module, options: LoraOptions) -> Sequence[str]:
    """Names of the projections that get an adapter.

    Args:
        model: The model; its weights may be on the meta device.
        options: The adapter, which may leave them to the model.
    """
    if options.target_modules is not None:
        return options.target_modules
    found = _projections(model)
    fitting = (names for names in QUERIES_AND_VALUES if found & set(names))
    return next(fitting, QUERIES_AND_VALUES[0])


def check_target_modules(model: nn.Module, names: Sequence[str]) -> None:
    """Refuse projections of another family, or of sub-layers that are all cut away.

    Args:
        model: The model; its weights may be on the meta device.
        names: Of projections.

    Raises:
        UserError: If the model has none of them.
    """
    found = _projections(model)
    if not found & set(names):
        raise UserError(
            f"finetuning: the model has none of {', '.join(names)}; name "
            f"projections that it has as target_modules: {', '.join(found)}."
        )


def _projections(model: nn.Module) -> Set[str]:
    """Names of the model's projections, in their order."""
    return {
        name.rpartition(".")[2]: None
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name != "lm_head"
    }.keys()


@torch.no_grad()
def zero_columns(model: nn.Module, target_modules: Sequence[str]) -> dict[str, Tensor]:
    """Find what a padded model has pruned, before adapters are put on it.

    Args:
        model: The model.
        target_modules: Names of the projections that get adapters.

    Returns:
        For each of these projections with columns that are all zero: which they are, (C,), bool.
    """
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in target_modules:
            is_zero_C = (module.weight == 0).all(dim=0)
            if bool(is_zero_C.any()):
                found[name] = is_zero_C
    return found


@torch.no_grad()
def keep_pruned(adapted: Any, zeroed: Mapping[str, Tensor]) -> None:
    """Begin with adapters that do not read pruned units, so that none ever reaches them.

    Where the weight and its adapter both read nothing of a unit, no gradient goes to the unit: the
    adapters before it stay as they begin, at zero, and so do its value and the gradient of what
    would read it. Otherwise two adapters, before and after a unit, bring it to life again.

    Args:
        adapted: What `attach_adapter` returned.
        zeroed: What `zero_columns` said of the model before.
    """
    model = adapted.get_base_model()
    for name, is_zero_C in zeroed.items():
        layer: Any = model.get_submodule(name)
        for adapter in layer.active_adapters:
            layer.lora_A[adapter].weight[:, is_zero_C] = 0


@dataclass(frozen=True)
class Merged:
    """A model with its adapters merged.

    Args:
        model: The model, of the class it had before adapters were put on it.
        logits_BTV: Its logits of `probe_tokens`, float32, on the CPU.
        rounding: Largest difference to the logits of weights and adapters apart.
    """

    model: PreTrainedModel
    logits_BTV: Tensor
    rounding: float


def merge(adapted: Any) -> Merged:
    """Merge the adapters of a model into its weights.

    Args:
        adapted: What `attach_adapter` returned.
    """
    apart_BTV = probe_logits(adapted)
    model: Any = adapted.merge_and_unload()
    logits_BTV = probe_logits(model)
    return Merged(model, logits_BTV, float((logits_BTV - apart_BTV).abs().max()))


@torch.no_grad()
def probe_logits(model: Any) -> Tensor:
    """Logits of the same few tokens for every model of a vocabulary, float32, on the CPU."""
    generator = torch.Generator().manual_seed(0)
    tokens_BT = torch.randint(model.config.vocab_size, PROBE_SHAPE, generator=generator)
    logits_BTV: Tensor = model(input_ids=tokens_BT.to(model.device), use_cache=False).logits
    return logits_BTV.float().cpu()
