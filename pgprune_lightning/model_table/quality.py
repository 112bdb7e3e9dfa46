"""How well a model predicts texts and answers questions."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from pgprune_lightning.errors import UserError
from pgprune_lightning.evaluation import evaluate_zero_shot
from pgprune_lightning.evaluation.table import perplexity
from pgprune_lightning.model_table.opening import Opened
from pgprune_lightning.model_table.passage import Passage
from pgprune_lightning.model_table.protocol import Protocol
from pgprune_lightning.number_text import share_text

Values = dict[str, Any]


class Attempts:
    """Measures one by one; what fails is noted, and what is finished stays.

    Args:
        name: The model's name.
        say: Told of each measure that is finished.
    """

    def __init__(self, name: str, say: Callable[[str], None]) -> None:
        self.name = name
        self.values: Values = {}
        self.errors: list[str] = []
        self._say = say

    def add(self, what: str, measure: Callable[[], tuple[Values, str]]) -> None:
        """Measure something.

        Args:
            what: Its name, for messages.
            measure: Gives values, which are added group by group, and says them in a few words.
        """
        try:
            values, said = measure()
        except Exception as error:  # other measures are worth having without this one
            self.errors.append(f"{what}: {message_of(error)}")
            return
        for group, value in values.items():
            if isinstance(value, dict):
                self.values.setdefault(group, {}).update(value)
            else:
                self.values[group] = value
        self._say(f"{self.name}: {what}: {said}")


def message_of(error: Exception) -> str:
    """What is wrong, without the name of a class where the message is for users."""
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def measure_quality(
    opened: Opened,
    tokenizer: PreTrainedTokenizerBase,
    passages: Sequence[Passage],
    protocol: Protocol,
    attempts: Attempts,
) -> None:
    """Measure perplexity and zero-shot accuracy.

    Args:
        opened: The model.
        tokenizer: Its tokenizer.
        passages: The texts, in its tokens.
        protocol: What is measured.
        attempts: Takes the values: `perplexity` by the passage's title, None where it overflows,
            and `scored_tokens`; `zero_shot`, `zero_shot_stderr` and `zero_shot_normalized` by
            task, in [0, 1], and `zero_shot_average`.
    """
    batch = protocol.text.tokens_per_batch
    for passage in passages:
        attempts.add(
            passage.title,
            lambda passage=passage: _perplexity(opened, passage, batch, attempts.name),  # type: ignore[misc]
        )
    # The harness runs models of transformers alone.
    if protocol.zero_shot.tasks and opened.model is not None:
        attempts.add("zero-shot", lambda: _zero_shot(opened, tokenizer, protocol))


def _perplexity(
    opened: Opened, passage: Passage, tokens_per_batch: int, name: str
) -> tuple[Values, str]:
    value, scored = passage.perplexity(
        opened.evaluated, tokens_per_batch, f"{name}: {passage.title}"
    )
    kept = value if math.isfinite(value) else None
    values = {"perplexity": {passage.title: kept}, "scored_tokens": {passage.title: scored}}
    return values, f"perplexity {perplexity(kept)}"


def _zero_shot(
    opened: Opened, tokenizer: PreTrainedTokenizerBase, protocol: Protocol
) -> tuple[Values, str]:
    asked = protocol.zero_shot
    assert opened.model is not None
    scores = evaluate_zero_shot(
        opened.model, tokenizer, asked.tasks, local_folder=asked.folder, limit=asked.limit
    )
    accuracies = {task: score.accuracy for task, score in scores.items()}
    average = statistics.fmean(accuracies.values())
    values = {
        "zero_shot": accuracies,
        "zero_shot_average": average,
        "zero_shot_stderr": {task: score.stderr for task, score in scores.items()},
        "zero_shot_normalized": {name: s.normalized_accuracy for name, s in scores.items()},
        "zero_shot_examples": {task: score.num_examples for task, score in scores.items()},
    }
    return values, f"average {share_text(average)}"
