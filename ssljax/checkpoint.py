"""Checkpoints by Orbax, written in the background, whole or not at all, with array digests."""

from collections.abc import Callable, Mapping
import errno
import gc
import hashlib
import json
import logging
import pathlib
import shutil
import sys
from typing import Any, TYPE_CHECKING, TypeVar

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np

from ssljax import fingerprint
from ssljax.errors import advice, check_local, find_os_error, InputError, OF_MACHINE

if TYPE_CHECKING:
    import orbax.checkpoint as ocp  # Slow to import.

T = TypeVar("T")
Tree = Any
NO_DAMAGE = {*OF_MACHINE, errno.EACCES, errno.EPERM} - {errno.EIO}


class Damaged(Exception):
    """A checkpoint that can't be read, or whose arrays are not what was saved."""


class Checkpoints:
    """The checkpoints of one run, in `workdir`/checkpoints/STEP, of which the last `keep` stay."""

    def __init__(self, workdir: pathlib.Path, keep: int):
        self.workdir, self.path = workdir, workdir.absolute() / "checkpoints"
        self.manager = _manager(self.path, max_to_keep=keep, cleanup_tmp_directories=True)

    def restore_latest(self, shapes: Tree) -> tuple[int, Tree | None]:
        """The last whole checkpoint: its step and state; (0, None) where none was ever saved.

        Damaged ones after it are named and moved to `workdir`/damaged/STEP. InputError where all
        are damaged, or the last whole one holds other arrays than `shapes`.
        """
        damaged: dict[int, str] = {}
        for step in sorted(_steps(self.path), reverse=True):
            state, why = None, ""
            try:
                state = self.restore(step, shapes)
            except Damaged as e:
                why = str(e)
            if _everywhere(not why):
                self._set_aside(damaged, step)
                return step, state
            damaged[step] = why or "another process can't read it"
        if damaged:
            raise InputError(
                f"No checkpoint in {self.path} is whole ({_list(damaged)}): put back a copy of "
                "one, or choose another --run.workdir to start from scratch."
            )
        return 0, None

    def restore(self, step: int, shapes: Tree) -> Tree:
        """The state of `step`, laid out as `shapes`, a tree of ShapeDtypeStructs with shardings.

        Damaged where it can't be read or differs from what was saved; InputError where it holds
        other arrays than `shapes`.
        """

        def read() -> tuple[Tree, Mapping[str, int]]:
            forms, saved = _forms(self.manager, self.path, step)
            _compare(forms, shapes, self.path / str(step))
            state = _restored(self.manager, step, shapes)
            if saved:
                _verify(saved, dict(zip(flatten(state), digests(state), strict=True)))
            return state, saved

        state, saved = _try(read)
        if not saved:
            _print_unverified(self.path / str(step))
        return state

    def save(self, step: int, state: Tree) -> None:
        """Copies the state and returns, to write it in the background; a saved step is kept."""
        import orbax.checkpoint as ocp

        if self.manager.latest_step() == step:
            return
        try:
            args = ocp.args.Composite(
                default=ocp.args.StandardSave(state), digests=ocp.args.JsonSave(_content(state))
            )
            self.manager.save(step, args=args)
        except Exception as e:
            raise self._failed(step, e) from e

    def wait(self) -> None:
        """Waits until all is written."""
        try:
            self.manager.wait_until_finished()
        except Exception as e:
            raise self._failed(None, e) from e

    def close(self) -> None:
        """Ends the threads that write."""
        self.manager.close()

    def _set_aside(self, damaged: Mapping[int, str], whole: int) -> None:
        if not damaged:
            return
        if jax.process_index() == 0:
            for step in damaged:
                to = self.workdir / "damaged" / str(step)
                to.parent.mkdir(exist_ok=True)
                while to.exists():
                    to = to.with_name(f"{to.name}-again")
                shutil.move(self.path / str(step), to)
            print(
                f"Note: Damaged checkpoints were moved to {self.workdir / 'damaged'} "
                f"({_list(damaged)}); step {whole} is whole."
            )
        _everywhere(True)  # Nobody looks at the folder before it is in order.
        self.manager.reload()

    def _failed(self, step: int | None, e: Exception) -> InputError:
        whole = max(_steps(self.path), default=None)
        which = "The last checkpoint" if step is None else f"A checkpoint due by step {step}"
        rest = (
            "nothing had been saved before" if whole is None else f"that of step {whole} is there"
        )
        found = find_os_error(e)
        cure = advice(found) if found else "Run the same command again to resume."
        return InputError(
            f"{which} could not be written to {self.path} ({_first_line(e)}); {rest}. {cure}"
        )


