"""The results of a benchmark for a reader at the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pgprune_lightning.number_text import bytes_text, count_text, seconds_text

COLUMNS = (
    ("keep ratio", 10),
    ("", 10),
    ("steps/s", 8),
    ("tokens/s", 9),
    ("s a step (least to greatest)", 30),
    ("ratio", 6),
    ("of peak", 7),
    ("memory", 8),
    ("15,000 steps", 12),
)


def header(result: dict[str, Any]) -> str:
    """One line on what is timed, before the table.

    Args:
        result: `model`, `device`, `threads`, `parameters`, `units`, `dtype` and the sizes.
    """
    return (
        f"{result['model']}: {count_text(result['parameters'])} parameters, "
        f"{result['units']:,} units; {result['dtype']} on {result['device']}, "
        f"{result['threads']} threads; {result['batch_size']} x {result['block_length']} tokens, "
        f"N_s = {result['num_mask_samples']} a {result['mask_granularity']}, {result['policy']}\n"
        f"matrix-multiply peak {result['matmul_peak_flops_per_second'] / 1e12:.3g} TFLOP/s; "
        "memory is over the weights, at its peak\n\n" + _line([name for name, _ in COLUMNS])
    )


def rows(result: dict[str, Any]) -> str:
    """The two lines of a keep ratio.

    Args:
        result: What `Benchmark.at` returns.
    """
    reference = [f"{result['keep_ratio']:g}", "reference", *_rates(result["reference"])]
    ours = [
        "",
        result["execution"],
        *_rates(result["ours"]),
        f"{result['ratio']:.2f}",
        f"{result['flops_share_of_peak']:.0%}",
        bytes_text(result["peak_memory_over_weights_bytes"]),
        seconds_text(result["projected_seconds_15000_steps"]),
    ]
    rest = f"sampling and update: {result['policy_share_of_step']:.2%} of a step"
    return "\n".join([_line(reference), _line(ours), f"{'':10}  {rest}"])


def scaling_rows(scaling: Sequence[dict[str, Any]]) -> str:
    """What a step takes besides its forward passes, a line for each number of units."""
    names = ("sample", "estimate", "update")
    lines = ["", f"{'units':>11}" + "".join(f"{name + ', ms':>14}" for name in names)]
    for entry in scaling:
        cells = [f"{entry[name + '_seconds'] * 1e3:14.3f}" for name in names]
        lines.append(f"{entry['units']:11,}" + "".join(cells))
    return "\n".join(lines)


def _rates(part: dict[str, Any]) -> list[str]:
    spread = f"{part['least_seconds']:.3g} to {part['greatest_seconds']:.3g}"
    return [
        f"{part['steps_per_second']:.3g}",
        f"{part['tokens_per_second']:,.0f}",
        f"{part['median_seconds']:.3g} ({spread}, {len(part['seconds'])})",
    ]


def _line(cells: Sequence[str]) -> str:
    padded = [f"{cell:>{width}}" for cell, (_, width) in zip(cells, COLUMNS, strict=False)]
    return "  ".join(padded).rstrip()
