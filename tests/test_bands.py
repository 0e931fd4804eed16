"""Bands of metrics over seeds, and the comparison of a run with its reference as it begins."""

from dataclasses import replace
import itertools
import json
import shutil

import jax
import numpy as np
import pytest

from experiments.simsiam import simsiam
from ssljax import bands, InputError, logs, reference, Run, train
from ssljax.data import Images
from tests.tiny import made_with, tiny


def logged(values, every, seconds=True):
    """Rows as a run logs them, from the values of each step of each seed, (seeds, steps)."""
    values = np.asarray(values, np.float64)
    return [
        {
            "step": step,
            "loss": [*values[:, step - every : step].mean(1)],
            **({"seconds": 1.0} if seconds else {}),
        }
        for step in range(every, values.shape[1] + 1, every)
    ]


def test_averages_are_of_the_steps_between():
    values = np.random.default_rng(0).normal(size=(2, 24))
    for every in (1, 2, 4):
        found = bands.averages(logged(values, every), "loss", [4, 8, 20])
        wanted = [[v[:4].mean(), v[4:8].mean(), v[8:20].mean()] for v in values]
        np.testing.assert_allclose(found, wanted, rtol=1e-12)
    # A row is taken as constant where a step lies between two; beyond the last there is nothing.
    found = bands.averages(logged(values, 4), "loss", [2, 6, 28])
    np.testing.assert_allclose(found[:, 0], values[:, :4].mean(1))
    halves = values[:, :4].mean(1) / 2 + values[:, 4:8].mean(1) / 2
    np.testing.assert_allclose(found[:, 1], halves)
    assert np.isnan(found[:, 2]).all()


def test_bands_of_runs_with_several_seeds_each():
    values = np.random.default_rng(0).normal(size=(3, 400))
    together = bands.bands_of([logged(values, 2)])
    apart = bands.bands_of([logged(values[:2], 2), logged(values[2:], 2)])
    assert together == apart and list(together) == ["loss"]
    band = together["loss"]
    steps = band["steps"]
    assert 45 <= len(steps) <= 50 and steps[-1] == 400
    assert 14 <= sum(s <= 40 for s in steps) <= 17
    edges = [0, *steps]
    means = np.stack([values[:, a:b].mean(1) for a, b in itertools.pairwise(edges)], 1)
    for name, of in (("least", np.min), ("mean", np.mean), ("largest", np.max)):
        np.testing.assert_allclose(band[name], of(means, 0), rtol=1e-4)
    assert len(json.dumps(together)) < 4000


def test_bands_leave_out_what_says_nothing_of_learning():
    rows = logged(np.ones((2, 9)), 3)
    more = {"lr": 0.1, "lr_gen": 2.0, "steps_per_second": 2.0, "kl": 3.0}
    found = bands.bands_of([[{**row, **more} for row in rows]])
    assert list(found) == ["loss", "kl"]
    evaluated = [
        {"step": s, "knn/accuracy": [s, s + 2.0], "probe/accuracy": 1.0} for s in (0, 3, 9)
    ]
    found = bands.bands_of([rows + evaluated], "knn/accuracy")
    assert found["knn/accuracy"] == {
        "steps": [0, 3, 9],
        "least": [0, 3, 9],
        "mean": [1, 4, 10],
        "largest": [2, 5, 11],
    }
    assert "knn/accuracy" not in bands.bands_of([rows + evaluated[1:]], "knn/accuracy")
    broken = [{**row, "loss": [1.0, float("nan")]} for row in rows]
    assert bands.bands_of([broken]) == {} == bands.bands_of([[]])


# A run and its reference.

