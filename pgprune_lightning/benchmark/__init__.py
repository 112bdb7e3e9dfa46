"""What a training step costs, side by side with the step as it is usually written."""

from pgprune_lightning.benchmark.published_shapes import SHAPES, shape_config
from pgprune_lightning.benchmark.side_by_side import run_benchmark
from pgprune_lightning.benchmark.workload import Workload

__all__ = ["SHAPES", "Workload", "run_benchmark", "shape_config"]
