"""The norm of a sliced stream is the dense model's, with zeros where directions were deleted.

Shapes: B sequences, T tokens, H hidden, W width.
"""

import torch
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from research.slicegpt import Shortcut, StreamNorm


def test_deleted_directions_count_as_zero() -> None:
    stream_BTW = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(9))
    dense = LlamaRMSNorm(8, eps=1e-2)
    expected_BTW = dense(F.pad(stream_BTW, (0, 3)))[..., :5]
    torch.testing.assert_close(StreamNorm(8, eps=1e-2)(stream_BTW), expected_BTW)
    half_BTW = StreamNorm(8, eps=1e-2)(stream_BTW.bfloat16())
    assert half_BTW.dtype == torch.bfloat16
    torch.testing.assert_close(half_BTW.float(), expected_BTW, rtol=0.02, atol=0.02)


def test_a_shortcut_changes_the_basis() -> None:
    matrix_WX = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 2.0]])
    changed = Shortcut(matrix_WX)(torch.tensor([[[3.0, 4.0]]]))
    assert changed.tolist() == [[[4.0, 3.0, 8.0]]]
