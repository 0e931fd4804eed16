"""Features of a whole set of images, computed once for all evaluators, on one device or a mesh."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
import functools
from typing import Any
import weakref

import jax
from jax import Array
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from ssljax import signals
from ssljax.data.feed import local_rows
from ssljax.errors import InputError

Tree = Any
Encode = Callable[[Tree, Array], Array]  # (state, (n, H, W, C) uint8) -> (n, d)
PART = 2**25  # Most numbers in a part of a set that is on the device at a time, if not one example.


def features(encode: Encode, state: Tree, data: Any, batch_size: int = 1000) -> np.ndarray:
    """`encode(state, images)` of every image of `data`, in order: (n, d) float32, read-only."""
    return extractor(encode, batch_size)(state, data)


@functools.lru_cache(maxsize=8)  # Evaluators that share an `encode` share its program and results.
def extractor(encode: Encode, batch_size: int = 1000) -> Callable[..., np.ndarray]:
    """`(state, data, indices=None) -> (n, d)` float32; `encode` is compiled for one batch size.

    InputError if `encode` doesn't return (n, d), or if a feature is not finite.
    """
    run = _encoder(encode)

    def extract(state: Tree, data: Any, indices: np.ndarray) -> np.ndarray:
        out = np.empty((len(indices), 0), np.float32)
        for start, n, images in batches(data, indices, batch_size, split=True):
            z = np.asarray(run(state, put(images, split=True)))
            if start == 0:
                out = np.empty((len(indices), z.shape[1]), np.float32)
            out[start : start + n] = z[:n]
        if not np.isfinite(out).all():
            bad = len(out) - np.isfinite(out).all(1).sum()
            raise InputError(f"{bad} of {len(out)} images have features that are not finite.")
        out.flags.writeable = False  # Several evaluators hold it.
        return out

    return _remember(extract)


@functools.lru_cache(maxsize=8)
def _encoder(encode: Encode) -> Callable[[Tree, Array], Array]:
    """`encode` compiled, float32. InputError if it doesn't return (n, d)."""

    def run(state, images):
        z = encode(state, images)
        if not isinstance(z, Array) or z.ndim != 2 or len(z) != len(images):
            raise InputError(
                f"encode must return features (n, d); {images.shape} images gave {jnp.shape(z)}."
            )
        return z.astype(jnp.float32)

    return gathered(run)


def trace_features(encode: Encode, state: Tree, data: Any, batch_size: int = 1000) -> int:
    """Number of features of `encode` on `state`, a tree of shapes; nothing is computed.

    InputError if `encode` doesn't return (n, d).
    """
    n = part_size(data, len(data), batch_size)
    return jax.eval_shape(_encoder(encode), state, examples(data, n)).shape[1]


def examples(data: Any, n: int) -> jax.ShapeDtypeStruct:
    """Shape and type of `n` examples of `data`; InputError where it is empty."""
    shape = _shape(data)
    return jax.ShapeDtypeStruct((n, *shape), data.read(np.arange(1))["image"].dtype)


def _shape(data: Any) -> tuple[int, ...]:
    if not len(data):
        raise InputError("A set to evaluate on is empty: add examples to the data.")
    return tuple(data.shape)


def check_shapes(train: Any, test: Any) -> None:
    """InputError unless the examples of both sets have one shape."""
    a, b = _shape(train), _shape(test)
    if a != b:
        raise InputError(
            f"The training examples are of shape {a} and the test examples of shape {b}: both sets "
            "must have one shape (--image-size resizes images)."
        )


def raw_pixels(
    data: Any, indices: np.ndarray | None = None, chunk: int = 1000, most: int = 0
) -> np.ndarray:
    """Images as features: (n, H*W*C) float32 in [0, 1].

    Images are shrunk to `most` pixels on the longer side, unless it is 0.
    """
    indices = np.arange(len(data)) if indices is None else indices
    whole, several = gathered(lambda x: x), jax.process_count() > 1
    parts = []
    for _, n, images in batches(data, indices, chunk, pad=several, split=several):
        # Each process has read a part of them.
        images = np.asarray(whole(put(images, split=True)))[:n] if several else images
        parts.append(_shrunk(images, most).reshape(n, -1) / np.float32(255))
    return np.concatenate(parts)


def _shrunk(images: np.ndarray, most: int) -> np.ndarray:
    if images.ndim != 4:
        return images
    size = shrunk_size(images.shape[1:3], most)
    if size == images.shape[1:3]:
        return images
    x, shape = images.astype(np.float32), (len(images), *size, images.shape[3])
    return np.asarray(jax.image.resize(x, shape, "linear"))


def shrunk_size(size: tuple[int, ...], most: int) -> tuple[int, ...]:
    """Height and width of an image whose longer side is shrunk to `most` pixels, unless it is 0."""
    longer = max(size)
    if not most or longer <= most:
        return size
    return tuple(max(1, round(most * s / longer)) for s in size)


