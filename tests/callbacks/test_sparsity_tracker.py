import csv

from callbacks import SparsityTracker
from pgprune_lightning.training.metrics_file import MetricsFile
from tests.tiny_runs import TinyRun


def test_sparsity_is_counted_by_kind_and_by_layer(tiny_run: TinyRun) -> None:
    module = tiny_run.fit([SparsityTracker()], logger=MetricsFile(tiny_run.folder))
    with (tiny_run.folder / "metrics.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    space, mask_U = module.space, module.current_mask()
    for kind in space.kinds:
        dropped = int((~mask_U[space.units_of(kind)]).sum())
        assert abs(float(last[f"sparsity/{kind}"]) - dropped / len(space.units_of(kind))) < 1e-12
    for group in space.groups:
        dropped = int((~mask_U[group.start : group.end]).sum())
        logged = float(last[f"sparsity/{group.kind}/layer_{group.layer:02d}"])
        assert abs(logged - dropped / group.count) < 1e-12
    share = 1 - space.kept_parameters(mask_U) / space.total_parameters
    assert abs(float(last["sparsity/parameters"]) - share) < 1e-12


def test_layers_can_be_left_out(tiny_run: TinyRun) -> None:
    tracker = SparsityTracker(by_layer=False)
    tiny_run.fit([tracker], logger=MetricsFile(tiny_run.folder))
    header = (tiny_run.folder / "metrics.csv").read_text().splitlines()[0]
    assert "layer_" not in header
