"""What many small files in a folder cost, and the same images in shards: opening and random reads.

    .venv/bin/python tests/benchmarks/shards.py [--images 20000] [--rounds 5]

JPEGs of 64x64 pixels, parts of scikit-learn's photographs, in two folders of classes. Opening is
all that is done before the first batch (listing, headers, labels), without a cache of ours. Reading
is of bytes, one image after another in a random order; decoding is of random batches of 256, as a
run reads them. Both sides are timed in turns, and medians are printed. The cold numbers are with
the kernel's caches dropped before each (by root alone); where they can't be, only warm ones are.
"""

import argparse
from collections.abc import Callable
import os
import pathlib
import tempfile
import time

os.environ["JAX_PLATFORMS"] = "cpu"

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from ssljax.data import sources
from ssljax.data.folders import find_files, IMAGES
from ssljax.data.image_files import image_folder
from ssljax.data.prepare import prepare_shards
from ssljax.data.shards import read_index, shard_images, Shards

SIDE = 64


def write_files(root: pathlib.Path, count: int) -> None:
    rng, photos = np.random.default_rng(0), load_sample_images().images
    for i in range(count):
        photo = photos[i % 2]
        top, left = rng.integers(photo.shape[0] - SIDE), rng.integers(photo.shape[1] - SIDE)
        folder = root / "train" / ("china", "flower")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo[top : top + SIDE, left : left + SIDE]).save(folder / f"{i:06d}.jpg")
    (root / "test/china").mkdir(parents=True)
    (root / "test/china/0.jpg").write_bytes((root / "train/china/000000.jpg").read_bytes())


def drop_caches() -> bool:
    try:
        os.sync()
        pathlib.Path("/proc/sys/vm/drop_caches").write_text("3")
        return True
    except OSError:
        return False


def seconds(do: Callable[[], object], cold: bool) -> float:
    if cold:
        drop_caches()
    start = time.perf_counter()
    do()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    sources.RESIDENT_BYTES = 0  # Streamed, as a large set is.
    with tempfile.TemporaryDirectory() as folder:
        root, target = pathlib.Path(folder, "files"), pathlib.Path(folder, "shards")
        os.environ["SSLJAX_CACHE"] = f"{folder}/cache"
        write_files(root, args.images)
        written = seconds(lambda: prepare_shards(str(root), str(target), workers=1), False)
        print(f"shards written by one process: {args.images / written:,.0f} images/s")
        measure(root, target, args.rounds)


def measure(root: pathlib.Path, target: pathlib.Path, rounds: int) -> None:
    names = find_files(root, IMAGES).paths("train")
    shards = Shards(target, read_index(target)["splits"]["train"]["shards"])
    files, _ = image_folder(root, "train", SIDE)
    sharded, _ = shard_images(target, "train", SIDE)
    rng = np.random.default_rng(1)
    at = rng.permutation(len(names))[:2000]
    batches = rng.permutation(len(names))[:2048].reshape(-1, 256)

    def open_files() -> None:
        for file in pathlib.Path(os.environ["SSLJAX_CACHE"]).rglob("*.npz"):
            file.unlink()
        image_folder(root, "train", SIDE)

    def read_files() -> None:
        for i in at:
            names[i].read_bytes()

    def read_shards() -> None:
        for i in at.tolist():
            shards[i]

    cases = {
        "opening (s)": (open_files, lambda: shard_images(target, "train", SIDE), None),
        "reading (images/s)": (read_files, read_shards, len(at)),
        "decoding (images/s)": (
            lambda: [files.read(batch) for batch in batches],
            lambda: [sharded.read(batch) for batch in batches],
            batches.size,
        ),
    }
    same = all(names[i].read_bytes() == shards[int(i)][2] for i in at[:100])
    pictures = all((files.read(b)["image"] == sharded.read(b)["image"]).all() for b in batches[:1])
    print(f"the same bytes: {same}; the same images: {pictures}")
    for cold in [False] + [True] * drop_caches():
        for what, (of_files, of_shards, count) in cases.items():
            times = [(seconds(of_files, cold), seconds(of_shards, cold)) for _ in range(rounds)]
            a, b = np.median(times, 0)
            shown = [f"{x:.3f}" if count is None else f"{count / x:,.0f}" for x in (a, b)]
            print(
                f"RESULT {'cold' if cold else 'warm'} {what}: files {shown[0]}, shards {shown[1]}, "
                f"ratio {a / b:.2f}"
            )


if __name__ == "__main__":
    main()
