"""Images a second of each stage from a folder of JPEGs to a step, next to PyTorch's DataLoader.

    .venv/bin/python tests/benchmarks/input.py [--files 400] [--side 320] [--many 20000]

The files are photographs of scikit-image, or of scikit-learn where that is missing, written as
JPEGs of 500x400 and 2000x1500 pixels. Stages are timed alone, in turns, medians of all rounds; the
milliseconds are of this process's CPU time for an image, which other programs change less. Where
torch is installed, its DataLoader reads the same files with ImageFolder and RandomResizedCrop(224)
in as many processes as there are cores; ours resizes the whole photograph to --side pixels, and
leaves random crops to the device. Then, what --many small files in one folder cost, and shards.

On two cores (EPYC) under a load of 9, in milliseconds of CPU: 500x400 decoding 2.7, feed and step
2.8, torchvision 2.7; 2000x1500 decoding 9.8, feed and step 10.1, torchvision 28.7. Two threads
decoded as many images as two processes.
"""

import argparse
import contextlib
from importlib import metadata
import itertools
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from ssljax import sharding
from ssljax.data import images, sources
from ssljax.data.decode import Decoder
from ssljax.data.feed import Streamed
from ssljax.data.folders import find_files, IMAGES
from ssljax.data.sources import CORES, OnDisk

BATCH = 32
AHEAD = 8  # Batches until a feed reads as many as it gives.


def photographs() -> list[Image.Image]:
    try:
        from skimage import data

        names = "astronaut", "chelsea", "coffee", "rocket"
        return [Image.fromarray(getattr(data, name)()) for name in names]
    except ImportError:
        from sklearn.datasets import load_sample_images

        return [Image.fromarray(x) for x in load_sample_images().images]


def write(folder: pathlib.Path, size: tuple[int, int], count: int) -> list[pathlib.Path]:
    """Files of a class for each photograph, shifted a little so that no two are the same."""
    found, photos = [], photographs()
    for i in range(count):
        photo = photos[i % len(photos)]
        shift = i // len(photos) % 50
        box = (shift, shift, photo.width - 50 + shift, photo.height - 50 + shift)
        path = folder / "train" / f"class{i % len(photos)}" / f"{i:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        photo.resize(size, Image.Resampling.BICUBIC, box).save(path, quality=90)
        found.append(path)
    return found


def cpu() -> float:
    """Seconds of CPU time of this process and of its children that have ended."""
    used = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return sum(u.ru_utime + u.ru_stime for u in used)


def in_turns(stages: dict, rounds: int) -> None:
    """Prints images a second and CPU milliseconds of each stage.

    A stage is a generator function: it yields once, before what is timed, and then the number of
    images.
    """
    seconds = {name: [] for name in stages}
    for _ in range(rounds):
        for name, stage in stages.items():
            running = stage()
            next(running)
            before, start = cpu(), time.perf_counter()
            count = next(running)
            seconds[name].append(((time.perf_counter() - start) / count, (cpu() - before) / count))
            running.close()
    for name, found in seconds.items():
        wall, used = np.median(found, axis=0)
        print(f"  {name:<34} {1 / wall:>10,.0f} images/s {1e3 * used:>8.2f} ms of CPU")


