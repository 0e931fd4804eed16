"""A picture of nearest neighbours by a run's net, before and after training.

.venv/bin/python -m ssljax.neighbours runs/simclr --to neighbours.png
"""

import pathlib
import sys

import jax
import numpy as np
from PIL import Image
import tyro

from ssljax import sharding
from ssljax.backends import start_backends
from ssljax.errors import InputError
from ssljax.evals.evaluator import Evaluator
from ssljax.evals.features import Encode, extractor, subset, Tree
from ssljax.evals.knn import neighbours
from ssljax.evals.pictures import framed_panels
from ssljax.loaded import load
from ssljax.program import everywhere, Program
from ssljax.run import Run


def before_and_after(
    workdir: str | pathlib.Path, rows: int = 8, k: int = 6, seed: int = 0
) -> np.ndarray:
    """A row for each of some test images of the run in `workdir`, (H, W, 3) uint8.

    A row has the image, its `k` nearest training images by the untrained net, and those by the
    trained net, of the run's first seed. Those of the image's class are framed; `seed` chooses the
    images. InputError where the run's experiment has no evaluator `neighbours`, or can't be made
    again.
    """
    run = load(workdir)
    exp = run.experiment
    shown = exp.evals.get("neighbours")
    if not isinstance(shown, Evaluator) or exp.encode is None:
        raise InputError(f"The experiment of the run in {workdir} shows no nearest neighbours.")
    bank, queries = shown.bank, shown.queries
    asked = subset(queries, rows, seed)

    def nearest(encode: Encode, state: Tree) -> tuple[np.ndarray, np.ndarray]:
        extract = extractor(encode)
        index = neighbours(extract(state, bank), extract(state, queries, asked), k)[1]
        near = bank.read(index.reshape(-1))["image"]
        same = np.zeros(index.shape, bool)
        if bank.labels is not None and queries.labels is not None:
            same = bank.labels[index] == queries.labels[asked][:, None]
        return near.reshape(*index.shape, *near.shape[1:]), same

    mesh = sharding.make_mesh()
    with jax.set_mesh(mesh):
        first, resident = next(exp.data.feed(0, 0, mesh)), exp.data.resident()
        resident = jax.tree.map(lambda x: everywhere(x, mesh), resident)
        seeds = run.record["computes"].get("run", {"seed": 0})
        untrained = Program(exp, Run(seed=seeds["seed"]), mesh, first, resident).init([first])
        images = queries.read(asked)["image"][:, None]
        return framed_panels(
            {
                "image": (images, np.zeros(images.shape[:2], bool)),
                "nearest by the untrained net": nearest(exp.encode, untrained),
                "nearest by the trained net": nearest(exp.encode, run.train_state),
            }
        )


def draw(
    workdir: tyro.conf.Positional[str], to: str = "neighbours.png", rows: int = 8, k: int = 6
) -> None:
    """Draws the nearest neighbours of test images before and after training.

    Args:
        workdir: Folder of a run.
        to: File to write.
        rows: Images.
        k: Neighbours of each.
    """
    Image.fromarray(before_and_after(workdir, rows, k)).quantize(64).save(to, optimize=True)
    print(f"Written: {to}")


if __name__ == "__main__":
    start_backends()
    try:
        tyro.cli(draw)
    except InputError as e:
        sys.exit(f"error: {e}")
