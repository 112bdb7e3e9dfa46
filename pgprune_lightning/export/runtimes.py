"""Which programs load an export, and which rule stands in the way of the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from transformers import PreTrainedConfig

from pgprune_lightning.errors import UserError
from pgprune_lightning.export.decilm_layout import decilm_obstacle
from pgprune_lightning.export.export_format import PrunedModel
from pgprune_lightning.export.gguf_architecture import llama_cpp_obstacle
from pgprune_lightning.export.rethreshold import mask_at, plan_multiples
from pgprune_lightning.export.stock import stock_config
from pgprune_lightning.export.widths import LayerWidths, layer_widths
from pgprune_lightning.modeling_pruned import FAMILY_STEMS

Widths = tuple[LayerWidths, ...]
Rule = Callable[[PreTrainedConfig, Widths], str | None]
"""Maps a dense model's configuration and what is left of it to what stands in the way, or None."""

RATIO_STEPS = 20
"""Keep ratios that are tried for one that would do, from 1 / 20 to 1."""


@dataclass(frozen=True)
class Verdict:
    """Whether a runtime accepts an export.

    Args:
        accepts: Whether it does.
        reason: Layer and rule that stand in the way, and what would do; None if it accepts.
    """

    accepts: bool
    reason: str | None = None


def runtime_verdicts(pruned: PrunedModel, format_name: str) -> dict[str, dict[str, Any]]:
    """Say of each runtime whether it accepts an export.

    Args:
        pruned: What was exported.
        format_name: One of `FORMATS`.

    Returns:
        By the runtime's name: `accepts` and `reason`.
    """
    masks = _OtherMasks(pruned)
    return {
        runtime: asdict(_verdict(pruned, format_name, rules, masks))
        for runtime, rules in RUNTIMES.items()
    }


def _no_rule(config: PreTrainedConfig, widths: Widths) -> None:
    """What is written in dense shapes, or in equal ones, is a stock model."""
    del config, widths


def _stock_rule(config: PreTrainedConfig, widths: Widths) -> str | None:
    found = stock_config(config, widths)
    return found if isinstance(found, str) else None


def _bundled_rule(config: PreTrainedConfig, widths: Widths) -> str | None:
    if config.model_type in FAMILY_STEMS:
        return None
    return _stock_rule(config, widths)


def _decilm_rule(config: PreTrainedConfig, widths: Widths) -> str | None:
    del widths
    return decilm_obstacle(config)


def _shared_heads_rule(config: PreTrainedConfig, widths: Widths) -> str | None:
    """Source: vLLM's `create_attention_instances`, and its issue 44494."""
    if _stock_rule(config, widths) is None:
        return None
    for layer in widths:
        if layer.query_heads not in (0, config.num_attention_heads):
            return (
                f"layer {layer.layer} has {layer.query_heads} query heads, and it gives every "
                f"layer the model's {config.num_attention_heads}"
            )
    return _bundled_rule(config, widths)


RUNTIMES: dict[str, Mapping[str, Rule]] = {
    "transformers": {"hf": _stock_rule, "uniform": _no_rule, "padded": _no_rule},
    "transformers with trust_remote_code": {
        "hf": _bundled_rule,
        "uniform": _no_rule,
        "padded": _no_rule,
    },
    "llama.cpp": {"gguf": llama_cpp_obstacle},
    "vLLM": {
        "decilm": _decilm_rule,
        "hf": _stock_rule,
        "uniform": _no_rule,
        "padded": _no_rule,
    },
    "vLLM with --model-impl transformers": {
        "hf": _shared_heads_rule,
        "uniform": _no_rule,
        "padded": _no_rule,
    },
}
"""By a runtime's name: the formats it reads, and what each has to meet."""


def _verdict(
    pruned: PrunedModel, format_name: str, rules: Mapping[str, Rule], masks: _OtherMasks
) -> Verdict:
    config = pruned.dense.config
    if format_name not in rules:
        others = f"it reads {', '.join(rules)}, not {format_name}"
        for name, rule in rules.items():
            obstacle = rule(config, pruned.widths)
            if obstacle is None:
                return Verdict(False, f"{others}; --format {name} would do")
        return Verdict(False, f"{others}, and as {name} {obstacle}{masks.advice(rule)}")
    obstacle = rules[format_name](config, pruned.widths)
    if obstacle is None:
        return Verdict(True)
    return Verdict(False, f"{obstacle}{masks.advice(rules[format_name])}")


class _OtherMasks:
    """What other keep ratios of the same plan would leave.

    Args:
        pruned: The export that a runtime refuses.
    """

    def __init__(self, pruned: PrunedModel) -> None:
        self._pruned = pruned

    def advice(self, rule: Rule) -> str:
        """The nearest keep ratio that meets a rule, in words; empty if none does."""
        config = self._pruned.dense.config
        for ratio, widths in self._widths:
            if rule(config, widths) is None:
                if ratio == 1:
                    return "; no keep ratio below 1 would do, --format uniform may"
                return f"; a keep ratio of {ratio:g} would do"
        return ""

    @cached_property
    def _widths(self) -> list[tuple[float, Widths]]:
        """Keep ratios, the nearest first and of two the larger, and what they leave."""
        ratios = [step / RATIO_STEPS for step in range(1, RATIO_STEPS + 1)]
        given = self._pruned.keep_ratio
        ratios.sort(key=lambda ratio: (round(abs(ratio - given), 9), -ratio))
        return list(self._tried(ratios))

    def _tried(self, ratios: list[float]) -> Iterator[tuple[float, Widths]]:
        plan, config = self._pruned.plan, self._pruned.dense.config
        multiples = plan_multiples(plan, config, None, None)
        for ratio in ratios:
            try:
                mask_U = mask_at(plan, ratio, multiples)
            except UserError:
                continue  # a budget that its protected layers alone exceed, for one
            if widths := layer_widths(config, plan.space, mask_U):
                yield ratio, widths
