"""How an adapter is made and trained."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from pgprune_lightning.errors import UserError


@dataclass(frozen=True)
class LoraOptions:
    """A low-rank adapter and its training.

    Rank, alpha, number and length of the records are the paper's (A.6), which leaves the rest of
    the adapter at PEFT's defaults and does not name optimizer, steps or batch: those are
    LLM-Pruner's, whose idea it follows, but for the warm-up, there 100 steps whatever their number.

    Args:
        rank: Inner width of the adapter.
        alpha: Its output is multiplied by alpha / rank.
        dropout: Share of the adapter's inputs that is zeroed while training, 0 to 1.
        target_modules: Projections that get an adapter, by name. By default those that make queries
            and values, as PEFT has it: q_proj and v_proj, or the one that makes both. LLM-Pruner
            and SliceGPT adapt all seven of Llama.
        num_records: Records that are trained on, drawn by the seed; all, if there are fewer.
        max_length: Tokens of a record at most; the rest is cut off.
        epochs: Passes over the records.
        batch_size: Records behind one step.
        micro_batch_size: Records in one forward pass; gradients add up to those of a batch.
        lr: Step size of AdamW at its highest; it falls linearly to 0.
        warmup: Share of the steps in which it first rises, 0 to 1.
        max_grad_norm: Longer gradients are shortened to this norm.
        seed: Of the adapter's initial values, the drawn records and their order.
    """

    rank: int = 16
    alpha: int = 10
    dropout: float = 0.0
    target_modules: Sequence[str] | None = None
    num_records: int = 4000
    max_length: int = 1024
    epochs: int = 2
    batch_size: int = 64
    micro_batch_size: int = 4
    lr: float = 1e-4
    warmup: float = 0.1
    max_grad_norm: float = 1.0
    seed: int = 0


def check_finetuning(options: LoraOptions) -> None:
    """Refuse what `finetune_lora` could not do, before a model is loaded.

    Raises:
        UserError: If PEFT is not installed or an option is out of range.
    """
    for name in ("rank", "alpha", "num_records", "epochs", "batch_size", "micro_batch_size"):
        if getattr(options, name) < 1:
            raise UserError(
                f"finetuning: {name} is {getattr(options, name)}; it must be at least 1."
            )
    for name in ("lr", "max_grad_norm"):
        if not getattr(options, name) > 0:
            raise UserError(f"finetuning: {name} is {getattr(options, name)}; it must be above 0.")
    for name in ("dropout", "warmup"):
        if not 0 <= getattr(options, name) < 1:
            raise UserError(
                f"finetuning: {name} is {getattr(options, name)}; it is a share, 0 to below 1."
            )
    if find_spec("peft") is None:
        raise UserError(
            "finetuning: adapters are made by peft, which is not installed; install it with: "
            "pip install -c constraints.txt -e '.[finetune]'"
        )
