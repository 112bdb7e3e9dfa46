"""What the paper ran for each of its tables and figures, as settings, rows and options of `fit`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

EPOCH = 120_000 // 8
TASKS = ("piqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge")
HUB_IDS = {
    "LLaMA-7B": "huggyllama/llama-7b",
    "LLaMA-13B": "huggyllama/llama-13b",
    "LLaMA-2-7B": "meta-llama/Llama-2-7b-hf",
    "LLaMA-2-13B": "meta-llama/Llama-2-13b-hf",
    "LLaMA-3-8B": "meta-llama/Meta-Llama-3-8B",
    "Vicuna-7B": "lmsys/vicuna-7b-v1.5",
    "Vicuna-13B": "lmsys/vicuna-13b-v1.5",
    "Mistral-7B": "mistralai/Mistral-7B-Instruct-v0.3",
}

Options = dict[str, Any]
BUDGET: Options = {"model.budget.scope": "per_kind", "wandb.mode": "off"}
HEADS_AND_CHANNELS: Options = BUDGET | {"model.initialization.normalization": "layer"}
LAYERS: Options = {
    "model.units.kinds": ["layer"],
    "model.initialization.metric": "layerwise_ppl",
}


def start(metric: str, **options: Any) -> Options:
    """Options of an initialisation."""
    return {f"model.initialization.{name}": value for name, value in options.items()} | {
        "model.initialization.metric": metric
    }


PROTECTED: Options = {"model.units.protected_layers": [0, 1, 2, 3, -2, -1]}
METHODS: dict[str, Options] = {
    "dense": {},
    "llm_pruner": start("taylor") | PROTECTED,
    "slicegpt": {},
    "bonsai": start("bonsai", normalization="global"),
    "wanda_sp": start("wanda_sp") | {"model.budget.scope": "per_layer"},
    "learned": start("wanda_sp"),
}
"""The rows of most tables."""
FROM_RANDOM = start("random", shift_to_budget=True)
RANDOM_STARTS: dict[str, Options] = {
    "learned_random": FROM_RANDOM,
    "learned_random_progressive": FROM_RANDOM
    | {
        "model.budget.progressive.start": 0.95,
        "model.budget.progressive.step": 0.05,
        "model.budget.progressive.steps_per_stage": EPOCH // 3,
    },
}
ESTIMATOR = "model.estimator.init_args"


@dataclass(frozen=True)
class Expected:
    """What the paper ran for a table or figure.

    Args:
        models: Its models, one a setting where there are several.
        ratios: Keep ratios, one a setting where there are several.
        methods: Options of each row.
        options: Options of all rows.
        seeds: Seeds.
        zero_shot: Whether accuracies are reported.
        recipe: What the options are laid over.
    """

    models: tuple[str, ...]
    ratios: tuple[float, ...]
    methods: dict[str, Options]
    options: Options = field(default_factory=lambda: HEADS_AND_CHANNELS)
    seeds: tuple[int, ...] = (0,)
    zero_shot: bool = False
    recipe: str = "paper"


def rows(*names: str) -> dict[str, Options]:
    """Some of the usual rows."""
    return {name: METHODS[name] for name in names}


THREE = (0.7, 0.6, 0.5)
FIVE = (0.7, 0.65, 0.6, 0.55, 0.5)
SEVEN_MODELS = tuple(name for name in HUB_IDS if name != "Mistral-7B")
LLAMA_2 = ("LLaMA-2-7B", "LLaMA-2-13B")

PAPER = {
    "table_1": Expected(("LLaMA-3-8B",), THREE, METHODS, zero_shot=True),
    "table_2": Expected(
        ("LLaMA-2-7B",),
        THREE,
        rows("dense", "llm_pruner", "slicegpt", "bonsai", "wanda_sp")
        | RANDOM_STARTS
        | {
            "learned_llm_pruner": start("taylor") | PROTECTED,
            "learned_wanda_sp": start("wanda_sp"),
        },
    ),
    "table_a1": Expected(LLAMA_2, (0.7,), rows("wanda_sp", "learned")),
    "table_a2": Expected(
        ("LLaMA-2-7B",), THREE, rows("dense", "llm_pruner", "slicegpt", "learned")
    ),
    "table_a3": Expected(("LLaMA-2-7B",), THREE, METHODS, zero_shot=True),
    "table_a4": Expected(("LLaMA-3-8B",), THREE, METHODS, zero_shot=True),
    "table_a5": Expected(("LLaMA-2-7B",), THREE, METHODS, zero_shot=True),
    "table_a6": Expected(
        ("Mistral-7B",), THREE, rows("dense", "llm_pruner", "wanda_sp", "learned"), zero_shot=True
    ),
    "table_a7": Expected(
        ("LLaMA-2-7B",),
        THREE,
        {"heads_and_channels": start("wanda_sp"), "layers": LAYERS},
        seeds=tuple(range(10)),
    ),
    "table_a8": Expected(
        LLAMA_2,
        THREE,
        {
            "without_baseline": {
                "model.estimator.class_path": "pgprune_lightning.policy.PlainReinforce",
                f"{ESTIMATOR}.score_scale": "variance",
                f"{ESTIMATOR}.normalization": "samples",
            },
            "with_baseline": {},
        },
    ),
    "table_a9": Expected(
        ("LLaMA-2-13B",),
        (0.7,),
        {
            "T 3": {f"{ESTIMATOR}.window": 3},
            "T 5 N_s 2": {f"{ESTIMATOR}.window": 5, "model.objective.num_mask_samples": 2},
            "T 7": {f"{ESTIMATOR}.window": 7},
            "N_s 3": {"model.objective.num_mask_samples": 3},
            "N_s 4": {"model.objective.num_mask_samples": 4},
        },
    ),
    "table_a10": Expected(
        LLAMA_2,
        FIVE,
        {
            f"{units}_{projection}": options | {"model.initialization.projection": projection}
            for units, options in (("heads_and_channels", start("wanda_sp")), ("layers", LAYERS))
            for projection in ("sigmoid_norm", "score_const")
        },
        options=HEADS_AND_CHANNELS | {"model.initialization.constant": 0.8},
    ),
    "table_a11": Expected(
        ("LLaMA-2-7B",),
        THREE,
        {"dense": {}, "layerwise_ppl": {}} | RANDOM_STARTS | {"learned_layerwise_ppl": {}},
        options=BUDGET | LAYERS,
    ),
    "table_a12": Expected(
        ("LLaMA-2-7B",),
        (0.8, 0.7),
        rows("dense", "slicegpt", "wanda_sp", "bonsai", "learned"),
        zero_shot=True,
        recipe="calibration_128x2048",
    ),
    "figure_3": Expected(SEVEN_MODELS, FIVE, METHODS),
    "figure_4": Expected(
        SEVEN_MODELS,
        FIVE,
        {"dense": {}, "layerwise_ppl": {}, "learned": {}},
        options=BUDGET | LAYERS,
    ),
    "figure_5": Expected(
        ("LLaMA-2-13B",),
        FIVE,
        {
            "global": {"model.budget.scope": "per_kind"},
            "local": {"model.budget.scope": "per_layer"},
        },
    ),
    "figure_6": Expected(("LLaMA-2-13B",), (0.6,), rows("learned")),
    "figure_a2": Expected(("LLaMA-2-7B",), (0.6,), rows("learned")),
    "figure_a3": Expected(
        ("LLaMA-2-7B",), (0.7,), rows("llm_pruner", "bonsai", "wanda_sp", "learned")
    ),
}
"""Tables 1, 2, A1 to A12; Figs. 3 to 6, A2, A3. The text has no Tables 3 to 6."""