def last_step(workdir: pathlib.Path) -> int:
    """The step of the last checkpoint in a run's folder, whole or not; 0 where there is none."""
    return max(_steps(workdir / "checkpoints"), default=0)


def load_state(workdir: str | pathlib.Path, seed: int = 0) -> dict[str, Any]:
    """The last whole checkpoint of another run, as nested dictionaries of host arrays.

    Its keys are "params", "opt_state", "extra" and "step". Of a run with several seeds, lane `seed`
    (counted from 0). Damaged checkpoints after it are named. InputError where there is none.
    """
    check_local(workdir, "The run")
    path = pathlib.Path(workdir).expanduser().absolute() / "checkpoints"
    damaged: dict[int, str] = {}
    while True:
        steps = _steps(path)
        damaged = {step: why for step, why in damaged.items() if step in steps}
        steps -= damaged.keys()
        if not steps and damaged:
            raise InputError(
                f"No checkpoint in {path} is whole ({_list(damaged)}): put back a copy of one, or "
                "train that run again."
            )
        if not steps:
            raise InputError(
                f"{workdir} holds no checkpoint: give the folder of a run that has saved one."
            )
        try:
            state, saved = _try(lambda: _load(path, max(steps)))
            break
        except Damaged as e:  # Or removed meanwhile by the run, which keeps the last few.
            damaged[max(steps)] = str(e)
    if not saved:
        _print_unverified(path / str(max(steps)))
    if damaged and jax.process_index() == 0:
        print(
            f"Note: Damaged checkpoints in {path} are left out ({_list(damaged)}); step "
            f"{max(steps)} is loaded."
        )
    several = isinstance(state, (list, tuple))  # Seeds that were trained one after another.
    count = len(state) if several else len(np.atleast_1d(state["step"]))
    if not 0 <= seed < count:
        raise InputError(
            f"{workdir} holds {count} seed{'s' * (count > 1)}: there is no lane {seed}."
        )
    if several:
        state = state[seed]
    elif np.ndim(state["step"]):
        state = jax.tree.map(lambda x: x[seed], state)
    fingerprint.report(str(workdir), f"weights of seed {seed}", 1, state["params"])
    return state


def save_tree(folder: pathlib.Path, tree: Tree) -> dict[str, Any]:
    """Writes a tree of arrays by itself; returns what `restore_tree` verifies it by."""
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as saver:
        saver.save(folder.absolute(), tree, force=True)
    return _content(tree)


def restore_tree(folder: pathlib.Path, shapes: Tree, content: Mapping[str, Any]) -> Tree:
    """The tree that `save_tree` has written, laid out as `shapes`.

    Damaged where it differs, InputError where `shapes` are of other arrays.
    """
    import orbax.checkpoint as ocp

    def read() -> Tree:
        forms, saved = _verified(content)
        _compare(forms, shapes, folder)
        with ocp.StandardCheckpointer() as saver:
            tree = saver.restore(folder.absolute(), shapes)
        _verify(saved, dict(zip(flatten(tree), digests(tree), strict=True)))
        return tree

    return _try(read)


def _load(path: pathlib.Path, step: int) -> tuple[Tree, Mapping[str, int]]:
    with _manager(path, read_only=True) as manager:
        forms, saved = _forms(manager, path, step)
        tree = _metadata(manager, step)
        if saved and {k: _form(x) for k, x in flatten(tree).items()} != forms:
            raise Damaged("its metadata differs from what was saved")
        target = jax.tree.map(lambda m: np.empty(m.shape, m.dtype), tree)
        state = _restored(manager, step, target)
    if saved:
        _verify(saved, {k: host_digest(x) for k, x in flatten(state).items()})
    return state, saved


def _print_unverified(folder: pathlib.Path) -> None:
    if jax.process_index() == 0:
        print(f"Note: {folder} is of a version that saved no digests: it can't be verified.")