TINY = {"width": 8, "num_steps": 200}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with "tiny", a run of three seeds."""
    root = tmp_path_factory.mktemp("reference")
    run = Run(workdir=str(root / "tiny"), seeds=3, log_every=5)
    train(made_with(tiny(**TINY), {"lr": 0.01}), run)
    return root


def compared(root, capsys, **change):
    """What a run of another seed says of its reference, and the steps that it has logged."""
    workdir = root / "run"
    shutil.rmtree(workdir, ignore_errors=True)
    settings = TINY | change
    run = Run(workdir=str(workdir), seed=7, log_every=100, reference=str(root / "tiny"))
    capsys.readouterr()
    train(made_with(tiny(**settings), {"lr": settings.get("lr", 0.01)}), run)
    said = [x for x in capsys.readouterr().out.splitlines() if "band of" in x]
    return said, [row["step"] for row in logs.read_metrics(workdir) if "seconds" in row]


def test_a_run_says_within_a_twentieth_whether_it_is_like_its_reference(root, capsys):
    said, steps = compared(root, capsys)
    assert said == [f"Within the band of {root / 'tiny'} up to step 10."]
    # It has logged at the reference's steps, up to 10 of 200, whatever its own --run.log-every is.
    assert steps == [5, 10, 100, 200]
    (sentence,), steps = compared(root, capsys, lr=0.1)
    assert f"has left the band of {root / 'tiny'}" in sentence and "at step 10" in sentence
    assert "(other settings here: lr 0.1 instead of 0.01)" in sentence
    assert steps == [5, 10, 100, 200]


def test_a_resumed_run_is_compared_once(root):
    rows = logs.read_metrics(root / "tiny")
    rows = [{k: v for k, v in row.items() if k != "twice"} for row in rows]
    far = [{**row, "loss": [x + 1 for x in row["loss"]]} for row in rows if "loss" in row]

    def said(before, then):
        watch = reference.Watch(str(root / "tiny"), 200, {}, before)
        return [watch.add(row["step"], {"loss": row["loss"]}) for row in then]

    assert [bool(s) for s in said([], far[:4])] == [False, True, False, False]
    assert "loss of the run's seed 1 has left" in said([], far[:4])[1]
    assert [bool(s) for s in said(far[:1], far[1:3])] == [True, False]  # Resumed at step 5.
    assert not any(said(far[:2], far[2:4]))  # And at step 10, after the twentieth.


def test_evaluated_numbers_and_other_metrics_are_not_compared(root, monkeypatch):
    band = {"least": [1.0, 1.0], "mean": [1.0, 1.0], "largest": [1.0, 1.0]}
    known = {"loss": {"steps": [5, 10], **band}, "knn/accuracy": {"steps": [0, 100], **band}}
    monkeypatch.setattr(reference, "_read", lambda name: ({}, known))
    watch = reference.Watch("row", 200, {})
    assert watch.steps == [5, 10] and [watch.before(s) for s in (0, 5)] == [5, 5]
    assert watch.add(5, {"other": [3.0]}).startswith("row has none of this run's metrics")
    assert not watch.due(10) and watch.add(10, {"other": [3.0]}) == ""


def test_references_that_are_none(root):
    with pytest.raises(InputError, match="no_such_row is no row of experiments/ledger/"):
        reference.reference("no_such_row")
    with pytest.raises(InputError, match="Did you mean simclr-cifar10[?]"):
        reference.reference("simclr-cifar1")
    with pytest.raises(InputError, match="the curves of simclr-cifar10 were not kept"):
        train(tiny(), Run(reference="simclr-cifar10"))
    train(tiny(num_steps=2), Run(workdir=str(root / "one")))
    with pytest.raises(InputError, match="has one seed, which has no band"):
        reference.reference(str(root / "one"))


def first_steps(workdir, seed):
    """What SimSiam on digits logs in its first steps."""
    exp = replace(simsiam(data=Images("digits")), evals={}, num_steps=9)
    train(exp, Run(workdir=str(workdir), seed=seed, log_every=3))
    return logs.read_metrics(workdir)


def test_simsiam_without_its_stop_gradient_leaves_the_band(
    tmp_path, monkeypatch, costly, one_device
):
    costly(1)
    rows = [first_steps(tmp_path / str(seed), seed) for seed in range(4)]
    known = bands.bands_of(rows[:3])
    monkeypatch.setattr(reference, "_read", lambda name: ({}, known))

    def said(rows):
        watch = reference.Watch("simsiam", 20 * 9, {})
        names = ("loss", "grad_norm")
        return "".join(watch.add(row["step"], {k: [row[k]] for k in names}) for row in rows)

    assert said(rows[3]) == "Within the band of simsiam up to step 9."
    monkeypatch.setattr(jax.lax, "stop_gradient", lambda x: x)
    assert "grad_norm has left the band of simsiam" in said(first_steps(tmp_path / "nostop", 3))