def stages(folder: pathlib.Path, paths: list[pathlib.Path], side: int) -> dict:
    decode = Decoder(side, whole=True)
    source = OnDisk(
        lambda i: decode(paths[i]), None, [], (side, side, 3), count=len(paths), aspects=True
    )
    mesh, batches = sharding.make_mesh(), max(AHEAD, len(paths) // BATCH)
    step = jax.jit(lambda total, batch: total + jnp.mean(batch["image"].astype(jnp.float32)))
    whole = source.read(np.arange(BATCH))

    def listing():
        yield
        find_files(folder, IMAGES)
        yield len(paths)

    def reading():
        yield
        yield len([path.read_bytes() for path in paths])

    def decoding():
        yield
        yield len([decode(path) for path in paths])

    def assembling():
        yield
        for at in range(batches):
            source.read(np.arange(BATCH * at, BATCH * (at + 1)) % len(paths))
        yield batches * BATCH

    def copying():
        yield
        for _ in range(batches):
            jax.block_until_ready(jax.device_put(whole))
        yield batches * BATCH

    def stepping():
        fed, total = Streamed(source, BATCH).feed(0, 0, mesh), jnp.zeros(())
        for batch in itertools.islice(fed, AHEAD):  # Until as much is read ahead as at the end.
            total = step(total, batch)
        yield
        for batch in itertools.islice(fed, batches):
            total = step(total, batch)
        jax.block_until_ready(total)
        yield batches * BATCH
        fed.close()

    found = {
        "listing": listing,
        "reading the bytes": reading,
        "decoding, one thread": decoding,
        "assembling, all threads": assembling,
        "copying to the device": copying,
        "feed and a step": stepping,
    }
    with contextlib.suppress(ImportError):
        found |= in_torch(folder, batches)
    return found


def in_torch(folder: pathlib.Path, batches: int) -> dict:
    """The same files by ImageFolder, RandomResizedCrop and a flip, on the CPU."""
    import torch
    from torchvision import datasets, transforms

    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(224),
            transforms.RandomHorizontalFlip(),
            transforms.PILToTensor(),
        ]
    )
    data = datasets.ImageFolder(str(folder / "train"), transform)

    def decoding():
        yield
        yield len([data[i] for i in range(len(data))])

    def loading():
        sampler = torch.utils.data.RandomSampler(data, replacement=True, num_samples=10**9)
        loader = torch.utils.data.DataLoader(
            data, BATCH, sampler=sampler, num_workers=CORES, multiprocessing_context="spawn"
        )
        found = iter(loader)
        for _ in itertools.islice(found, AHEAD):
            pass
        yield
        for _ in itertools.islice(found, batches):
            pass
        yield batches * BATCH
        del found

    return {"torchvision, one thread": decoding, f"DataLoader, {CORES} processes": loading}


def many(count: int, rounds: int) -> None:
    """What small files in one folder cost, and the same images in shards."""
    sources.RESIDENT_BYTES = 0
    with tempfile.TemporaryDirectory() as top:
        folder, shards = pathlib.Path(top) / "folder", pathlib.Path(top) / "shards"
        small = [path.read_bytes() for path in write(pathlib.Path(top) / "small", (100, 80), 8)]
        folder.mkdir()
        for i in range(count):
            (folder / f"{i:06}.jpg").write_bytes(small[i % len(small)])
        command = [sys.executable, "-m", "ssljax.data.prepare", str(folder), "--to", str(shards)]
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        print(
            f"{count:,} files of 100x80; shards are written in {time.perf_counter() - start:.0f} s"
        )
        at = np.random.default_rng(0).permutation(count // 2)[:2000]

        def opening(path: pathlib.Path):
            def run():
                yield
                images(str(path), "train", 64)
                yield count

            return run

        def reading(path: pathlib.Path):
            source = images(str(path), "train", 64)

            def run():
                yield
                source.read(at)
                yield len(at)

            return run

        found = {}
        for name, path in ("folder", folder), ("shards", shards):
            found[f"{name}: opening the set"] = opening(path)
            found[f"{name}: 2000 images at random"] = reading(path)
        in_turns(found, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--files", type=int, default=400)
    parser.add_argument("--side", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--many", type=int, default=20_000)
    args = parser.parse_args()
    versions = {name: metadata.version(name) for name in ("jax", "grain", "pillow", "numpy")}
    with contextlib.suppress(metadata.PackageNotFoundError):
        versions |= {name: metadata.version(name) for name in ("torch", "torchvision")}
    print(", ".join(f"{k} {v}" for k, v in versions.items()))
    print(f"{CORES} cores, load {os.getloadavg()[0]:.1f}, {jax.devices()[0].device_kind}")
    for size, count in ((500, 400), args.files), ((2000, 1500), max(BATCH, args.files // 8)):
        with tempfile.TemporaryDirectory() as folder:
            paths = write(pathlib.Path(folder), size, count)
            kilobytes = sum(path.stat().st_size for path in paths) / count / 1000
            print(
                f"{count} JPEGs of {size[0]}x{size[1]}, {kilobytes:.0f} kB, to {args.side} pixels"
            )
            in_turns(stages(pathlib.Path(folder), paths, args.side), args.rounds)
    if args.many:
        many(args.many, args.rounds)


if __name__ == "__main__":
    main()
