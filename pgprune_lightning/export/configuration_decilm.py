"""Configuration of a model whose layers differ in key-value heads and in the width of their MLPs.

vLLM's `DeciLMForCausalLM` reads the weights beside this file. It needs transformers alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from transformers import PretrainedConfig


class Block(dict[str, Any]):
    """Part of a layer's description: a dictionary, for JSON, whose keys are attributes too."""

    def __getattr__(self, name: str) -> Any:
        """The value of a key, where there is one."""
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class DeciLMConfig(PretrainedConfig):
    """What vLLM asks of a model of type `nemotron-nas`.

    Args:
        block_configs: For each layer `attention` (`no_op`, `n_heads_in_group`: query heads of a
            key-value head) and `ffn` (`no_op`, `intermediate_size`).
    """

    model_type = "nemotron-nas"

    def __init__(self, block_configs: Iterable[dict[str, Any]] = (), **values: Any) -> None:
        self.block_configs = [
            Block({part: Block(description) for part, description in block.items()})
            for block in block_configs
        ]
        super().__init__(**values)
