"""Feature nets that compare generated with real images: pixels, a trained classifier, Inception."""

from collections.abc import Callable
from dataclasses import dataclass
import json
import pathlib
from typing import Any

import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

from ssljax import methods
from ssljax.checkpoint import load_state
from ssljax.data import augment, described
from ssljax.errors import InputError
from ssljax.evals.features import shrunk_size
from ssljax.evals.inception import inception_features, load_inception
from ssljax.models.convnet import ConvNet
from ssljax.models.encoder import rebuild

Tree = Any


@dataclass(frozen=True, eq=False)
class FeatureNet:
    """`apply(params, images)` maps (n, H, W, C) uint8 to features (n, d).

    `name` goes into the name of each number. `logits(params, features)`, (n, classes), is there
    where the net is a classifier.
    """

    name: str
    params: Tree
    apply: Callable[[Tree, Array], Array]
    batch_size: int = 512
    logits: Callable[[Tree, Array], Array] | None = None
    most: int = 0  # Pixels on the longer side that larger images are shrunk to, or 0.

    def classifier(self) -> Callable[[Tree, Array], Array]:
        """Logits (n, classes) of images; InputError where the net is no classifier."""
        if (logits := self.logits) is None:
            raise InputError(
                f"{self.name} is no classifier: give the folder of a run of "
                "experiments/supervised.py."
            )
        return lambda params, images: logits(params, self.apply(params, images))

    def name_for(self, shape: tuple[int, ...]) -> str:
        """Name for images of a shape (H, W, C): numbers of shrunk images have another one."""
        small = shrunk_size(shape[:2], self.most) == shape[:2]
        return self.name if small else f"{self.name}_{self.most}px"


def feature_net(which: str = "") -> FeatureNet:
    """`pixels` if `which` is empty, `inception`, or the `classifier` in that folder.

    InputError where there is none.
    """
    if not which:
        return pixels()
    try:
        return inception() if which == "inception" else classifier(which)
    except InputError:
        if not described.own_run(which):
            raise
        return pixels()  # Of a run that is loaded, and evaluates nothing.


def pixels(most: int = 32) -> FeatureNet:
    """The images themselves, shrunk to `most` pixels on the longer side.

    Always at hand, but distances between pixels say little of what an eye sees.
    """

    def apply(params: Tree, x: Array) -> Array:
        size = shrunk_size(x.shape[1:3], most)
        if size == x.shape[1:3]:
            return augment.to_float(x).reshape(len(x), -1)
        small = jax.image.resize(augment.to_float(x), (len(x), *size, x.shape[3]), "linear")
        return small.reshape(len(x), -1)

    return FeatureNet("pixels", {}, apply, most=most)


def inception(path: str | pathlib.Path = "") -> FeatureNet:
    """The net that FID is usually computed with; gray images are taken as colour.

    `path` is as in `load_inception`, as is the InputError.
    """
    return FeatureNet("inception", load_inception(path), inception_features, batch_size=64)


def nearest_image_classifier(source: Any, most: int = 32) -> FeatureNet:
    """A classifier without training: the class of the nearest image of `source`, one hot.

    Distances are Euclidean on pixels, of images shrunk to `most` pixels on the longer side.
    """
    net, label = pixels(most), jax.nn.one_hot(source.labels, source.num_classes)
    parts = [
        np.asarray(net.apply({}, source.read(at)["image"]))
        for at in np.array_split(np.arange(len(source)), -(-len(source) // 1000))
    ]
    params = {"image": np.concatenate(parts), "label": np.asarray(label)}

    def apply(params: Tree, x: Array) -> Array:
        x, known = net.apply({}, x), params["image"]
        # |x|² is the same for all of the known images, and left out.
        square = (known**2).sum(1) - 2 * jnp.matmul(x, known.T, precision="highest")
        return params["label"][square.argmin(1)]

    return FeatureNet("nearest", params, apply, logits=lambda params, z: z)


def classifier(workdir: str | pathlib.Path, seed: int = 0) -> FeatureNet:
    """The net of a finished run of experiments/supervised.py: features below its linear layer.

    `seed` counts the seeds of the run from 0. The name says the training data and the percent of
    test images that are classified rightly, as in mnist_classifier_99.1. InputError where there is
    no such run, or where images have another number of channels.
    """
    folder = pathlib.Path(workdir).expanduser()
    try:
        arguments = json.loads((folder / "record.json").read_text())["computes"]
        results = json.loads((folder / "results.json").read_text())["results"]
        accuracy = results["test/accuracy"][seed]
        net = rebuild(arguments["encoder"])
    except (OSError, KeyError, IndexError, ValueError, TypeError):
        raise InputError(
            f"{workdir} holds no trained classifier: make one with "
            f"`{methods.command('supervised')} --data DATA --run.workdir {workdir}`."
        ) from None
    state, size = load_state(workdir, seed), arguments["image_size"]
    params = {
        "encoder": {"params": state["params"]["encoder"], "batch_stats": state["extra"]["encoder"]},
        "head": state["params"]["head"],
    }
    kernel = params["encoder"]["params"]["conv1" if isinstance(net, ConvNet) else "stem"]["kernel"]

    def apply(params: Tree, x: Array) -> Array:
        if x.shape[-1] != kernel.shape[2]:
            raise InputError(
                f"The classifier in {workdir} takes images of {kernel.shape[2]} channels, not "
                f"{x.shape[-1]}: train one on the same data."
            )
        images = augment.resize_square(augment.to_float(x), size)
        features: Any = net.apply(params["encoder"], images)
        return features

    def logits(params: Tree, z: Array) -> Array:
        return z @ params["head"]["kernel"] + params["head"]["bias"]

    # A colon can't be in the name of a number.
    data = "_".join(pathlib.Path(part).stem for part in arguments["data"].split(":"))
    return FeatureNet(f"{data}_classifier_{accuracy:.1f}", params, apply, logits=logits)
