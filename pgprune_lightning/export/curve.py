"""The perplexity-size curve of one plan at several keep ratios."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pgprune_lightning.atomic_directory import files_in
from pgprune_lightning.atomic_write import write_atomically
from pgprune_lightning.data.text_source import SourceUnavailable, TextSource
from pgprune_lightning.data.token_blocks import TokenBlocks, build_token_blocks
from pgprune_lightning.errors import about
from pgprune_lightning.evaluation import evaluate_perplexity
from pgprune_lightning.export.export_record import ExportRecord
from pgprune_lightning.masking.token_loss import token_nll
from pgprune_lightning.masking.tokenizer import check_tokens

CURVE_FILE = "curve.json"
PICTURE_FILE = "curve.png"
WIKITEXT = TextSource(
    path="Salesforce/wikitext",
    name="wikitext-2-raw-v1",
    split="test",
    local_copy="${PGPRUNE_DATA}/wikitext2/wiki.test.raw",
    label="WikiText-2 test",
    join="blank_line",
    optional=True,
)
BATCH_TOKENS = 1024


@dataclass(frozen=True)
class CurveText:
    """What perplexity is measured on.

    Args:
        source: The text.
        block_length: Tokens of a block.
        tokens: At most so many are read; None: all.
        bos_per_block: Whether every block begins with the BOS token.
    """

    source: TextSource
    block_length: int
    tokens: int | None
    bos_per_block: bool

    def blocks(self, tokenizer: PreTrainedTokenizerBase, num_rows: int) -> TokenBlocks | None:
        """The text's blocks; None, with a warning, where an optional text cannot be reached.

        Args:
            tokenizer: The model's.
            num_rows: Rows of its embedding.

        Raises:
            UserError: If the text cannot be read, or has tokens that the model has no row for.
        """
        source = self.source
        if self.tokens is not None:
            source = replace(source, num_blocks=max(1, self.tokens // self.block_length))
        try:
            with about("--text"):
                blocks = build_token_blocks(
                    source, tokenizer, self.block_length, bos_per_block=self.bos_per_block
                )
        except SourceUnavailable as error:
            if not source.optional:
                raise
            warnings.warn(f"{error}. The curve has sizes only; give --text.", stacklevel=2)
            return None
        check_tokens(blocks.array, tokenizer, num_rows, f"--text: {blocks.label}")
        return blocks


def text_source(given: str | None) -> TextSource:
    """The text that a user names: a .raw or .txt file, or a hub dataset's test split."""
    if given is None or given == WIKITEXT.path:
        return replace(WIKITEXT, optional=given is None)
    is_wikitext = given.endswith(".raw")
    source = TextSource(given, split="test", join="blank_line" if is_wikitext else "end_token")
    with about("--text"):
        source.check()
    return source


def perplexity_of(model: PreTrainedModel, blocks: TokenBlocks, name: str) -> float | None:
    """Perplexity of a model on blocks; None where it overflows."""
    batch_size = max(1, BATCH_TOKENS // blocks.array.shape[1])
    perplexity = evaluate_perplexity(
        partial(token_nll, model),
        DataLoader(blocks, batch_size=batch_size),
        device=model.device,
        description=name,
    )
    return perplexity if math.isfinite(perplexity) else None


def curve_point(record: ExportRecord, perplexity: float | None) -> dict[str, Any]:
    """One row of the curve, of an export's record."""
    names = ("keep_ratio", "parameters", "bytes", "max_logit_difference")
    return {name: record[name] for name in names} | {"perplexity": perplexity}


def write_curve(folder: Path, curve: dict[str, Any]) -> None:
    """Write `curve.json`, and the picture where there are perplexities."""
    points = [point for point in curve["points"] if point["perplexity"] is not None]
    if points:
        _draw(folder / PICTURE_FILE, points, curve["text"]["label"])
    described = curve | {"files": sorted([*files_in(folder), CURVE_FILE])}
    text = json.dumps(described, indent=1, allow_nan=False) + "\n"
    write_atomically(folder / CURVE_FILE, text.encode())


def _draw(file: Path, points: list[dict[str, Any]], label: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    megabytes = [point["bytes"] / 1e6 for point in points]
    axes.plot(megabytes, [point["perplexity"] for point in points], "o-", color="#3366aa")
    for x, point in zip(megabytes, points, strict=True):
        name = "dense" if point["keep_ratio"] is None else f"{point['keep_ratio']:g}"
        axes.annotate(name, (x, point["perplexity"]), xytext=(4, 4), textcoords="offset points")
    axes.set(xlabel="weights in MB", ylabel=f"perplexity, {label}", yscale="log")
    axes.grid(alpha=0.3)
    figure.savefig(file)
