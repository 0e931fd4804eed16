"""Examples per second of the resident feed, and of the same TFDS set's Python iterator.

.venv/bin/python tests/benchmarks/feed.py [cifar10]
"""

import itertools
import sys
import time

import jax
import numpy as np
import tensorflow_datasets as tfds

from ssljax import sharding
from ssljax.data import feed, images


def resident(name: str, batch_size: int = 256, steps: int = 400) -> float:
    mesh = sharding.make_mesh()
    data = feed(images(name, "train"), batch_size)
    fixed = jax.tree.map(jax.device_put, data.resident())
    gather = jax.jit(data.batch)
    stream = data.feed(0, 0, mesh)
    jax.block_until_ready(gather(fixed, next(stream)))
    start = time.perf_counter()
    for fed in itertools.islice(stream, steps):
        batch = gather(fixed, fed)
        jax.block_until_ready(batch)
    return steps * batch_size / (time.perf_counter() - start)


def iterator(name: str, batch_size: int = 256, steps: int = 10) -> float:
    rows = iter(tfds.data_source(name, split="train"))
    start = time.perf_counter()
    for _ in range(steps):
        batch = [next(rows) for _ in range(batch_size)]
        jax.block_until_ready(jax.device_put(np.stack([r["image"] for r in batch])))
    return steps * batch_size / (time.perf_counter() - start)


if __name__ == "__main__":
    name = sys.argv[1] if len(sys.argv) > 1 else "cifar10"
    a, b = resident(name), iterator(name)
    print(
        f"RESULT {name}: resident feed {a:,.0f} examples/s, TFDS iterator {b:,.0f} examples/s, "
        f"ratio {a / b:.1f}"
    )
