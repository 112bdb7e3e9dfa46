"""How many tokens a model can read at once, and what becomes of longer blocks."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn
from transformers import PreTrainedConfig

from pgprune_lightning.errors import UserError, warn_once
from pgprune_lightning.masking.frozen_model import model_on_meta

_MOST_ROWS_IN_FRONT = 8  # OPT has two rows before that of its first position


def check_lengths(config: PreTrainedConfig, lengths: Mapping[str, int]) -> None:
    """Refuse blocks that a model cannot read; warn of those that it was not made for.

    Rotary positions go on beyond those that a model was trained with, and its predictions get
    worse there. Learned ones end.

    Args:
        config: The model's configuration.
        lengths: Tokens of a block, by the option that gives them.

    Raises:
        UserError: A block is longer than the model has learned positions.
    """
    positions = max_positions(config)
    too_long = {name: length for name, length in lengths.items() if length > (positions or length)}
    if not too_long:
        return
    given = ", ".join(f"{name} is {length} tokens" for name, length in too_long.items())
    model = f"the model (of type {config.model_type})"
    if has_learned_positions(config):
        raise UserError(
            f"{given}, but {model} has learned positions for {positions} and none beyond them; "
            f"give at most {positions}."
        )
    warn_once(
        f"{given}, but {model} was made for {positions}, and predicts worse beyond them; better "
        f"give at most {positions}."
    )


def max_positions(config: PreTrainedConfig) -> int | None:
    """Tokens that a model was made to read at once; None: its configuration does not say.

    Args:
        config: The model's configuration.
    """
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    return positions if isinstance(positions, int) and positions > 0 else None


def has_learned_positions(config: PreTrainedConfig) -> bool:
    """Whether a model has a vector for each position, and so none beyond the last.

    Args:
        config: The model's configuration, which states a number of positions.
    """
    positions = max_positions(config)
    assert positions is not None
    model = model_on_meta(config)
    words = model.get_input_embeddings()
    rows = range(positions, positions + _MOST_ROWS_IN_FRONT + 1)
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    return any(table is not words and table.num_embeddings in rows for table in tables)