def unit_rows(z: np.ndarray) -> np.ndarray:
    """Rows of `z` (n, d) at length 1; a row of zeros stays."""
    return z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)


def subset(data: Any, n: int, seed: int = 0) -> np.ndarray:
    """Indices, in order, of `n` images drawn without replacement; all where there are fewer."""
    return np.sort(np.random.default_rng(seed).permutation(len(data))[:n])


def part_size(data: Any, n: int, size: int) -> int:
    """Examples in a part of `n` of `data`: `size`, or as many as `PART` numbers allow."""
    most = max(1, PART // max(1, int(np.prod(_shape(data)))))
    return round_up(min(size, n, most))


def batches(
    data: Any, indices: np.ndarray, size: int, pad: bool = True, split: bool = False
) -> Iterator[tuple[int, int, np.ndarray]]:
    """(start, n, images), by `in_parts`: `size` images at a time, of which the first n count.

    Parts are smaller where images are large, so that no more than `PART` numbers are in one. With
    `split`, for `put(images, split=True)`, a process reads the images of its own devices alone, and
    the others are 0.
    """
    size = min(size, part_size(data, len(indices), size)) if len(indices) else size
    mesh = jax.sharding.get_mesh()  # Which the thread that reads does not know.

    def read(at: np.ndarray) -> np.ndarray:
        along = _along(mesh, len(at), split)
        own = np.arange(len(at)) if along is None else np.array(local_rows(along, len(at)))
        found = data.read(at[own])["image"]
        if len(own) == len(at):
            return found
        images = np.zeros((len(at), *found.shape[1:]), found.dtype)
        images[own] = found
        return images

    return in_parts(read, indices, size, pad)


def in_parts(
    read: Callable[[np.ndarray], np.ndarray], indices: np.ndarray, size: int, pad: bool = True
) -> Iterator[tuple[int, int, np.ndarray]]:
    """(start, n, rows): `read(indices)`, `size` rows at a time, of which the first n count.

    The next part is read meanwhile. With `pad` the rows of a part are repeated, so that all parts
    have one length that the devices share evenly: what is drawn with a key for a row doesn't depend
    on the number of devices. InputError without indices; a signal to the run ends it between parts.
    """
    if not len(indices):
        raise InputError("A set to evaluate on is empty: add examples to the data.")
    size = min(size, len(indices))
    room = round_up(size)
    with ThreadPoolExecutor(1) as pool:

        def begin(start):
            at = indices[start : start + size]
            return pool.submit(read, np.resize(at, room) if pad else at)

        ahead = begin(0)
        for start in range(0, len(indices), size):
            signals.check()
            rows = ahead.result()
            if start + size < len(indices):
                ahead = begin(start + size)
            yield start, min(size, len(indices) - start), rows


def gathered(f: Callable) -> Callable:
    """`jax.jit(f)` with results whole on every device, so that any process can read them."""
    alone, meshed = jax.jit(f), jax.jit(f, out_shardings=P())

    def run(*args: Any) -> Any:
        return (alone if jax.sharding.get_abstract_mesh().empty else meshed)(*args)

    return run


def put(x: np.ndarray, split: bool = False) -> Array:
    """`x` on the devices of the mesh: copied, or with its rows split if the devices share them.

    Every process must hold the same `x`, or, where it is split, the same rows of its own devices:
    it sends them no others.
    """
    along = _along(jax.sharding.get_mesh(), len(x) if split else 1, split)
    if along is None:
        return jnp.asarray(x)
    return jax.make_array_from_callback(x.shape, along, lambda index: x[index])


def _along(mesh: Mesh, n: int, split: bool) -> NamedSharding | None:
    """How `n` rows lie on the devices; None without a mesh."""
    if mesh.empty:
        return None
    return NamedSharding(mesh, P(mesh.axis_names) if split and n % mesh.size == 0 else P())


def round_up(n: int) -> int:
    """Least number of rows, `n` or more, that the devices of the mesh share evenly."""
    size = max(1, jax.sharding.get_abstract_mesh().size)
    return -(-n // size) * size


def _remember(extract: Callable[[Tree, Any, np.ndarray], np.ndarray]) -> Callable[..., np.ndarray]:
    """`extract` with a memory for the same images, or some of them, of the very same arrays of the
    state.

    jax.Arrays cannot change, so identity is enough; the memory is emptied when one is deleted.
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
        if structure != tree or any(r() is not x for r, x in zip(refs, leaves, strict=True)):
            found.clear()
            refs, tree = [weakref.ref(x, lambda _: found.clear()) for x in leaves], structure
        if (whole := found.get((id(data), None))) and key[1] is not None:
            rows = whole[0][indices]
            rows.flags.writeable = False
            return rows
        if key not in found:
            # While the data is held, no other can have its id.
            found[key] = extract(state, data, indices), data
        return found[key][0]

    return look
