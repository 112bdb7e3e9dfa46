"""GGUF files of one small layer, without a tokenizer or with one of a few words."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

_HIDDEN, _MLP, _KEYS, _VOCABULARY = 32, 24, 16, 97
_TENSORS = {
    "token_embd": (_VOCABULARY, _HIDDEN),
    "output_norm": (_HIDDEN,),
    "output": (_VOCABULARY, _HIDDEN),
    "blk.0.attn_norm": (_HIDDEN,),
    "blk.0.attn_q": (_HIDDEN, _HIDDEN),
    "blk.0.attn_k": (_KEYS, _HIDDEN),
    "blk.0.attn_v": (_KEYS, _HIDDEN),
    "blk.0.attn_output": (_HIDDEN, _HIDDEN),
    "blk.0.ffn_norm": (_HIDDEN,),
    "blk.0.ffn_gate": (_MLP, _HIDDEN),
    "blk.0.ffn_up": (_MLP, _HIDDEN),
    "blk.0.ffn_down": (_HIDDEN, _MLP),
}


@pytest.fixture
def write_gguf(tmp_path: Path) -> Callable[..., Path]:
    """Writes the file anew: `write_gguf(context_length=32, words=["one"])`."""
    import gguf
    import numpy as np

    def write(context_length: int = 64, words: Sequence[str] = ()) -> Path:
        path = tmp_path / "tiny.gguf"
        writer = gguf.GGUFWriter(str(path), "llama")
        writer.add_block_count(1)
        writer.add_context_length(context_length)
        writer.add_embedding_length(_HIDDEN)
        writer.add_feed_forward_length(_MLP)
        writer.add_head_count(4)
        writer.add_head_count_kv(2)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_vocab_size(_VOCABULARY)
        if words:
            tokens = ["<unk>", "<s>", "</s>", *words]
            writer.add_tokenizer_model("llama")
            writer.add_token_list(tokens)
            writer.add_token_scores([-float(index) for index in range(len(tokens))])
            writer.add_token_types([gguf.TokenType.NORMAL] * len(tokens))
            writer.add_unk_token_id(0)
            writer.add_bos_token_id(1)
            writer.add_eos_token_id(2)
        values = np.random.default_rng(0)
        for name, shape in _TENSORS.items():
            writer.add_tensor(f"{name}.weight", values.normal(size=shape).astype(np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


@pytest.fixture
def tiny_gguf(write_gguf: Callable[..., Path]) -> Path:
    return write_gguf()
