"""Which programs load an export, and which rule stands in the way of the others."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from pgprune_lightning.export.widths import LayerWidths, are_equal


@dataclass(frozen=True)
class Verdict:
    """Whether a runtime accepts an export.

    Args:
        accepts: Whether it does.
        reason: Layer and rule that stand in the way; None if it does.
    """

    accepts: bool
    reason: str | None = None


def runtime_verdicts(
    widths: tuple[LayerWidths, ...], model_type: str, format_name: str
) -> dict[str, dict[str, Any]]:
    """Say of each runtime whether it accepts an export.

    Args:
        widths: Of the layers that stay.
        model_type: `config.model_type` of the dense model.
        format_name: One of `FORMATS`.

    Returns:
        By the runtime's name: `accepts` and `reason`.
    """
    del model_type
    verdicts = _transformers(widths, format_name)
    return {name: asdict(verdict) for name, verdict in verdicts.items()}


def _transformers(widths: tuple[LayerWidths, ...], format_name: str) -> dict[str, Verdict]:
    if format_name not in ("hf", "uniform", "padded"):
        reason = f"{format_name} is not a model in Hugging Face format; export hf as well"
        stock = bundled = Verdict(False, reason)
    elif format_name != "hf" or are_equal(widths):
        stock = bundled = Verdict(True)
    else:
        bundled = Verdict(True)
        first = widths[0].sizes
        other = next(layer for layer in widths if layer.sizes != first)
        stock = Verdict(
            False,
            f"layers {widths[0].layer} and {other.layer} have different widths, {first} and "
            f"{other.sizes} (query heads, key-value heads, MLP channels), and a stock class has "
            "one; pass trust_remote_code=True, or export uniform or padded",
        )
    return {"transformers": stock, "transformers with trust_remote_code": bundled}
