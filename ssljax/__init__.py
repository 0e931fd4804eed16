"""Learning without labels in JAX.

An experiment is a function from hyperparameters to an `Experiment`.
"""

import importlib
from typing import Any, TYPE_CHECKING

import ssljax.signals  # noqa: F401  # First: it keeps Ctrl-C in the other imports quiet.

if TYPE_CHECKING:
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
    from ssljax.run import Run
    from ssljax.training import train

__version__ = "0.1.0"
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


def __getattr__(name: str) -> Any:
    # On first use: JAX takes a second to import, for which `ssljax --help` need not wait.
    if name in __all__:
        for module in ("errors", "experiment", "run", "training", "cli", "loaded"):
            found = vars(importlib.import_module(f"ssljax.{module}"))
            if name in found:
                globals()[name] = found[name]
                return found[name]
    raise AttributeError(f"module 'ssljax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
