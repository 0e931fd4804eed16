"""Steps in which a metric was not finite: their state and batch are saved and can be replayed."""

import json
import pathlib
from typing import Any, NoReturn
import zipfile
import zlib

import jax
import numpy as np

from ssljax import fingerprint
from ssljax.checkpoint import Damaged, flatten, restore_tree, save_tree
from ssljax.errors import InputError
from ssljax.record import damaged, read_json, write_whole

Tree = Any
AGAIN = "run the command without --run.replay, which fails and saves again"


def failed(
    exp, program, state: Tree, bad: tuple[int, int, str, float], workdir: pathlib.Path | None
) -> InputError:
    """Saves the state before a failed step, and its batch; returns the error to stop with."""
    lane, step, name, value = bad
    seed = f" of seed {program.seeds[lane]}" if len(program.seeds) > 1 else ""
    what = f"The metric {name}{seed} became {value} in step {step + 1}"
    if workdir is None:
        return InputError(
            f"{what}. Give --run.workdir to have the state and batch saved for --run.replay."
        )
    folder = (workdir / "failure").absolute()
    # No old one next to a new state.
    (folder / "failure.json").unlink(missing_ok=True)
    fed = next(exp.data.feed(program.seeds[lane], step, program.mesh))
    batch = _on_host(jax.jit(exp.data.batch)(program.resident, fed))
    content = save_tree(folder / "state", program.lane(state, lane))
    if jax.process_index() == 0:
        arrays: dict[str, Any] = batch  # As `savez` has an argument that is no array.
        np.savez(folder / "batch.npz", **arrays)
        failure = {"step": step, "metric": name, "lane": lane}
        failure |= {"batch": fingerprint.digest(batch), "state": content}
        write_whole(folder / "failure.json", json.dumps(failure, indent=1) + "\n")
    return InputError(
        f"{what}. The state before it and its batch are in {workdir / 'failure'}: run the same "
        "command with --run.replay to see where it comes from."
    )


def replay(exp, program, workdir: pathlib.Path | None) -> NoReturn:
    """Runs the saved step again, prints its metrics and the arrays that are not finite, and exits
    with the operation that gives the first NaN or infinity."""
    folder = (workdir / "failure").absolute() if workdir else None
    if folder is None or not (folder / "failure.json").exists():
        raise InputError(
            f"There is no failed step in {workdir}: --run.replay goes with the command and folder "
            "of a run that stopped at a number that is not finite."
        )
    failure, batch = _read(folder, len(program.seeds))
    shapes = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        program.state,
        program.layout,
    )
    try:
        state = restore_tree(folder / "state", shapes, failure["state"])
    except Damaged as e:
        raise damaged(folder / "state", str(e), AGAIN) from None
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
        "Run operation by operation, the step gives no NaN and no infinity: it comes from how the "
        "compiled program orders its arithmetic."
    )


def _read(folder: pathlib.Path, seeds: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Content of failure.json and batch.npz; InputError where one is damaged."""
    failure = read_json(folder / "failure.json", AGAIN)
    kinds = {"step": int, "lane": int, "batch": str, "state": dict}
    known = isinstance(failure, dict) and all(type(failure.get(k)) is v for k, v in kinds.items())
    if not known or not 0 <= failure["lane"] < seeds:
        raise damaged(folder / "failure.json", "it describes no step of a seed", AGAIN)
    try:
        with np.load(folder / "batch.npz", allow_pickle=False) as file:
            batch = dict(file)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as e:
        why = str(e).splitlines()[0]
    else:
        if fingerprint.digest(batch) == failure["batch"]:
            return failure, batch
        why = "it differs from what was saved"
    raise damaged(folder / "batch.npz", why, AGAIN)


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
