"""Runs that are saved without training, with random arrays: all that a loader needs, at no cost."""

from collections.abc import Callable
import inspect
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssljax import fingerprint, record, TrainState
from ssljax.checkpoint import Checkpoints
from ssljax.loaded import batch_of


def drawn(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Values for an array of a net by its name, so that outputs are neither 0 nor huge."""
    last = name.replace(".", "/").split("/")[-1]
    if last in ("var", "running_var", "scale") or (last == "weight" and len(shape) == 1):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    size = 0.1 if len(shape) < 2 else float(np.prod(shape) / max(shape)) ** -0.5
    return (size * rng.normal(size=shape)).astype(np.float32)


def random_state(exp: Any, seed: int = 0) -> TrainState:
    """A state of the shapes of an experiment's, without an optimizer's arrays."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(exp.init, jax.random.key(0), batch_of(exp)).replace(opt_state=())

    def draw(path: Any, x: Any) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        whole = not jnp.issubdtype(x.dtype, jnp.floating)
        return jnp.asarray(np.zeros(x.shape) if whole else drawn(name, x.shape, rng), x.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def save_run(make: Callable, folder: pathlib.Path, seed: int = 0, **arguments: Any) -> TrainState:
    """Saves an experiment at a random state, as a run of one step would; returns the state."""
    with fingerprint.reading() as read:
        exp = make(**arguments)
    state = random_state(exp, seed).replace(step=jnp.ones((), jnp.int32))
    source = inspect.getsourcefile(inspect.unwrap(make))
    folder.mkdir(parents=True)
    record.write_record(
        folder,
        None,
        record.computes_of(arguments) | {"run": {"seed": 0, "seeds": 1}},
        source,
        0,
        read,
        lanes="vmap",
        num_steps=1,
        batch_size=exp.data.batch_size,
        files=None,
        kept=record.kept_form(exp.kept, state),
        experiment=os.path.basename(source or ""),
    )
    for name, text in exp.files.items():
        (folder / name).write_text(text)
    checkpoints = Checkpoints(folder, 1)
    checkpoints.save(1, state)
    checkpoints.wait()
    checkpoints.close()
    return state
