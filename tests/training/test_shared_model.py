"""A model whose weights two ranks share computes what a whole one does.

Shapes: U units.
"""

from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from pgprune_lightning.errors import UserError
from pgprune_lightning.initialization import Initialization
from pgprune_lightning.initialization.initial_policy import METRICS
from pgprune_lightning.policy import StructuredLogits
from pgprune_lightning.training.execution_choice import ExecutionName
from tests.tiny_runs import TinyRun
from tests.two_ranks import on_two_ranks, run_two_ranks

LAYER_METRICS = ("layerwise_ppl", "block_influence")
FORWARD_METRICS = [name for name, metric in METRICS.items() if not metric.needs_gradients]
RUNS: dict[str, dict[str, Any]] = {
    **{name: {"mode": name} for name in get_args(ExecutionName)},
    "per_sequence": {"mask_granularity": "sequence", "loss": "kl_to_dense"},
    **{
        f"metric_{metric}": {
            "initialization": Initialization(metric=metric, num_blocks=8),
            "kinds": ["layer"] if metric in LAYER_METRICS else ["kv_group", "mlp_channel"],
            "keep_ratio": 0.7,
        }
        for metric in FORWARD_METRICS
    },
}
"""Each execution, both mask granularities, and each metric that reads weights or activations."""


HEADS = ("tied", "claimed_tied")
"""A head that is the embedding, and one that the files hold beside it, whatever is claimed."""


def _fits_of_a_rank(rank: int, run: TinyRun, heads: dict[str, Path]) -> None:
    from callbacks import PerplexityValidation

    results = {}
    for name, options in (RUNS | {n: {"base_model": str(f)} for n, f in heads.items()}).items():
        for shard in (1, 2):
            trainer = run.trainer([PerplexityValidation()], max_steps=2, **on_two_ranks())
            module = run.module(shard=shard, **options)
            # 7 blocks, of which rank 0 has 4 and rank 1 has 3: it has an empty batch.
            trainer.fit(module, datamodule=run.datamodule(evaluation_batch_size=1))
            results[name, shard] = {
                "s_U": module.policy.keep_probabilities.detach().clone(),
                "perplexity": float(trainer.callback_metrics["val/perplexity"]),
                "fingerprint": module.masked_model.base_model.fingerprint,
                "parameters": module.masked_model.base_model.parameters,
                "held": sum(_held(p) for p in module.masked_model.model.parameters()),
            }
    torch.save(results, run.folder / f"{rank}.pt")


def _held(parameter: Any) -> int:
    local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
    return int(local.numel())


@pytest.fixture(scope="module")
def results(
    tiny_model_folder: Path, tiny_texts: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[tuple[str, int], dict[str, Any]]]:
    from tests.tiny_models import claim_tied, make_tiny_model

    folder = tmp_path_factory.mktemp("shared-model")
    heads = {name: folder / name for name in HEADS}
    make_tiny_model("llama_mha").save_pretrained(heads["tied"])
    make_tiny_model("llama_gqa").save_pretrained(heads["claimed_tied"])
    claim_tied(heads["claimed_tied"])
    run_two_ranks(_fits_of_a_rank, TinyRun(tiny_model_folder, tiny_texts, folder), heads)
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*RUNS, *HEADS])
def test_a_shared_model_learns_and_measures_what_a_whole_one_does(
    results: list[dict[tuple[str, int], dict[str, Any]]], name: str
) -> None:
    for of_rank in results:
        whole, shared = of_rank[name, 1], of_rank[name, 2]
        torch.testing.assert_close(shared["s_U"], whole["s_U"], rtol=0, atol=1e-5)
        assert shared["perplexity"] == pytest.approx(whole["perplexity"], rel=1e-5)
        assert shared["fingerprint"] == whole["fingerprint"]
        assert shared["parameters"] == whole["parameters"]
        assert shared["held"] < 0.75 * whole["held"]
    assert results[0][name, 2]["s_U"].equal(results[1][name, 2]["s_U"])


def test_one_process_cannot_share(tiny_run: TinyRun) -> None:
    module = tiny_run.module(shard=2)
    with pytest.raises(UserError, match="2 ranks are to share the model, but the run has 1"):
        tiny_run.trainer().fit(module, datamodule=tiny_run.datamodule())


@pytest.mark.parametrize("where", ["metric", "features"])
def test_a_backward_pass_is_refused(tiny_run: TinyRun, where: str) -> None:
    options: dict[str, Any] = {"initialization": Initialization(metric="taylor")}
    if where == "features":
        options = {"policy": StructuredLogits(features=["fisher"])}
    module = tiny_run.module(shard=2, **options)
    with pytest.raises(UserError, match="backward pass of the metrics taylor and fisher"):
        module.setup("fit")


def test_inference_mode_is_refused(tiny_run: TinyRun) -> None:
    module = tiny_run.module(shard=2)
    with pytest.raises(UserError, match="inference_mode: must be false"):
        tiny_run.trainer(inference_mode=True).fit(module, datamodule=tiny_run.datamodule())


def test_shares_of_nothing_are_refused(tiny_run: TinyRun) -> None:
    with pytest.raises(UserError, match="shard: must be at least 1, given 0"):
        tiny_run.module(shard=0)


def test_a_gguf_file_is_not_shared(tmp_path: Path, tiny_run: TinyRun) -> None:
    file = tmp_path / "model.gguf"
    file.touch()
    with pytest.raises(UserError, match="GGUF file, which every rank would have to read whole"):
        tiny_run.module(base_model=str(file), shard=2)
