"""One model pruned by several methods: experiment files, their trials, and tables of them."""

from pgprune_lightning.comparison.experiment import Experiment, Method, Picture
from pgprune_lightning.comparison.experiment_file import load_experiment

__all__ = ["Experiment", "Method", "Picture", "load_experiment"]
