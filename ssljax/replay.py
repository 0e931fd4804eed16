"""What happens when a number is not finite: the state and batch are saved, and the step can be run again."""

import json
import pathlib
from typing import Any, NoReturn

import jax
import numpy as np
import orbax.checkpoint as ocp

from ssljax.checkpoint import flatten
from ssljax.errors import InputError

Tree = Any


def failed(
    exp, program, state: Tree, bad: tuple[int, int, str, float], workdir: pathlib.Path | None
) -> InputError:
    """Saves the state before the step that failed and its batch; returns the error that stops the run."""
    lane, step, name, value = bad
    seed = f" of seed {program.seeds[lane]}" if len(program.seeds) > 1 else ""
    what = f"The metric {name}{seed} became {value} in step {step + 1}"
    if workdir is None:
        return InputError(
            f"{what}. Give --run.workdir to have the state and batch saved for --run.replay."
        )
    (workdir / "failure" / "failure.json").unlink(missing_ok=True)  # No old one beside a new state.
    fed = next(exp.data.feed(program.seeds[lane], step, program.mesh))
    batch = jax.jit(exp.data.batch)(program.resident, fed)
    folder = (workdir / "failure").absolute()
    with ocp.StandardCheckpointer() as saver:
        saver.save(folder / "state", program.lane(state, lane), force=True)
    batch = _on_host(batch)
    if jax.process_index() == 0:
        np.savez(folder / "batch.npz", **batch)
        (folder / "failure.json").write_text(
            json.dumps({"step": step, "metric": name, "lane": lane})
        )
    return InputError(
        f"{what}. The state before it and its batch are in {workdir / 'failure'}: run the same command "
        "with --run.replay to see where it comes from."
    )


def replay(exp, program, workdir: pathlib.Path | None) -> NoReturn:
    """Runs the saved step again, prints its metrics and the arrays it spoils, and exits saying where the first NaN is born."""
    folder = (workdir / "failure").absolute() if workdir else None
    if folder is None or not (folder / "failure.json").exists():
        raise InputError(
            f"There is no failed step in {workdir}: --run.replay goes with the command and folder of a run "
            "that stopped at a number that is not finite."
        )
    failure = json.loads((folder / "failure.json").read_text())
    with np.load(folder / "batch.npz") as file:
        batch = dict(file)
    shapes = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        program.state,
        program.layout,
    )
    with ocp.StandardCheckpointer() as saver:
        state = saver.restore(folder / "state", shapes)
    key = jax.random.fold_in(program.keys[failure["lane"]], state.step)
    new, metrics = jax.jit(exp.step)(state, batch, key)
    print(f"Step {failure['step'] + 1} again, from the saved state and batch:")
    for name, value in metrics.items():
        print(f"  {name} = {float(value):.6g}")
    for when, tree in (("before", state), ("after", new)):
        spoilt = [
            k for k, x in flatten(tree).items() if not np.isfinite(np.asarray(x, np.float32)).all()
        ]
        print(
            f"Arrays that are not finite {when} it: {', '.join(spoilt[:8]) or 'none'}"
            + (f" and {len(spoilt) - 8} more" if len(spoilt) > 8 else "")
        )
    with jax.debug_nans(True), jax.debug_infs(True):
        try:
            jax.block_until_ready(exp.step(state, batch, key))
        except FloatingPointError as e:
            raise SystemExit(f"The first one comes from: {_where(e)}") from None
    raise SystemExit(
        "Run operation by operation, the step gives no NaN and no infinity: it comes from how the compiled "
        "program orders its arithmetic."
    )


def _where(e: FloatingPointError) -> str:
    """The innermost line of the traceback outside of JAX, and what JAX said."""
    import traceback

    frames = [
        f
        for f in traceback.extract_tb(e.__traceback__)
        if not any(f"/{p}/" in f.filename for p in ("jax", "flax", "optax"))
    ]
    at = f"{frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line}\n  " if frames else ""
    return at + str(e).splitlines()[0]


def _on_host(batch: Tree) -> dict[str, np.ndarray]:
    if jax.process_count() == 1:
        return {k: np.asarray(v) for k, v in batch.items()}
    from jax.experimental import multihost_utils

    return {
        k: np.asarray(multihost_utils.process_allgather(v, tiled=True)) for k, v in batch.items()
    }
