"""A GGUF file as llama.cpp runs it: logits, token losses and speed.

Shapes: B sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import weakref
from collections import deque
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pgprune_lightning.errors import UserError

INSTALL = "pip install llama-cpp-python"

_messages: deque[str] = deque(maxlen=100)
"""The last that llama.cpp said."""


def has_llama_cpp() -> bool:
    """Whether llama-cpp-python is installed."""
    return importlib.util.find_spec("llama_cpp") is not None


class LlamaCppModel:
    """A model that llama.cpp has loaded.

    Args:
        file: A `.gguf` file.
        context_length: Most tokens of a sequence.
        threads: Threads of every operation; None for as many as torch uses.
        float32_cache: Store keys and values in float32 instead of llama.cpp's own float16, to
            compare logits with torch.
        vocabulary_only: Load no weights, to split texts alone.

    Raises:
        UserError: If llama-cpp-python is not installed, or does not load the file.
    """

    def __init__(
        self,
        file: Path,
        *,
        context_length: int,
        threads: int | None = None,
        float32_cache: bool = False,
        vocabulary_only: bool = False,
    ) -> None:
        if not has_llama_cpp():
            raise UserError(f"model: {file} runs in llama.cpp only; install it with: {INSTALL}")
        import llama_cpp

        _keep_messages()
        count = threads or torch.get_num_threads()
        cache: dict[str, Any] = {}
        if float32_cache:
            cache = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}
        try:
            self._model = llama_cpp.Llama(
                str(file),
                n_ctx=context_length,
                n_batch=context_length,
                n_ubatch=context_length,
                n_threads=count,
                n_threads_batch=count,
                logits_all=True,
                vocab_only=vocabulary_only,
                verbose=False,
                **cache,
            )
        except ValueError as error:  # what it raises for a file that it cannot load
            said = [line for line in _messages if "error" in line.lower()]
            reason = " ".join((said or [str(error)])[-1].split()).rstrip(".")
            raise UserError(f"model: llama.cpp cannot load {file}: {reason}.") from error
        self.context_length = context_length
        # Also when the program ends: then the library has gone before what it would free.
        self.close = weakref.finalize(self, self._model.close)
        """Frees the weights; a second time, and at the program's end, it does no harm."""

    def logits(self, tokens_BT: Tensor) -> Tensor:
        """The logits of every token.

        Args:
            tokens_BT: Token ids, (B, T), at most `context_length` of them in a row.

        Returns:
            (B, T, V), float32, on the host.
        """
        return torch.stack([self._logits_of_one(row) for row in tokens_BT.tolist()])

    def token_nll(self, tokens_BT: Tensor) -> Tensor:
        """The loss of every token but the first.

        Args:
            tokens_BT: Token ids, (B, T).

        Returns:
            Nats per token, (B, T - 1), float32.
        """
        logits_BTV = self.logits(tokens_BT)[:, :-1]
        targets_BT = tokens_BT[:, 1:].to(logits_BTV.device)
        return F.cross_entropy(logits_BTV.transpose(1, 2), targets_BT, reduction="none")

    def prefill_seconds(self, prompt: list[int]) -> float:
        """Time to read a prompt.

        Args:
            prompt: Token ids, at most `context_length`.

        Returns:
            Seconds.
        """
        self._model.reset()
        start = perf_counter()
        self._model.eval(prompt)
        return perf_counter() - start

    def decode_seconds(self, prompt: list[int], num_tokens: int) -> float:
        """Time to write tokens one after another, each the most probable.

        Args:
            prompt: Token ids to go on from.
            num_tokens: How many; with the prompt at most `context_length`.

        Returns:
            Seconds for all of them, the prompt's not among them.
        """
        self._model.reset()
        self._model.eval(prompt)
        start = perf_counter()
        for _ in range(num_tokens):
            self._model.eval([int(np.argmax(self._scores[self._model.n_tokens - 1]))])
        return perf_counter() - start

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text, as llama.cpp splits it, without a beginning token."""
        return list(self._model.tokenize(text.encode(), add_bos=False, special=True))

    @property
    def _scores(self) -> Any:
        return self._model.scores

    def _logits_of_one(self, tokens: list[int]) -> Tensor:
        self._model.reset()
        self._model.eval(tokens)
        return torch.from_numpy(np.array(self._scores[: len(tokens)], dtype=np.float32))


@functools.cache
def _keep_messages() -> Any:
    """Keep llama.cpp's messages instead of printing them, even those it prints when quiet.

    Returns:
        What takes them; it is kept because llama.cpp goes on calling it.
    """
    import llama_cpp

    def keep(level: int, text: bytes, _: Any) -> None:
        del level
        _messages.append(text.decode(errors="replace"))

    callback = llama_cpp.llama_log_callback(keep)
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    return callback
