"""Feeds: batches gathered on the devices from a resident set, or streamed from the hosts."""

from collections import deque
from collections.abc import Iterator, Mapping, Sized
from dataclasses import dataclass
import itertools
from typing import Any, Protocol

import jax
from jax.sharding import Mesh, NamedSharding
import numpy as np

from ssljax import sharding
from ssljax.data.order import indices
from ssljax.data.sources import Arrays, Source
from ssljax.errors import InputError

Tree = Any


class Data(Protocol):
    """Training set as a run reads it. The batch of step i depends on (seed, i) alone."""

    @property
    def batch_size(self) -> int:
        """Examples in a batch, over all devices."""
        ...

    def resident(self) -> Tree:
        """Host arrays that are put on the devices once, whole on each."""
        ...

    def feed(self, seed: int, start: int, mesh: Mesh) -> Iterator[Tree]:
        """Arrays that are sent to the devices for steps start, start + 1, ...

        They are small NumPy arrays, or arrays that lie on the mesh already.
        """
        ...

    def batch(self, resident: Tree, fed: Tree) -> Tree:
        """The batch, made from both inside the jitted step."""
        ...


def feed(source: Source, batch_size: int) -> Data:
    """Whole epochs of `source` in a seeded order: resident if it is in memory, else streamed.

    InputError for a batch that is larger than the set.
    """
    check_batch(batch_size, len(source))
    if not isinstance(source, Arrays):
        return Streamed(source, batch_size)
    return Rows(source.arrays(), batch_size)


def few(batch: Mapping[str, jax.Array], n: int = 2) -> dict[str, jax.Array]:
    """The first `n` examples of a batch: enough for a net's init, which looks at shapes alone."""
    return {name: x[:n] for name, x in batch.items()}


def steps_of(
    epochs: int, train: Sized, batch_size: int, batches: int = 1, flag: str = "--critic-steps"
) -> int:
    """Number of steps in `epochs` passes over a set, of which each takes `batches` batches.

    The examples that are left at the end of a pass, too few for a step, are not used. InputError if
    the set is smaller than one step; `flag` is what chooses `batches`.
    """
    check_batch(batch_size, len(train), batches, flag)
    return epochs * (len(train) // (batches * batch_size))


def check_batch(batch_size: int, n: int, batches: int = 1, flag: str = "--critic-steps") -> None:
    """InputError unless a set of `n` examples has the `batches` batches that a step takes."""
    most = n // batches
    if most < 1:
        raise InputError(
            f"A step takes {batches} examples or more and the set has {n}: choose a smaller {flag}."
        )
    if not 1 <= batch_size <= most:
        taken = f"A batch of {batch_size}"
        taken = f"{batches} batches of {batch_size}" if batches > 1 else taken
        raise InputError(
            f"{taken} can't be drawn from a set of {n} examples: "
            f"choose --batch-size between 1 and {most}."
        )


@dataclass(frozen=True, eq=False)
class Rows:
    """Whole epochs of the rows of named arrays of one length, in a seeded order.

    The arrays lie on the devices, only indices are sent, and the step gathers its examples by them.
    InputError for a batch that is larger than the set.
    """

    arrays: Mapping[str, np.ndarray]
    batch_size: int

    def __post_init__(self) -> None:
        check_batch(self.batch_size, len(self))

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def resident(self) -> Tree:
        return dict(self.arrays)

    def feed(self, seed: int, start: int, mesh: Mesh) -> Iterator[np.ndarray]:
        for step in itertools.count(start):
            yield indices(seed, step, len(self), self.batch_size)

    def batch(self, resident: Tree, fed: jax.Array) -> Tree:
        at = sharding.over_batch(fed)
        return {k: sharding.over_batch(v[at]) for k, v in resident.items()}


@dataclass(frozen=True, eq=False)
class Streamed:
    """Whole epochs of a set that is read as it is needed, in a seeded order.

    Each process reads the rows of its own devices, `ahead` batches ahead, and sends the next `sent`
    to the devices while a step runs. A set that decodes does so in threads of its own (`OnDisk`).
    """

    source: Source
    batch_size: int
    ahead: int = 4
    sent: int = 2

    def resident(self) -> Tree:
        return ()

    def feed(self, seed: int, start: int, mesh: Mesh) -> Iterator[Tree]:
        import grain

        along = NamedSharding(mesh, sharding.BATCH)
        rows = np.array(local_rows(along, self.batch_size))

        def read(step: int) -> Tree:
            return self.source.read(indices(seed, step, len(self.source), self.batch_size)[rows])

        def put(x: np.ndarray) -> jax.Array:
            def part(index: Any) -> np.ndarray:  # A slice for each axis.
                first, last, _ = index[0].indices(self.batch_size)
                at = np.searchsorted(rows, first)
                return x[at : at + last - first]  # Rows of a device are consecutive.

            return jax.make_array_from_callback((self.batch_size, *x.shape[1:]), along, part)

        # While the last rows of a batch are decoded, the other thread begins with the next.
        read_ahead = grain.ReadOptions(num_threads=2, prefetch_buffer_size=self.ahead)
        batches = grain.MapDataset.range(start, 2**62).map(read).to_iter_dataset(read_ahead)
        on_devices: deque[Tree] = deque()
        for count, batch in enumerate(batches):
            on_devices.append({name: put(x) for name, x in batch.items()})
            if not count or len(on_devices) > self.sent:  # The first is waited for.
                yield on_devices.popleft()

    def batch(self, resident: Tree, fed: Tree) -> Tree:
        return fed


def local_rows(along: NamedSharding, batch_size: int) -> list[int]:
    """Rows of the global batch that the devices of this process hold, in order."""
    parts = along.addressable_devices_indices_map((batch_size,)).values()
    slices = [part[0] for part in parts if part is not None]
    return sorted({row for part in slices for row in range(*part.indices(batch_size))})
