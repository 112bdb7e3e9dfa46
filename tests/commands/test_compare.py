"""The command as a user meets it: what it writes, what it takes up again, what it says."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from pgprune_lightning.cli import main
from pgprune_lightning.masking import model_reuse
from tests.tiny_commands import TinyCommand
from tests.tiny_experiments import EXPERIMENT, Compare, results_in

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
NUMBERS = ("perplexity_16", "perplexity_48", "parameters", "seconds", "peak_memory_bytes")


def test_a_comparison_from_end_to_end(
    compare: Compare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[object] = []
    load = model_reuse.load_frozen_model

    def counted(*arguments: Any, **keywords: Any) -> Any:
        loads.append(arguments)
        return load(*arguments, **keywords)

    monkeypatch.setattr(model_reuse, "load_frozen_model", counted)
    run = compare()
    assert run.status == 0, run.err
    assert run.err == "", "the trials' chatter goes into their logs"
    assert len(loads) == 1, "one model serves all trials"

    results = results_in(tmp_path)
    methods = results["methods"]
    assert list(methods) == list(EXPERIMENT["methods"])
    assert results["settings"]["all"]["methods"] == methods
    assert results["command"].startswith("python -m pgprune_lightning compare --config")
    for name in NUMBERS:
        assert all(isinstance(entry[name], (int, float)) for entry in methods.values()), name
    assert methods["dense"]["parameters_share"] == 1
    assert methods["learned"]["parameters"] == methods["wanda_sp"]["parameters"]
    assert {name: len(entry["seeds"]) for name, entry in methods.items()} == {
        **{"dense": 1, "wanda_sp": 1, "layers": 1},
        **{"random": 2, "learned": 2},
    }
    assert methods["random"]["deviation"]["perplexity_16"] > 0

    masks = ["wanda_sp", "random", "layers", "learned"]
    assert list(results["hamming"]) == masks
    for one in masks:
        assert set(results["hamming"][one]) == set(masks) - {one}
        for other, by_layer in results["hamming"][one].items():
            assert by_layer == results["hamming"][other][one]
            assert len(by_layer) == len(results["sparsity"]["wanda_sp"]["kv_group"])
            assert 0 < max(by_layer) <= 1 or {one, other} == {"wanda_sp", "learned"}
    assert set(results["sparsity"]["layers"]) == {"layer"}

    output = tmp_path / "out"
    with (output / "table.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["method"] for line in lines].count("learned") == 2
    markdown = (output / "table.md").read_text()
    for name, entry in methods.items():
        assert f"| {name} |" in markdown
        assert f"{name} / seed 0: perplexity " in run.out
        assert entry["kind"] in ("dense", "metric", "learned")
    for trial in (output / "trials" / "all").glob("*/seed*"):
        assert (trial / "log.txt").exists()
        assert (trial / "plan" / "plan.json").exists() == (trial.parent.name != "dense")
        assert (trial / "run" / "plans").exists() == (trial.parent.name == "learned")


def test_the_numbers_are_those_of_fit_and_test(
    compare: Compare, tiny_command: TinyCommand, tmp_path: Path
) -> None:
    assert compare("--seeds=[0]").status == 0
    assert tiny_command("fit").status == 0
    summary = json.loads((tiny_command.run_dir / "summary.json").read_text())
    methods = results_in(tmp_path)["methods"]
    names = {"dense": "dense", "initial": "wanda_sp", "learned": "learned"}
    for ours, theirs in names.items():
        assert methods[theirs]["perplexity_16"] == pytest.approx(summary[ours]["perplexity"])
        assert methods[theirs]["parameters"] == summary[ours]["parameters"]


def test_back_propagation_stands_beside_forward_passes(compare: Compare, tmp_path: Path) -> None:
    """Six steps of 2 sequences of 16 tokens: 2 masks each, or one forward and one backward pass."""
    straight = {
        "model.objective.num_mask_samples": 1,
        "model.gates.class_path": "research.backpropagation.StraightThrough",
        "model.gates.init_args.mask": "sample",
    }
    methods = {
        "dense": {"kind": "dense"},
        "wanda_sp": {"kind": "metric"},
        "learned": {"kind": "learned"},
        "straight": {"kind": "backpropagated", "options": straight},
    }
    picture = [{"kind": "sparsity", "method": "straight"}]
    run = compare("--seeds=[0,1]", methods=methods, picture=picture)
    assert run.status == 0, run.err
    results = results_in(tmp_path)["methods"]
    assert results["straight"]["steps"] == results["learned"]["steps"] == 6
    assert results["straight"]["parameters"] == results["learned"]["parameters"]
    assert len(results["straight"]["seeds"]) == 2
    for name in NUMBERS:
        assert results["straight"][name] > 0, name

    passes = {name: entry["passes"] for name, entry in results.items()}
    assert not any(passes["dense"].values())
    # 8 calibration sequences; the metric's passes are the same, whatever follows.
    started = {passes[name]["initialization"] for name in ("wanda_sp", "learned", "straight")}
    assert started == {8 * 16 / 1024}
    assert passes["learned"]["training"] == 6 * 2 * 2 * 16 / 1024
    assert passes["straight"]["training"] == passes["straight"]["backward"] == 6 * 2 * 16 / 1024
    assert passes["learned"]["backward"] == passes["wanda_sp"]["validation"] == 0
    assert passes["straight"]["validation"] == passes["learned"]["validation"] > 0

    fewer = compare("--seeds=[0,1]", methods=methods | {"learned": {"kind": "dense"}})
    assert "straight / seed 1: perplexity" in fewer.out
    assert fewer.out.count("from an earlier run") >= 4, "it is found again"


def test_the_options_of_back_propagation_are_its_own(compare: Compare) -> None:
    options = {"model.gates.class_path": "research.backpropagation.StraightThrough"}
    run = compare(methods={"learned": {"kind": "learned", "options": options}})
    assert run.status == 2
    assert "gates" in run.err
    two = {"kind": "backpropagated", "options": {"model.objective.num_mask_samples": 2}}
    run = compare(methods={"straight": two})
    assert run.status == 2
    assert "methods.straight: num_mask_samples" in run.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model.keep_ratio": 1.5}, "keep_ratio: must lie in"),
        ({"model.units.kinds": ["layer", "mlp"]}, "units.kinds: "),
        ({"model.units.kinds": ["layer"]}, "initialization.metric: wanda_sp measures"),
        ({"trainer.num_sanity_val_steps": 1}, "The untrained mask would not be measured"),
    ],
)
def test_what_cannot_work_in_the_last_trial_is_said_before_the_first(
    compare: Compare, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    methods = {"dense": {"kind": "dense"}, "last": {"kind": "learned", "options": options}}
    run = compare(methods=methods)
    assert run.status == 2
    (line,) = run.err.splitlines()
    assert line.startswith(f"error: settings.all, methods.last: {message}"), line
    assert not (tmp_path / "out").exists()


def test_the_commands_options_are_these(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["compare", "--help"])
    text = capsys.readouterr().out
    for option in ("--config", "--output", "--existing", "--seeds", "--settings", "--options"):
        assert option in text


@pytest.mark.slow
def test_the_tiny_experiment_keeps_its_contract(
    pgprune_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All methods on a model that was really trained, as the file stands."""
    monkeypatch.setenv("PGPRUNE_DATA", str(pgprune_data))
    config = CONFIGS / "experiments" / "tiny.yaml"
    output = tmp_path / "out"
    assert main(["compare", "--config", str(config), "--output", str(output)]) == 0
    results = results_in(tmp_path)
    methods = results["methods"]
    assert set(methods) == set(yaml.safe_load(config.read_text())["methods"])
    for entry in methods.values():
        for name in ("perplexity_128", "perplexity_2048"):
            assert entry[name] >= methods["dense"][name] > 1
        assert 0 < entry["parameters"] <= methods["dense"]["parameters"] == 260_032
        assert entry["seconds"] >= 0
        assert entry["peak_memory_bytes"] > 2**20
    masks = set(methods) - {"dense", "slicegpt"}
    assert set(results["hamming"]) == masks
    for one in masks:
        assert set(results["hamming"][one]) == masks - {one}
        for by_layer in results["hamming"][one].values():
            assert len(by_layer) == 5
            assert all(0 <= share <= 1 for share in by_layer)
    assert methods["learned"]["parameters"] == methods["wanda_sp"]["parameters"]
    assert methods["slicegpt"]["parameters"] <= methods["wanda_sp"]["parameters"]
    assert methods["learned"]["perplexity_128"] < methods["wanda_sp"]["perplexity_128"]
    assert list(output.glob("*.svg"))
