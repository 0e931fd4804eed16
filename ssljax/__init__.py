"""Learning without labels in JAX: an experiment is a function from hyperparameters to an `Experiment`."""

from ssljax.checkpoint import load
from ssljax.errors import InputError
from ssljax.experiment import Batch, Experiment, Metrics, TrainState, alternate, descend, ema, minimize
from ssljax.loop import Run, main, train

__all__ = ["Batch", "Experiment", "InputError", "Metrics", "Run", "TrainState", "alternate", "descend", "ema", "load",
           "main", "minimize", "train"]