def _manager(path: pathlib.Path, **options: Any) -> "ocp.CheckpointManager":
    import orbax.checkpoint as ocp

    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax's running commentary.
    return ocp.CheckpointManager(
        epath.Path(path),
        options=ocp.CheckpointManagerOptions(**options),
        item_handlers={
            "default": ocp.StandardCheckpointHandler(),
            "digests": ocp.JsonCheckpointHandler(),
        },
    )


def _restored(manager: "ocp.CheckpointManager", step: int, shapes: Tree) -> Tree:
    import orbax.checkpoint as ocp

    args = ocp.args.Composite(default=ocp.args.StandardRestore(shapes))
    return manager.restore(step, args=args)["default"]


def _steps(path: pathlib.Path) -> set[int]:
    """Steps that have a folder, whole or damaged."""
    if not path.is_dir():
        return set()
    return {int(p.name) for p in path.iterdir() if p.name.isascii() and p.name.isdigit()}


def _everywhere(mine: bool) -> bool:
    """Whether it is so in every process; all must call this together."""
    if jax.process_count() == 1:
        return mine
    from jax.experimental import multihost_utils

    return bool(np.all(multihost_utils.process_allgather(np.bool_(mine))))


def _try(read: Callable[[], T]) -> T:
    """`read()`; Damaged for what goes wrong in it that is no lack of memory or rights."""
    logger, hook = logging.getLogger("asyncio"), sys.unraisablehook
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # Orbax leaves tasks whose errors asyncio would print.
    sys.unraisablehook = lambda _: None
    try:
        try:
            return read()
        except (InputError, Damaged, MemoryError):
            raise
        except Exception as e:
            found = find_os_error(e)
            if "RESOURCE_EXHAUSTED" in str(e) or (found and found.errno in NO_DAMAGE):
                raise
            why = f"it can't be read, {_first_line(e)}"
        gc.collect()
    finally:
        logger.setLevel(level)
        sys.unraisablehook = hook
    raise Damaged(why)


def _list(damaged: Mapping[int, str]) -> str:
    return "; ".join(f"step {step}: {why}" for step, why in damaged.items())


def _first_line(e: Exception) -> str:
    text = (str(e).strip() or type(e).__name__).splitlines()[0][:150]
    return "".join(c if c.isprintable() else "?" for c in text)


def flatten(tree: Tree) -> dict[str, Any]:
    """{path: leaf}, with slashes."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): x
        for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


def _form(x: Any) -> str:
    """An array's type and shape, as in float32[3, 4]."""
    return f"{np.dtype(x.dtype).name}{list(x.shape)}"


def _forms(
    manager: "ocp.CheckpointManager", path: pathlib.Path, step: int
) -> tuple[dict[str, str], dict[str, int]]:
    """{path: form} and {path: digest} of a step's arrays; no digests in one of an older version."""
    import orbax.checkpoint as ocp

    if not (path / str(step) / "digests").exists():
        tree = _metadata(manager, step)
        return {k: _form(x) for k, x in flatten(tree).items()}, {}
    args = ocp.args.Composite(digests=ocp.args.JsonRestore())
    return _verified(manager.restore(step, args=args)["digests"])


def _verified(content: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, int]]:
    """{path: form} and {path: digest} of what `_content` gave."""
    arrays = content["arrays"]
    if content["sha256"] != _sha256(arrays):
        raise Damaged("its digests differ from those saved")
    return {k: form for k, (form, _) in arrays.items()}, {k: d for k, (_, d) in arrays.items()}


def _metadata(manager: "ocp.CheckpointManager", step: int) -> Tree:
    found = manager.item_metadata(step)["default"]
    if found is None:
        raise Damaged("its metadata is missing")
    return found.tree


def _content(state: Tree) -> dict[str, Any]:
    """The item "digests" of a step: the form and digest of each array, and a digest of these."""
    found = zip(flatten(state).items(), digests(state), strict=True)
    arrays = {k: [_form(x), digest] for (k, x), digest in found}
    return {"arrays": arrays, "sha256": _sha256(arrays)}


def _sha256(arrays: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(arrays, sort_keys=True).encode()).hexdigest()


def _verify(saved: Mapping[str, int], found: Mapping[str, int]) -> None:
    wrong = [k for k in found if found[k] != saved.get(k)]
    if wrong or len(found) != len(saved):
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise Damaged(f"{wrong[0] if wrong else 'its tree'}{more} differs from what was saved")


