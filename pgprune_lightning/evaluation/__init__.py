"""Measuring what a mask does to a model."""

from pgprune_lightning.evaluation.perplexity import TokenPerplexity, evaluate_perplexity
from pgprune_lightning.evaluation.provenance import provenance
from pgprune_lightning.evaluation.text_sample import greedy_continuation

__all__ = ["TokenPerplexity", "evaluate_perplexity", "greedy_continuation", "provenance"]
