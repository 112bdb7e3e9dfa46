"""The options of `export`."""

# No `from __future__ import annotations`: the command line reads these types.
from typing import Literal

from pgprune_lightning.commands.device_option import add_device_option
from pgprune_lightning.console import OneLineErrorParser
from pgprune_lightning.export.export_format import Quantization
from pgprune_lightning.export.formats import FORMATS

DESCRIPTION = (
    "Makes of a pruning plan a model that others load, compares it with the masked model, and says "
    "which programs accept it. Start with: "
    "pgprune export --plan runs/quickstart --format hf --output exported"
)


def export_parser() -> OneLineErrorParser:
    """The command's own options."""
    parser = OneLineErrorParser(prog="pgprune export", description=DESCRIPTION)
    add = parser.add_argument
    add("--plan", type=str, required=True, help="Folder of a run, or of one of its plans.")
    purposes = "; ".join(f"{name}: {FORMATS[name].purpose}" for name in FORMATS)
    add("--format", type=Literal[tuple(FORMATS)], required=True, help=f"{purposes}.")
    add("--output", type=str, required=True, help="Folder of the result, made as a whole.")
    add(
        "--existing",
        type=Literal["stop", "replace"],
        default="stop",
        help="If the folder already holds an export: stop with an error, or replace it when the "
        "new one is whole. Any other folder is left alone.",
    )
    _add_mask_options(parser)
    _add_file_options(parser)
    _add_text_options(parser)
    add_device_option(parser)
    return parser


def _add_mask_options(parser: OneLineErrorParser) -> None:
    parser.add_argument(
        "--keep-ratio",
        type=float,
        nargs="+",
        default=None,
        help="Shares that stay, each in (0, 1], cut from the plan's probabilities under its own "
        "kind of budget; the plan's mask if not given. Several go to OUTPUT/keep70 and so on, "
        "with a curve of perplexity and size.",
    )
    parser.add_argument(
        "--round-to",
        type=int | None,
        default=None,
        help="Each layer keeps a multiple of so many MLP channels, such as 64; the budget is not "
        "exceeded. The run's model.units.round_to if not given.",
    )
    parser.add_argument(
        "--tensor-parallel",
        type=int | None,
        default=None,
        help="Devices that share each layer: it keeps a multiple of so many KV groups and MLP "
        "channels, or none. The run's model.units.tensor_parallel if not given.",
    )


def _add_file_options(parser: OneLineErrorParser) -> None:
    parser.add_argument(
        "--dtype",
        type=Literal["files", "auto", "bfloat16", "float16", "float32"],
        default="files",
        help="Type of the weights: that of the dense model's files, where packed ones (GGUF) count "
        "as float32; auto: bfloat16 where the device computes in it natively. Not for gguf.",
    )
    parser.add_argument(
        "--quantization",
        type=Quantization,
        default="f16",
        help="Type of the weights in a gguf file; q8_0 takes 8.5 bits a weight.",
    )
    parser.add_argument(
        "--base-model",
        type=str | None,
        default=None,
        help="Where the dense model lies now, if not where the run found it: folder, hub id, .gguf "
        "file, package:DIST/FILE.gguf. Its weights must be the same.",
    )


def _add_text_options(parser: OneLineErrorParser) -> None:
    parser.add_argument(
        "--text",
        type=str | None,
        default=None,
        help="Text for the perplexity of each export and of the dense model: a .raw file "
        "(WikiText), a .txt file, or a hub dataset, whose test split is read. With several keep "
        "ratios Salesforce/wikitext if not given, and sizes alone where it cannot be reached.",
    )
    parser.add_argument(
        "--tokens",
        type=int | None,
        default=32768,
        help="At most so many tokens of the text; null: all.",
    )
    parser.add_argument(
        "--block-length", type=int, default=128, help="Length of a block in tokens."
    )
