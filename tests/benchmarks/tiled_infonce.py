"""NT-Xent in tiles and in its dense form: milliseconds of value and gradient, and memory.

    .venv/bin/python tests/benchmarks/tiled_infonce.py [--views 8192] [--width 256]

Memory is the compiled program's own account of its temporaries, for this machine's device and,
where the package libtpu is installed, for the 16 chips of a TPU v5e:4x4.
"""

import argparse
import os
import time

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")

import jax
from jax.experimental import topologies
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
import numpy as np

from ssljax.losses.infonce import nt_xent_loss
from ssljax.sharding import BATCH


def gradient(tiled):
    return jax.jit(jax.value_and_grad(lambda z: nt_xent_loss(*jnp.split(z, 2), 0.5, tiled)))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--views", type=int, default=8192)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    z = jax.random.normal(jax.random.key(0), (args.views, args.width))
    forms = {"dense": gradient(False), "tiled": gradient(True)}
    seconds, grads = {name: [] for name in forms}, {}
    for i in range(args.rounds + 1):
        for name, f in forms.items():
            start = time.perf_counter()
            grads[name] = jax.block_until_ready(f(z))[1]
            if i:  # The first compiles.
                seconds[name].append(time.perf_counter() - start)
    dense, tiled = (float(np.median(seconds[name])) for name in forms)
    apart = float(jnp.abs(grads["dense"] - grads["tiled"]).max() / jnp.abs(grads["dense"]).max())
    print(
        f"{args.views} views of {args.width} on {jax.devices()[0].device_kind}: "
        f"dense {1e3 * dense:.1f} ms, tiled {1e3 * tiled:.1f} ms, ratio {tiled / dense:.2f}; "
        f"gradients differ by {apart:.1e} of the largest"
    )
    large = jax.ShapeDtypeStruct((65536, 256), jnp.float32)
    used = lambda f, x: f.lower(x).compile().memory_analysis().temp_size_in_bytes / 1e9
    print(
        f"65536 x 256, temporary memory: tiled {used(forms['tiled'], large):.3f} GB, "
        f"dense {used(forms['dense'], large):.1f} GB"
    )
    try:
        chips = topologies.get_topology_desc(platform="tpu", topology_name="v5e:4x4").devices
    except Exception as e:  # Whatever keeps libtpu from loading: its absence, most of all.
        print(f"No compiler for TPU v5e:4x4 here ({type(e).__name__}): pip install libtpu")
        return
    mesh = jax.sharding.Mesh(
        np.array(chips).reshape(16, 1), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2
    )
    with jax.set_mesh(mesh):
        spread = jax.ShapeDtypeStruct(
            (65536, 256), jnp.float32, sharding=NamedSharding(mesh, BATCH)
        )
        for name, tiled in (("tiled", True), ("dense", False)):
            try:
                memory = f"{used(gradient(tiled), spread):.3f} GB"
            except jax.errors.JaxRuntimeError as e:
                memory = "does not fit: " + str(e).split(". ")[0]
            print(
                f"TPU v5e:4x4, 65536 x 256 over 16 chips, temporary memory of each: {name} {memory}"
            )


if __name__ == "__main__":
    main()
