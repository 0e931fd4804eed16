"""The loop: resumed, repeated, stopped by a NaN, with several seeds, its numbers and results."""

from dataclasses import replace
import hashlib
import json

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from ssljax import InputError, load, logs, Run, sharding, train
from ssljax.checkpoint import flatten
from ssljax.run import remarks, unused
from ssljax.stats import difference, interval
from tests.tiny import tiny

pytestmark = pytest.mark.usefixtures("one_device")


def digest(state) -> str:
    """sha256 over all parameters, optimizer state and extra."""
    leaves = [
        np.asarray(x)
        for x in jax.tree.leaves((state.step, state.params, state.opt_state, state.extra))
    ]
    return hashlib.sha256(b"".join(str(x.dtype).encode() + x.tobytes() for x in leaves)).hexdigest()


@pytest.fixture(scope="module")
def unbroken():
    """The digest of 40 steps without a workdir."""
    mesh = jax.make_mesh(
        (1, 1),
        ("data", "fsdp"),
        axis_types=(jax.sharding.AxisType.Auto,) * 2,
        devices=jax.devices()[:1],
    )
    patch = pytest.MonkeyPatch()
    patch.setattr("ssljax.sharding.make_mesh", lambda *_, **__: mesh)
    try:
        return digest(train(tiny()))
    finally:
        patch.undo()


def test_two_runs_are_equal_and_seeds_differ(unbroken):
    assert digest(train(tiny())) == unbroken
    assert digest(train(tiny(), Run(seed=1))) != unbroken


def test_run_settings_do_not_change_results(unbroken, tmp_path):
    run = Run(workdir=str(tmp_path), log_every=7, save_every=9, eval_every=11, keep=3)
    assert digest(train(tiny(), run)) == unbroken


@pytest.mark.parametrize("k", [3, 8])
def test_steps_per_call(unbroken, k):
    whole, scanned = train(tiny()), train(tiny(), Run(steps_per_call=k, log_every=10))
    for a, b in zip(
        jax.tree.leaves(whole), jax.tree.leaves(scanned)
    ):  # Another program: equal within rounding.
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize("at", [2, 17])
def test_resumes_to_the_bit(unbroken, tmp_path, at):
    run = Run(workdir=str(tmp_path), save_every=1000)
    half = replace(tiny(), num_steps=at)
    assert digest(train(half, run)) != unbroken
    assert digest(train(tiny(), run)) == unbroken
    assert digest(train(tiny(), run)) == unbroken  # Once more: only evaluated.


def test_metrics_are_means_since_the_last_log(tmp_path):
    train(replace(tiny(), num_steps=20), Run(workdir=str(tmp_path), log_every=5))
    rows = logs.read_metrics(tmp_path)
    (tmp_path / "metrics.jsonl").open("a").write(
        '{"step": 25, "loss": 1.0}\n{"step": 3'
    )  # What a kill leaves.
    train(tiny(), Run(workdir=str(tmp_path), log_every=5))
    again = logs.read_metrics(tmp_path)
    assert [r["step"] for r in again if "loss" in r] == [5, 10, 15, 20, 25, 30, 35, 40]
    assert again[:3] == rows[:3]  # The untrained net, and the first two log points.
    each = tmp_path / "each"
    train(replace(tiny(), num_steps=10), Run(workdir=str(each), log_every=1))
    losses = [r["loss"] for r in logs.read_metrics(each) if "loss" in r]
    speeds = [r.get("steps_per_second") for r in logs.read_metrics(each) if "loss" in r]
    assert speeds[0] is None and min(speeds[1:]) > 0  # The first step was compiled.
    np.testing.assert_allclose(
        [np.mean(losses[:5]), np.mean(losses[5:])],
        [r["loss"] for r in rows if "loss" in r][:2],
        rtol=1e-5,
    )


def test_evaluates_the_trained_and_the_untrained_net(tmp_path, capsys):
    train(tiny(), Run(workdir=str(tmp_path)))
    record = json.loads((tmp_path / "results.json").read_text())
    assert record["results"]["test/error"][0] < 0.5 * record["untrained"]["test/error"][0]
    assert "untrained" in capsys.readouterr().out
    assert (tmp_path / "report.html").stat().st_size > 1000
    assert list((tmp_path / "tensorboard").iterdir())