def _compare(saved: Mapping[str, str], wanted: Tree, where: pathlib.Path) -> None:
    """InputError that names the first arrays in which a checkpoint differs from the program's."""
    there = dict(sorted(saved.items()))
    here = {k: _form(x) for k, x in flatten(wanted).items()}
    differ = [
        f"{k} is {there[k]} there and {here[k]} here"
        for k in there
        if k in here and there[k] != here[k]
    ]
    differ += [f"{k} is only there" for k in there if k not in here]
    differ += [f"{k} is only here" for k in here if k not in there]
    if differ:
        more = f", and {len(differ) - 3} more" if len(differ) > 3 else ""
        raise InputError(
            f"The checkpoint {where} is of another model: {'; '.join(differ[:3])}{more}. Use the "
            "code and arguments it was made with, or another --run.workdir."
        )


# Digests. Each word of 32 bits is changed by a bijection that depends on its place, and the sum of
# all, modulo 2^32, is the digest: it sees any change within one word with certainty, others but for
# a chance of 2^-32, and it is the same however an array is split over devices.

PLACE, MIX = 0x9E3779B1, ((15, 0x85EBCA77), (13, 0xC2B2AE3D), (16, 1))


def digests(tree: Tree) -> list[int]:
    """Digest of each array of a tree, computed where it lies; all processes must call this."""
    return [int(x) for x in jax.device_get([_digest_there(x) for x in jax.tree.leaves(tree)])]


def _digest_there(x: jax.Array) -> jax.Array | int:
    if next(iter(x.sharding.device_set)).platform != "cpu":
        return _digest(x)
    if x.is_fully_addressable or x.is_fully_replicated:
        return host_digest(np.asarray(x))  # Nothing to compile, and faster than XLA there.
    return jax.block_until_ready(_digest(x))  # Queued programs of several devices may deadlock.


@jax.jit
def _digest(x: jax.Array) -> jax.Array:
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        x = jnp.stack([x.real, x.imag], -1)
    x = x.astype(_whole_bytes(x.dtype))
    x = jax.lax.bitcast_convert_type(x, f"uint{8 * min(x.dtype.itemsize, 4)}").astype(jnp.uint32)
    place, stride = jnp.zeros(x.shape, jnp.uint32), 1
    for axis in reversed(range(x.ndim)):
        along = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
        place += along * jnp.uint32(stride % 2**32)
        stride *= x.shape[axis]
    word = x ^ place * jnp.uint32(PLACE)
    for shift, factor in MIX:
        word = (word ^ word >> shift) * jnp.uint32(factor)
    return word.sum(dtype=jnp.uint32)


def host_digest(x: np.ndarray, chunk: int = 2**16) -> int:
    """The same digest of a host array."""
    x = np.asarray(x)
    x = x.astype(_whole_bytes(x.dtype), order="C", copy=False)
    size = 4 if np.issubdtype(x.dtype, np.complexfloating) else min(x.dtype.itemsize, 4)
    words, total = x.reshape(-1).view(f"uint{8 * size}"), 0
    steps = np.arange(min(chunk, len(words)), dtype=np.uint32) * np.uint32(PLACE)
    for start in range(0, len(words), chunk):  # Small enough for the processor's cache.
        word = words[start : start + chunk].astype(np.uint32)
        word ^= steps[: len(word)] + np.uint32(start * PLACE % 2**32)
        for shift, factor in MIX:
            word ^= word >> np.uint32(shift)
            word *= np.uint32(factor)
        total += int(word.sum(dtype=np.uint32))
    return total % 2**32


def _whole_bytes(dtype: Any) -> Any:
    """The type as which an array is digested: booleans and types of under 8 bits are widened."""
    if jnp.issubdtype(dtype, jnp.bool_):
        return np.uint8
    kind = "integer" if jnp.issubdtype(dtype, jnp.integer) else "float"
    if kind == "float" and not jnp.issubdtype(dtype, jnp.floating):
        return dtype
    bits = jnp.iinfo(dtype).bits if kind == "integer" else jnp.finfo(dtype).bits
    if bits >= 8:
        return dtype
    return np.int8 if kind == "integer" else np.float32
