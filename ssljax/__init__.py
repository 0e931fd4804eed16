"""Learning without labels in JAX.

An experiment is a function from hyperparameters to an `Experiment`.
"""

import ssljax.signals  # noqa: F401  # First: it keeps Ctrl-C in the other imports quiet.

# isort: split
from ssljax.cli import main
from ssljax.errors import InputError
from ssljax.experiment import (
    alternate,
    Batch,
    descend,
    ema,
    Experiment,
    Kept,
    Metrics,
    minimize,
    player_ema,
    player_variables,
    TrainState,
)
from ssljax.loaded import load, Loaded
from ssljax.run import Run, train

__all__ = [
    "Batch",
    "Experiment",
    "InputError",
    "Kept",
    "Loaded",
    "Metrics",
    "Run",
    "TrainState",
    "alternate",
    "descend",
    "ema",
    "load",
    "main",
    "minimize",
    "player_ema",
    "player_variables",
    "train",
]
