"""vLLM's `DeciLMForCausalLM` in torch: what it computes of a folder, from that folder alone.

Written after its public source, because vLLM needs an accelerator to run. It keeps the order of its
operations: a normalisation adds the stream that stands beside it, and a sub-layer marked `no_op`
neither adds nor normalises.

Shapes: B sequences, T tokens, D hidden size, V vocabulary, N heads, H width of a head.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from pgprune_lightning.export.configuration_decilm import Block, DeciLMConfig


class DeciReader:
    """A model as vLLM loads it.

    Args:
        folder: With `config.json` and safetensors.
        device: Where to compute.
        dtype: What to compute in.
    """

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
        self._config = DeciLMConfig.from_pretrained(folder)
        self._tensors: dict[str, Tensor] = {}
        for file in sorted(folder.glob("*.safetensors")):
            loaded = load_file(file, device=str(device))
            self._tensors |= {name: values.to(dtype) for name, values in loaded.items()}
        self._device = device

    @torch.no_grad()
    def logits(self, tokens_BT: Tensor) -> Tensor:
        """The logits of every token, (B, T, V)."""
        embedding = self._tensors["model.embed_tokens.weight"]
        hidden_BTD = F.embedding(tokens_BT.to(self._device), embedding)
        residual_BTD: Tensor | None = None
        rotation = self._rotation(tokens_BT.shape[1])
        for index, block in enumerate(self._config.block_configs):
            name = f"model.layers.{index}"
            if not block.attention.no_op:
                residual_BTD = hidden_BTD if residual_BTD is None else residual_BTD + hidden_BTD
                hidden_BTD = self._norm(residual_BTD, f"{name}.input_layernorm")
                hidden_BTD = self._attend(hidden_BTD, f"{name}.self_attn", block, rotation)
            if not block.ffn.no_op:
                assert residual_BTD is not None, "vLLM fails where the first layer has no attention"
                residual_BTD = residual_BTD + hidden_BTD
                hidden_BTD = self._norm(residual_BTD, f"{name}.post_attention_layernorm")
                hidden_BTD = self._mlp(hidden_BTD, f"{name}.mlp", block)
        assert residual_BTD is not None
        normed_BTD = self._norm(residual_BTD + hidden_BTD, "model.norm")
        tied = self._config.tie_word_embeddings
        return F.linear(normed_BTD, embedding if tied else self._tensors["lm_head.weight"])

    def _norm(self, values_BTD: Tensor, name: str) -> Tensor:
        wide_BTD = values_BTD.float()
        variance_BT1 = wide_BTD.square().mean(-1, keepdim=True)
        normed_BTD = wide_BTD * torch.rsqrt(variance_BT1 + self._config.rms_norm_eps)
        return self._tensors[f"{name}.weight"] * normed_BTD.to(values_BTD.dtype)

    def _linear(self, values_BTD: Tensor, name: str, width: int, *, bias: bool) -> Tensor:
        weight = self._tensors[f"{name}.weight"]
        assert weight.shape[0] == width, (name, weight.shape, width)
        return F.linear(values_BTD, weight, self._tensors[f"{name}.bias"] if bias else None)

    def _attend(
        self, hidden_BTD: Tensor, name: str, block: Block, rotation: tuple[Tensor, Tensor]
    ) -> Tensor:
        config = self._config
        heads, head_dim = config.num_attention_heads, config.head_dim
        kv_heads = heads // block.attention.n_heads_in_group
        has_bias = getattr(config, "qkv_bias", config.attention_bias)
        query_BNTH, key_BNTH, value_BNTH = (
            self._linear(hidden_BTD, f"{name}.{part}_proj", count * head_dim, bias=has_bias)
            .unflatten(-1, (count, head_dim))
            .transpose(1, 2)
            for part, count in (("q", heads), ("k", kv_heads), ("v", kv_heads))
        )
        mixed_BNTH = F.scaled_dot_product_attention(
            _rotate(query_BNTH, *rotation),
            _rotate(key_BNTH, *rotation),
            value_BNTH,
            is_causal=True,
            enable_gqa=True,
        )
        merged = mixed_BNTH.transpose(1, 2).flatten(-2)
        return self._linear(
            merged, f"{name}.o_proj", config.hidden_size, bias=config.attention_bias
        )

    def _mlp(self, hidden_BTD: Tensor, name: str, block: Block) -> Tensor:
        width, bias = block.ffn.intermediate_size, self._config.mlp_bias
        gate = self._linear(hidden_BTD, f"{name}.gate_proj", width, bias=bias)
        up = self._linear(hidden_BTD, f"{name}.up_proj", width, bias=bias)
        return self._linear(
            F.silu(gate) * up, f"{name}.down_proj", self._config.hidden_size, bias=bias
        )

    def _rotation(self, num_tokens: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of every position, (T, H)."""
        config = self._config
        kind, scaling = config.rope_parameters["rope_type"], 1.0
        if kind == "default":
            exponents = torch.arange(0, config.head_dim, 2, device=self._device) / config.head_dim
            frequencies = config.rope_parameters["rope_theta"] ** -exponents
        else:
            frequencies, scaling = ROPE_INIT_FUNCTIONS[kind](config, self._device)
        positions = torch.arange(num_tokens, device=self._device)
        angles = torch.outer(positions, frequencies).repeat(1, 2)
        return angles.cos() * scaling, angles.sin() * scaling


def _rotate(values_BNTH: Tensor, cosines_TH: Tensor, sines_TH: Tensor) -> Tensor:
    front, back = values_BNTH.chunk(2, dim=-1)
    turned_BNTH = torch.cat((-back, front), dim=-1)
    return values_BNTH * cosines_TH.to(values_BNTH) + turned_BNTH * sines_TH.to(values_BNTH)
