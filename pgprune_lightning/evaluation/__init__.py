"""Measuring what a mask does to a model."""

from pgprune_lightning.evaluation.evaluated import Evaluated, ModelFacts
from pgprune_lightning.evaluation.latency import Latency, measure_latency
from pgprune_lightning.evaluation.perplexity import TokenPerplexity, evaluate_perplexity
from pgprune_lightning.evaluation.provenance import provenance
from pgprune_lightning.evaluation.strided_perplexity import strided_perplexity
from pgprune_lightning.evaluation.text_blocks import text_blocks, text_stream
from pgprune_lightning.evaluation.text_sample import greedy_continuation
from pgprune_lightning.evaluation.torch_model import TorchModel
from pgprune_lightning.evaluation.zero_shot import ZeroShotScore, evaluate_zero_shot
from pgprune_lightning.evaluation.zero_shot_tasks import (
    ZERO_SHOT_TASKS,
    ZeroShotTask,
    check_zero_shot_tasks,
)

__all__ = [
    "ZERO_SHOT_TASKS",
    "Evaluated",
    "Latency",
    "ModelFacts",
    "TokenPerplexity",
    "TorchModel",
    "ZeroShotScore",
    "ZeroShotTask",
    "check_zero_shot_tasks",
    "evaluate_perplexity",
    "evaluate_zero_shot",
    "greedy_continuation",
    "measure_latency",
    "provenance",
    "strided_perplexity",
    "text_blocks",
    "text_stream",
]