@pytest.mark.parametrize("lanes", ["vmap", "loop"])
def test_step_is_compiled_once_on_a_thread_of_its_own(lanes, caplog):
    jax.config.update("jax_log_compiles", True)
    try:
        train(replace(tiny(), num_steps=2), Run(seeds=2, lanes=lanes))
    finally:
        jax.config.update("jax_log_compiles", False)
    said = "Finished XLA compilation of jit(scan_steps)"
    threads = [r.threadName for r in caplog.records if said in r.getMessage()]
    assert len(threads) == 1 and threads[0].startswith("compile")


def test_results_before_a_failing_evaluator_are_shown(capsys):
    def fails(state):
        raise MemoryError

    with pytest.raises(MemoryError):
        train(
            replace(
                tiny(), num_steps=2, evals={"first": lambda state: {"number": 7.25}, "then": fails}
            ),
            Run(),
        )
    assert "Found before an evaluator failed: first/number 7.25" in capsys.readouterr().out


def test_slow_evaluators_are_named(tmp_path, capsys, monkeypatch):
    train(replace(tiny(), num_steps=2), Run())
    assert "Evaluated" not in capsys.readouterr().out
    monkeypatch.setattr("ssljax.training.SLOW", 0.0)
    train(replace(tiny(), num_steps=2), Run(seeds=2))
    said = capsys.readouterr().out
    assert (
        "Evaluated test at step 2 in 0 s, seed 2 of 2." in said
        and "Evaluated test at step 0 in 0 s" in said
    )


@pytest.mark.parametrize("lanes", ["vmap", "loop"])
def test_seeds_equal_single_runs(tmp_path, lanes):
    run = Run(workdir=str(tmp_path), seeds=3, seed=4, lanes=lanes, save_every=15)
    train(replace(tiny(), num_steps=20), run)
    together = train(tiny(), run)  # Resumed at 20.
    results = json.loads((tmp_path / "results.json").read_text())["results"]["test/error"]
    for lane in range(3):
        alone = train(tiny(), Run(seed=4 + lane))
        # Batched matrix products are summed in another order than single ones; lanes in sequence
        # are equal to the bit.
        tolerance = dict(rtol=1e-3, atol=1e-5) if lanes == "vmap" else dict(rtol=0, atol=0)
        for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone)):
            np.testing.assert_allclose(a[lane], b, **tolerance)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, **tolerance),
            load(tmp_path, lane).state["params"],
            jax.device_get(alone.params),
        )
        np.testing.assert_allclose(
            results[lane], float(tiny().evals["test"](alone)["error"]), rtol=1e-3
        )
    assert len(set(results)) == 3


def test_interval_is_students():
    assert interval([1.0, 2.0, 3.0]) == pytest.approx(
        4.303 / np.sqrt(3), rel=1e-3
    )  # t(0.975, 2) = 4.303.
    assert np.isnan(interval([1.0]))
    equal = [0.7] * 3  # Whose mean in floating point is another number.
    assert np.std(equal) > 0 and interval(equal) == 0 and difference(equal, equal)[1] == 0


@pytest.mark.parametrize("lanes", ["vmap", "loop"])
def test_nan_stops_the_run_before_the_step(tmp_path, lanes, capsys):
    bad = tiny(nan_at=23)
    run = Run(
        workdir=str(tmp_path),
        log_every=10,
        save_every=15,
        seeds=1 if lanes == "loop" else 2,
        lanes=lanes,
    )
    with pytest.raises(InputError, match="metric loss.* became nan in step 24"):
        train(bad, run)
    failure = json.loads((tmp_path / "failure" / "failure.json").read_text())
    assert {k: failure[k] for k in ("step", "metric", "lane")} == {
        "step": 23,
        "metric": "loss",
        "lane": 0,
    }
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == [
        15
    ]  # No state with a NaN is kept.
    with pytest.raises(SystemExit, match="log"):  # Names the operation.
        train(bad, replace(run, replay=True))
    out = capsys.readouterr().out
    assert "Step 24 again" in out and "loss = nan" in out and "finite before it: none" in out
    # The saved state is the one an unbroken run has after 23 steps, and so is the batch.
    state = train(replace(bad, num_steps=23, evals={}), replace(run, workdir=""))
    whole = jax.tree.map(lambda x: x[0], state) if lanes == "vmap" else state
    with ocp.StandardCheckpointer() as saver:
        saved = saver.restore((tmp_path / "failure" / "state").absolute())
    assert sorted(flatten(saved)) == sorted(flatten(whole))
    for name, x in flatten(whole).items():
        np.testing.assert_array_equal(flatten(saved)[name], x, err_msg=name)
    with np.load(tmp_path / "failure" / "batch.npz") as batch:
        at = next(bad.data.feed(0, 23, None))
        np.testing.assert_array_equal(batch["image"], bad.data.arrays["image"][at])


