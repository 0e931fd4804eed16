"""Evaluators that a representation of recordings gets, with a log-mel spectrogram as the floor."""

from typing import Any

from jax import Array
import jax.numpy as jnp

from ssljax.data import audio
from ssljax.evals.collapse import collapse
from ssljax.evals.evaluator import Evaluator
from ssljax.evals.features import Encode, Tree
from ssljax.evals.knn import knn
from ssljax.evals.pictures import feature_map
from ssljax.evals.probe import linear_probe


def of_recordings(
    encode: Encode, train: Any, test: Any, labelled: bool, rate: int, window: int, bands: int
) -> dict[str, Evaluator]:
    """Evaluators of the features `encode(state, waves)`, (n, d), of int16 waves (n, samples).

    There are `collapse` and `features`, a map of them, and with labels `knn`, `probe` and
    `log_mel`: the probe on means and deviations over time of the log-mel spectrogram with `bands`
    bands, in windows of `window` samples at `rate` Hz.
    """

    def log_mel(state: Tree, x: Array) -> Array:
        y = audio.log_mel(audio.to_wave(x), rate, window, window // 2, bands)
        return jnp.concatenate([y.mean(1), y.std(1)], axis=-1)

    found = {"collapse": collapse(encode, test), "features": feature_map(encode, test)}
    if labelled:
        found |= {
            "knn": knn(encode, train, test, floor=False),
            "probe": linear_probe(encode, train, test, floor=False),
            "log_mel": linear_probe(log_mel, train, test, floor=False),
        }
    return found
