"""Logs how much of each kind of unit, and of each layer, the policy means to prune."""

from lightning.pytorch import Callback, Trainer

from callbacks.logging import log_metrics
from pgprune_lightning.training import PolicyGradientPruning


class SparsityTracker(Callback):
    """Logs the sparsity of the deterministic mask at every validation.

    `sparsity/parameters` is the removed share of the whole model's parameters, `sparsity/KIND`
    the removed share of the units of a kind, and `sparsity/KIND/layer_NN` the same in one layer.

    Args:
        by_layer: Whether to log every layer besides the totals.
    """

    def __init__(self, by_layer: bool = True) -> None:
        self.by_layer = by_layer

    def on_validation_end(
        self,
        trainer: Trainer,
        pl_module: PolicyGradientPruning,  # type: ignore[override]
    ) -> None:
        """Log the mask that was just validated."""
        space, mask_U = pl_module.space, pl_module.current_mask()
        metrics = {
            "sparsity/parameters": 1 - space.kept_parameters(mask_U) / space.total_parameters
        }
        counts = dict.fromkeys(space.kinds, 0)
        for group in space.groups:
            counts[group.kind] += group.count
        for kind, kept in space.kept_by_kind(mask_U).items():
            metrics[f"sparsity/{kind}"] = 1 - kept / counts[kind]
        if self.by_layer:
            for (layer, kind), ratio in space.keep_ratio_by_layer(mask_U.double()).items():
                metrics[f"sparsity/{kind}/layer_{layer:02d}"] = 1 - ratio
        log_metrics(trainer, metrics)
