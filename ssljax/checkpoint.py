"""Checkpoints by Orbax: written in the background, whole or not at all, the last few kept."""

import logging
import pathlib
from typing import Any

from etils import epath
import jax
import numpy as np
import orbax.checkpoint as ocp

from ssljax.errors import InputError

Tree = Any


class Checkpoints:
    """The checkpoints of one run, in `workdir`/checkpoints/STEP."""

    def __init__(self, workdir: pathlib.Path, keep: int):
        logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax's running commentary.
        self.path = workdir.absolute() / "checkpoints"
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
        self.manager = ocp.CheckpointManager(
            epath.Path(self.path), options=options, item_handlers=ocp.StandardCheckpointHandler()
        )

    def latest(self) -> int | None:
        """The last step that was saved whole."""
        return self.manager.latest_step()

    def restore_latest(self, shapes: Tree) -> tuple[int, Tree | None]:
        """The last step that was saved whole and its state; (0, None) where there is none."""
        step = self.latest()
        return (0, None) if step is None else (step, self.restore(step, shapes))

    def restore(self, step: int, shapes: Tree) -> Tree:
        """The state of `step`, laid out as `shapes`, a tree of ShapeDtypeStructs with shardings.

        InputError where the checkpoint holds other arrays than that, or can't be read.
        """
        _compare(_metadata(self.manager, step, self.path), shapes, self.path / str(step))
        try:
            return self.manager.restore(step, args=ocp.args.StandardRestore(shapes))
        except Exception as e:
            raise _unreadable(self.path, step, e) from e

    def save(self, step: int, state: Tree) -> None:
        """Copies the state and returns; the writing goes on in the background. What was saved already is kept."""
        if self.manager.latest_step() == step:
            return
        try:
            self.manager.save(step, args=ocp.args.StandardSave(state))
        except Exception as e:
            raise self._failed(step, e) from e

    def wait(self) -> None:
        """Until all is written."""
        try:
            self.manager.wait_until_finished()
        except Exception as e:
            raise self._failed(None, e) from e

    def close(self) -> None:
        self.manager.close()

    def _failed(self, step: int | None, e: Exception) -> InputError:
        whole = max((int(p.name) for p in self.path.iterdir() if p.name.isdigit()), default=None)
        which = "The last checkpoint" if step is None else f"A checkpoint due by step {step}"
        rest = (
            "nothing had been saved before"
            if whole is None
            else f"the one of step {whole} is whole"
        )
        return InputError(
            f"{which} could not be written to {self.path} ({_first_line(e)}); {rest}. Make room and run "
            "the same command again to go on from there."
        )


def load(workdir: str | pathlib.Path, seed: int = 0) -> dict[str, Any]:
    """The last checkpoint of another run as nested dictionaries of host arrays: "params", "opt_state", "extra", "step".

    Of a run with several seeds, lane `seed` (counted from 0). InputError where there is none.
    """
    path = pathlib.Path(workdir).expanduser().absolute() / "checkpoints"
    steps = [int(p.name) for p in path.iterdir() if p.name.isdigit()] if path.is_dir() else []
    if not steps:
        raise InputError(
            f"{workdir} holds no checkpoint: give the folder of a run that has saved one."
        )
    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        with ocp.CheckpointManager(
            epath.Path(path),
            options=ocp.CheckpointManagerOptions(read_only=True),
            item_handlers=ocp.StandardCheckpointHandler(),
        ) as manager:
            shapes = _metadata(manager, max(steps), path)
            target = jax.tree.map(lambda m: np.empty(m.shape, m.dtype), shapes)
            state = manager.restore(max(steps), args=ocp.args.StandardRestore(target))
    except InputError:
        raise
    except Exception as e:
        raise _unreadable(path, max(steps), e) from e
    several = isinstance(state, (list, tuple))  # Seeds that were trained one after another.
    count = len(state) if several else len(np.atleast_1d(state["step"]))
    if not 0 <= seed < count:
        raise InputError(
            f"{workdir} holds {count} seed{'s' * (count > 1)}: there is no lane {seed}."
        )
    if several:
        return state[seed]
    return jax.tree.map(lambda x: x[seed], state) if np.ndim(state["step"]) else state


def _metadata(manager: ocp.CheckpointManager, step: int, path: pathlib.Path) -> Tree:
    try:
        return manager.item_metadata(step).tree
    except Exception as e:
        raise _unreadable(path, step, e) from e


def _unreadable(path: pathlib.Path, step: int, e: Exception) -> InputError:
    return InputError(
        f"The checkpoint {path / str(step)} can't be read ({_first_line(e)}): delete that folder to go on "
        "from the one before it, or from the start if there is none."
    )


def _first_line(e: Exception) -> str:
    return (str(e).strip() or type(e).__name__).splitlines()[0][:200]


def flatten(tree: Tree) -> dict[str, Any]:
    """{path: leaf}, with slashes."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): x
        for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


def _compare(saved: Tree, wanted: Tree, where: pathlib.Path) -> None:
    """InputError that names the first arrays in which a checkpoint differs from what the program needs."""
    a, b = flatten(saved), flatten(wanted)
    form = lambda x: f"{np.dtype(x.dtype).name}{list(x.shape)}"
    differ = [
        f"{k} is {form(a[k])} there and {form(b[k])} here"
        for k in a
        if k in b and form(a[k]) != form(b[k])
    ]
    differ += [f"{k} is only there" for k in a if k not in b] + [
        f"{k} is only here" for k in b if k not in a
    ]
    if differ:
        more = f", and {len(differ) - 3} more" if len(differ) > 3 else ""
        raise InputError(
            f"The checkpoint {where} is of another model: {'; '.join(differ[:3])}{more}. Use the code and "
            "arguments it was made with, or another --run.workdir."
        )
