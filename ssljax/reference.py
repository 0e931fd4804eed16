"""References: curves of runs that went well, by which another run is judged as it begins."""

from collections.abc import Mapping, Sequence
import difflib
import pathlib
from typing import Any

import numpy as np

from ssljax import logs
from ssljax.bands import averages, Band, bands_of
from ssljax.errors import InputError
from ssljax.record import flat, read_record

WATCHED = 0.05  # Share of training over which a run is compared with its reference.


def reference(name: str) -> dict[str, Band]:
    """Bands of the metrics of a row of the ledger, or of the run with several seeds in a folder.

    The names are those of metrics.jsonl. InputError for no such row or run, and for one whose
    curves were not kept.
    """
    bands = _read(name)[1]
    if not bands:
        raise InputError(
            f"--run.reference: the curves of {name} were not kept. Run the command of its page in "
            "experiments/ledger/ with --run.seeds 3, and give that run's folder."
        )
    return {metric: Band(**band) for metric, band in bands.items()}


def _read(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings and bands (as JSON) of a row of the ledger or of a run's folder."""
    from ssljax.ledger.rows import name_of, read_rows  # The ledger's rows have bands, too.

    workdir = pathlib.Path(name).expanduser()
    rows = {name_of(row): row for row in read_rows()}
    if (workdir / "record.json").is_file():
        computes = read_record(workdir, "train that run again")["computes"]
        seeds = computes.get("run", {}).get("seeds", 1)
        bands = bands_of([logs.read_metrics(workdir)])
    elif name in rows:
        computes, seeds = rows[name]["computes"], len(rows[name]["seeds"])
        bands = rows[name].get("curves", {})
    else:
        near = difflib.get_close_matches(name, rows, 1, 0.5)
        meant = f" Did you mean {near[0]}?" if near else ""
        raise InputError(
            f"--run.reference: {name} is no row of experiments/ledger/, and no folder of a run."
            f"{meant}"
        )
    if seeds < 2:
        raise InputError(
            f"--run.reference: {name} has one seed, which has no band: give a run with "
            "--run.seeds 3."
        )
    return computes, bands


class Watch:
    """Compares a run with its reference over the first twentieth of training.

    A metric has left its band where it is outside of it by more than twice the band's width, at two
    steps in a row if more than one is compared. The width is the largest of five steps in a row, as
    few seeds may lie near each other by chance. Measured on digits with other seeds, 3 to 4 % of
    good runs of SimCLR and SimSiam left a band of three seeds, and .1 % one of five; SimSiam
    without its stop-gradient and ten times the learning rate were found each time. A tenth of the
    rate was found with nine points compared for SimCLR, less often with three, and hardly for
    SimSiam, whose loss moves little that early. The rule was chosen on these runs, two of each bad
    setting, so that these rates are optimistic.
    """

    def __init__(
        self,
        name: str,
        num_steps: int,
        computes: Mapping[str, Any],
        rows: Sequence[Mapping[str, Any]] = (),
    ):
        """`rows` are those that the run has logged before it resumed."""
        self.name = name
        # Those of training: evaluated numbers begin with the untrained net's, at step 0.
        self.bands = {k: band for k, band in reference(name).items() if band.steps[0]}
        self.differ = _differences(_read(name)[0], computes)
        first = min((band.steps[0] for band in self.bands.values()), default=0)
        self.until = max(WATCHED * num_steps, first)
        self.steps = sorted(
            {int(s) for band in self.bands.values() for s in band.steps if s <= self.until}
        )
        self.note = ""  # For the user, where the two can't be compared.
        if self.steps and self.steps[0] > num_steps:
            self.note = (
                f"Note: {name} was first logged at step {self.steps[0]:,}, after the "
                f"{num_steps:,} steps of this run, which is not compared with it."
            )
        self.rows = [dict(row) for row in rows if "seconds" in row]
        self.ended = bool(rows) and max(row["step"] for row in rows) >= self.until

    def due(self, step: int) -> bool:
        """Whether the run is to be compared at a step."""
        return not self.ended and step in self.steps

    def before(self, step: int) -> int:
        """Steps from `step` to the next comparison; a large number where there is none."""
        return min((s - step for s in self.steps if s > step and not self.ended), default=2**31)

    def add(self, step: int, values: Mapping[str, Sequence[float]]) -> str:
        """A sentence, if there is anything to say now that the metrics of a step are known.

        It says that a metric has left its band, or at the end that none has.
        """
        if self.ended:
            return ""
        self.rows.append({"step": step, **values})
        if not self.bands.keys() & values.keys():
            self.ended = True
            return f"{self.name} has none of this run's metrics, so that they are not compared."
        found = None
        for metric, band in self.bands.items():
            if metric in values:
                found = found or self._departure(metric, band, step)
        if found:
            self.ended = True
            return found
        if step >= self.steps[-1]:
            self.ended = True
            return self._within(step)
        return ""

    def _departure(self, metric: str, band: Band, reached: int) -> str:
        n = int(np.searchsorted(band.steps, min(reached, self.until), "right"))
        if not n:
            return ""
        values = averages(self.rows, metric, band.steps[:n])
        least, largest = np.array(band.least), np.array(band.largest)
        width = largest - least
        widest = np.array([width[max(i - 2, 0) : i + 3].max() for i in range(n)])
        beyond = np.maximum(least[:n] - values, values - largest[:n]) / np.maximum(widest, 1e-12)
        in_a_row = min(2, len(self.steps))
        outside = np.minimum(beyond[:, in_a_row - 1 :], beyond[:, : n - in_a_row + 1]) > 2
        if not outside.any():
            return ""
        seed, i = (int(x) for x in np.argwhere(outside)[0])
        i += in_a_row - 1
        of_seed = f" of the run's seed {seed + 1}" if len(values) > 1 else ""
        return (
            f"{metric}{of_seed} has left the band of {self.name}: {_show(values[seed, i])} at step "
            f"{band.steps[i]}, where the reference has {_show(least[i])} to {_show(largest[i])}"
            f"{self._settings()}."
        )

    def _settings(self) -> str:
        return f" (other settings here: {', '.join(self.differ)})" if self.differ else ""

    def _within(self, step: int) -> str:
        return f"Within the band of {self.name} up to step {step}{self._settings()}."


def _show(x: float) -> str:
    return logs.format_number(float(x))


def _differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """ "lr 0.1 instead of 0.01" of each setting that two runs have and that differs."""
    theirs, ours = flat(theirs), flat(ours)
    return [
        f"{name} {ours[name]} instead of {theirs[name]}"
        for name in theirs.keys() & ours.keys()
        if not name.startswith("run.") and theirs[name] != ours[name]
    ]