def test_replay_without_a_failure(tmp_path):
    with pytest.raises(InputError, match="no failed step"):
        train(tiny(), Run(workdir=str(tmp_path), replay=True))


def test_half_written_checkpoints_are_ignored(tmp_path, unbroken):
    train(replace(tiny(), num_steps=20), Run(workdir=str(tmp_path)))
    half = tmp_path / "checkpoints" / "30.orbax-checkpoint-tmp-0"
    half.mkdir()
    (half / "data").write_text("half")
    assert digest(train(tiny(), Run(workdir=str(tmp_path)))) == unbroken


def test_bad_settings_are_one_sentence(tmp_path, devices):
    for run, words in (
        (Run(log_every=0), "log-every must be at least 1"),
        (Run(seeds=0), "seeds must be at least 1"),
    ):
        with pytest.raises(InputError, match=words):
            train(tiny(), run)
    with pytest.raises(InputError, match="number of steps"):
        train(tiny(num_steps=0))
    devices(8)
    with pytest.raises(InputError, match="batch of 30 can't be split over 8 devices"):
        train(tiny(batch_size=30))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"evaluate": True, "replay": True}, "replay and --run.evaluate ask for different things"),
        ({"plan": "h100x8", "evaluate": True}, "plan and --run.evaluate ask for different things"),
        ({"plan": "h100x8", "distributed": True}, "in one process: leave --run.distributed out"),
        ({"evaluate": True}, "run is at step 0 of 6: leave it out to train"),
        ({"evaluate": True, "workdir": ""}, "for a finished run: give its folder"),
        ({"profile": 1, "steps_per_call": 2}, "from step 7 on.* and the run has 6: train for more"),
        ({"reference": "RUN"}, "is the run's own folder"),
        ({"seed": 2**32}, "seed must be at most 2147483647"),  # A key has 32 bits of it.
    ],
)
def test_options_that_contradict_each_other_are_refused(options, words, tmp_path):
    folder = str(tmp_path / "run")
    options = {k: folder if v == "RUN" else v for k, v in options.items()}
    with pytest.raises(InputError, match=words):
        train(tiny(num_steps=6), Run(**{"workdir": folder, **options}))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps_per_call": 2, "log_every": 2, "eval_every": 4}, []),
        ({"log_every": 100, "save_every": 100, "eval_every": 6}, []),
        ({"steps_per_call": 2, "log_every": 3, "eval_every": 5}, ["log-every 3 and --run.eval-ev"]),
        ({"steps_per_call": 8}, ["steps-per-call 8 is more than the run's 6 steps"]),
        ({"eval_every": 7}, ["eval-every 7 is more than the run's 6 steps"]),
        ({"profile": 3}, ["traces nothing, since the run has finished"]),
    ],
)
def test_options_that_do_less_than_they_say_are_remarked_on(options, words):
    found = remarks(Run(**options), 6, 6 if "profile" in options else 0)
    assert len(found) == len(words)
    assert all(word in line for word, line in zip(words, found, strict=True))


def test_remarks_are_printed_and_a_run_is_evaluated_when_it_has_finished(tmp_path, capsys):
    run = Run(workdir=str(tmp_path), eval_every=7)
    train(tiny(num_steps=6), run)
    assert "Note: --run.eval-every 7 is more than" in capsys.readouterr().out
    train(tiny(num_steps=6), replace(run, evaluate=True, profile=2))
    assert "Note: --run.profile traces nothing" in capsys.readouterr().out
    others = {"wandb": "p", "reference": "r", "profile": 2}
    assert unused(Run(replay=True, **others)) == [
        "Note: --run.wandb and --run.reference and --run.profile have no effect with --run.replay."
    ]
    assert unused(Run(plan="h100x8", profile=2)) and not unused(Run(**others))


def test_the_header_says_so_where_fsdp_splits_nothing(devices, capsys):
    devices(2)
    train(replace(tiny(num_steps=1), partition=sharding.fsdp), Run(fsdp=2))
    assert "no parameter split over 2" in capsys.readouterr().out


def test_a_step_that_changes_the_state_is_refused():
    exp = tiny()

    def step(state, batch, key):
        new, metrics = exp.step(state, batch, key)
        return new.replace(extra={**new.extra, "more": new.step}), metrics

    with pytest.raises(InputError, match="extra/more is only there after"):
        train(replace(exp, step=step))
    with pytest.raises(InputError, match="metric vector must be a scalar"):
        train(replace(exp, step=lambda s, b, k: (s, {"vector": b["label"]})))
