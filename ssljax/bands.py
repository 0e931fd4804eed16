"""Bands of a run's metrics over its seeds, by which other runs are judged."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ssljax.logs import TIMES

POINTS = 50  # Of a band.
EARLY = 0.1  # Share of training that a third of the points lies in.
MOST = 4  # Metrics that are kept.
SET = ("lr",)  # Prefixes of metrics that are set, rather than found.


@dataclass(frozen=True)
class Band:
    """Least, mean and largest over seeds of a metric at some steps.

    Of a metric of training, each is of the seeds' means since the step before (`steps[0]` since the
    first step).
    """

    steps: Sequence[int]
    least: Sequence[float]
    mean: Sequence[float]
    largest: Sequence[float]


def bands_of(runs: Sequence[Sequence[Mapping[str, Any]]], main: str = "") -> dict[str, Any]:
    """Bands of the rows of metrics.jsonl of several runs, as JSON: {metric: fields of a Band}.

    They are of at most four metrics of training, a "loss" the first, at about 50 steps, a third of
    them in the first tenth of training; and of the evaluator's number `main`, where the runs were
    evaluated on the way.
    """
    training = [[row for row in rows if "seconds" in row] for rows in runs]
    evaluated = [[row for row in rows if "seconds" not in row and main in row] for rows in runs]
    found = {}
    if all(training):
        shared = set.intersection(*(set(rows[0]) for rows in training))
        names = {n for n in shared - {"step", *TIMES} if not n.startswith(SET)}
        steps = sorted(set.intersection(*({row["step"] for row in rows} for rows in training)))
        steps = _thinned(steps)
        for name in sorted(names, key=lambda n: (n != "loss", n))[:MOST]:
            values = np.concatenate([averages(rows, name, steps) for rows in training])
            if steps and np.isfinite(values).all():
                found[name] = _as_json(steps, values)
    if all(evaluated):
        steps = sorted(set.intersection(*({row["step"] for row in rows} for rows in evaluated)))
        if len(steps) > 2:  # The untrained net and the last step are in every row of the ledger.
            by_step = [{row["step"]: np.atleast_1d(row[main]) for row in r} for r in evaluated]
            values = np.concatenate([np.stack([of[s] for s in steps], 1) for of in by_step])
            found[main] = _as_json(steps, values)
    return found


def averages(rows: Sequence[Mapping[str, Any]], name: str, steps: Sequence[int]) -> np.ndarray:
    """Means of a metric of training between `steps`, the first from the first row on: (seeds, n).

    A row of metrics.jsonl is the mean over the steps since the row before. NaN where the rows do
    not reach.
    """
    rows = sorted(rows, key=lambda row: row["step"])
    ends = np.array([0, *(row["step"] for row in rows)], np.float64)
    values = np.stack([np.atleast_1d(row[name]) for row in rows], 1)  # (seeds, rows)
    sums = np.concatenate([np.zeros((len(values), 1)), np.cumsum(values * np.diff(ends), 1)], 1)
    edges = np.array([0, *steps], np.float64)
    at = np.stack([np.interp(edges, ends, s, right=np.nan) for s in sums])
    return np.diff(at, axis=1) / np.diff(edges)


def _thinned(steps: Sequence[int]) -> list[int]:
    """About `POINTS` of the steps, a third of them in the first tenth."""
    if len(steps) <= POINTS:
        return list(steps)
    last = steps[-1]
    early = np.linspace(0, EARLY * last, POINTS // 3 + 1)[1:]
    late = np.linspace(EARLY * last, last, POINTS - POINTS // 3 + 1)[1:]
    places = np.searchsorted(steps, [*early, *late])
    return [steps[i] for i in sorted({min(int(p), len(steps) - 1) for p in places})]


def _as_json(steps: Sequence[int], values: np.ndarray) -> dict[str, list]:
    rounded = {
        name: [float(f"{x:.5g}") for x in of(values, axis=0)]
        for name, of in (("least", np.min), ("mean", np.mean), ("largest", np.max))
    }
    return {"steps": [int(s) for s in steps], **rounded}
