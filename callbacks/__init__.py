"""Observers of a run: they log, measure and save, and change no trained number."""

from callbacks.baseline_tracker import BaselineTracker
from callbacks.deleted_files import DeletedFiles
from callbacks.early_stop import EarlyStop
from callbacks.mask_checkpoint import MaskCheckpoint
from callbacks.outcome_report import OutcomeReport
from callbacks.perplexity_validation import PerplexityValidation
from callbacks.policy_pictures import PolicyPictures
from callbacks.preemption import Preemption
from callbacks.rank_agreement import RankAgreement
from callbacks.run_checkpoint import RunCheckpoint
from callbacks.sparsity_tracker import SparsityTracker
from callbacks.training_progress import TrainingProgress

__all__ = [
    "BaselineTracker",
    "DeletedFiles",
    "EarlyStop",
    "MaskCheckpoint",
    "OutcomeReport",
    "PerplexityValidation",
    "PolicyPictures",
    "Preemption",
    "RankAgreement",
    "RunCheckpoint",
    "SparsityTracker",
    "TrainingProgress",
]
