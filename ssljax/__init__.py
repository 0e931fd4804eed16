"""Learning without labels in JAX.

An experiment is a function from hyperparameters to an `Experiment`.
"""

from ssljax.checkpoint import load
from ssljax.cli import main
from ssljax.errors import InputError
from ssljax.experiment import (
    alternate,
    Batch,
    descend,
    ema,
    Experiment,
    Metrics,
    minimize,
    TrainState,
)
from ssljax.run import Run, train

__all__ = [
    "Batch",
    "Experiment",
    "InputError",
    "Metrics",
    "Run",
    "TrainState",
    "alternate",
    "descend",
    "ema",
    "load",
    "main",
    "minimize",
    "train",
]
