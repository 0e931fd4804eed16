"""Features of a whole set of images, shared by the evaluators that want the same, on one device or over a mesh."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
import functools
from typing import Any
import weakref

import jax
from jax import Array
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from ssljax.errors import InputError

Tree = Any
Encode = Callable[[Tree, Array], Array]  # (state, (n, H, W, C) uint8) -> (n, d)


def features(encode: Encode, state: Tree, data: Any, batch_size: int = 1000) -> np.ndarray:
    """`encode(state, images)` of every image of `data`, in order: (n, d) float32, read-only."""
    return extractor(encode, batch_size)(state, data)


@functools.lru_cache(
    maxsize=8
)  # Evaluators that share an `encode` share its program and what it has found.
def extractor(encode: Encode, batch_size: int = 1000) -> Callable[..., np.ndarray]:
    """`(state, data, indices=None) -> (n, d)` float32; `encode` is compiled once, for one batch size.

    InputError if `encode` doesn't return (n, d), or if a feature is not finite.
    """

    @gathered
    def run(state, images):
        z = encode(state, images)
        if z.ndim != 2 or len(z) != len(images):
            raise InputError(
                f"encode must return features (n, d); {images.shape} images gave {z.shape}."
            )
        return z.astype(jnp.float32)

    def extract(state: Tree, data: Any, indices: np.ndarray) -> np.ndarray:
        out = None
        for start, n, images in batches(data, indices, batch_size):
            z = np.asarray(run(state, put(images, split=True)))
            out = np.empty((len(indices), z.shape[1]), np.float32) if out is None else out
            out[start : start + n] = z[:n]
        if not np.isfinite(out).all():
            bad = len(out) - np.isfinite(out).all(1).sum()
            raise InputError(f"{bad} of {len(out)} images have features that are not finite.")
        out.flags.writeable = False  # Several evaluators hold it.
        return out

    return _remember(extract)


def raw_pixels(
    data: Any, indices: np.ndarray | None = None, chunk: int = 1000, most: int = 0
) -> np.ndarray:
    """The images themselves as features: (n, H*W*C) float32 in [0, 1], shrunk to `most` pixels on the longer side, if
    any: a probe of d features needs room for d² numbers."""
    indices = np.arange(len(data)) if indices is None else indices
    return np.concatenate(
        [
            _shrunk(images, most).reshape(len(images), -1) / np.float32(255)
            for _, _, images in batches(data, indices, chunk, pad=False)
        ]
    )


def _shrunk(images: np.ndarray, most: int) -> np.ndarray:
    if not most or images.ndim != 4 or max(images.shape[1:3]) <= most:
        return images
    size = [max(1, round(most * s / max(images.shape[1:3]))) for s in images.shape[1:3]]
    return np.asarray(
        jax.image.resize(images.astype(np.float32), (len(images), *size, images.shape[3]), "linear")
    )


def subset(data: Any, n: int, seed: int = 0) -> np.ndarray:
    """The indices, in order, of `n` images drawn without replacement, or of all where there are fewer."""
    return np.sort(np.random.default_rng(seed).permutation(len(data))[:n])


def batches(
    data: Any, indices: np.ndarray, size: int, pad: bool = True
) -> Iterator[tuple[int, int, np.ndarray]]:
    """(start, n, images), by `in_parts`: `size` at a time, of which only the first n count."""
    return in_parts(lambda at: data.read(at)["image"], indices, size, pad)


def in_parts(
    read: Callable[[np.ndarray], np.ndarray], indices: np.ndarray, size: int, pad: bool = True
) -> Iterator[tuple[int, int, np.ndarray]]:
    """(start, n, rows): `read(indices)`, `size` at a time, the next being read meanwhile. Only the first n rows count.

    Behind them, where they are to `pad`, they are repeated, so that all parts have one length, which the devices share
    evenly: what is drawn with a key for a row doesn't depend on how many devices there are. InputError without indices.
    """
    if not len(indices):
        raise InputError("A set to evaluate on is empty.")
    size = min(size, len(indices))
    room = round_up(size)
    with ThreadPoolExecutor(1) as pool:

        def begin(start):
            at = indices[start : start + size]
            return pool.submit(read, np.resize(at, room) if pad else at)

        ahead = begin(0)
        for start in range(0, len(indices), size):
            rows = ahead.result()
            if start + size < len(indices):
                ahead = begin(start + size)
            yield start, min(size, len(indices) - start), rows


def gathered(f: Callable) -> Callable:
    """`jax.jit(f)` with results whole on every device, so that any process can read them as numpy arrays."""
    alone, meshed = jax.jit(f), jax.jit(f, out_shardings=P())
    return lambda *args: (alone if jax.sharding.get_abstract_mesh().empty else meshed)(*args)


def put(x: np.ndarray, split: bool = False) -> Array:
    """`x` on the devices of the mesh: copied or, if asked and if they share them evenly, its rows split.

    Every process must hold the same `x`; each sends its own devices no more than their rows.
    """
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        return jnp.asarray(x)
    spec = P(mesh.axis_names) if split and len(x) % mesh.size == 0 else P()
    return jax.make_array_from_callback(x.shape, NamedSharding(mesh, spec), lambda index: x[index])


def round_up(n: int) -> int:
    """The least number of rows, `n` or more, that the devices of the mesh share evenly."""
    size = max(1, jax.sharding.get_abstract_mesh().size)
    return -(-n // size) * size


def _remember(extract: Callable[[Tree, Any, np.ndarray], np.ndarray]) -> Callable[..., np.ndarray]:
    """`extract` that looks up what it has found for the same images and the very same arrays of the state.

    jax.Arrays cannot change, so identity is enough; all is forgotten as soon as one of them is gone.
    """
    found: dict = {}
    refs, tree = [], jax.tree.structure(None)

    def look(state: Tree, data: Any, indices: np.ndarray | None = None) -> np.ndarray:
        nonlocal refs, tree
        key = id(data), None if indices is None else indices.tobytes()
        indices = np.arange(len(data)) if indices is None else indices
        leaves, structure = jax.tree.flatten(state)
        if not all(isinstance(x, Array) for x in leaves):
            return extract(state, data, indices)
        if structure != tree or any(r() is not x for r, x in zip(refs, leaves)):
            found.clear()
            refs, tree = [weakref.ref(x, lambda _: found.clear()) for x in leaves], structure
        if key not in found:
            found[key] = (
                extract(state, data, indices),
                data,
            )  # While the data is held, its id is no other's.
        return found[key][0]

    return look
