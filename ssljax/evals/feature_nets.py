"""What generated and real images are compared by: pixels, a classifier of one's own, or Inception."""

from collections.abc import Callable
from dataclasses import dataclass
import json
import pathlib
from typing import Any

import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

from ssljax.checkpoint import load
from ssljax.data import augment
from ssljax.errors import InputError
from ssljax.models.convnet import ConvNet
from ssljax.models.encoder import rebuild

Tree = Any


@dataclass(frozen=True, eq=False)
class FeatureNet:
    """`apply(params, images)` maps (n, H, W, C) uint8 to features (n, d); `name` goes into the name of each number.

    `logits(params, features)`, (n, classes), is there where the net is a classifier.
    """

    name: str
    params: Tree
    apply: Callable[[Tree, Array], Array]
    batch_size: int = 512
    logits: Callable[[Tree, Array], Array] | None = None


def feature_net(which: str = "") -> FeatureNet:
    """`pixels` if `which` is empty, `inception`, or the `classifier` in that folder; InputError where there is none."""
    if which == "inception":
        from ssljax.evals.inception import inception

        return inception()
    return classifier(which) if which else pixels()


def pixels() -> FeatureNet:
    """The images themselves: always at hand, but near in pixels is not near to the eye."""
    return FeatureNet("pixels", {}, lambda params, x: augment.to_float(x).reshape(len(x), -1))


def nearest(source: Any) -> FeatureNet:
    """A classifier that needs no training: the class of the nearest image of `source` in pixels, as one hot (n, classes)."""
    image, label = (
        source.read(np.arange(len(source)))["image"],
        jax.nn.one_hot(source.labels, source.num_classes),
    )
    params = {"image": image.reshape(len(image), -1) / np.float32(255), "label": np.asarray(label)}

    def apply(params: Tree, x: Array) -> Array:
        x, known = augment.to_float(x).reshape(len(x), -1), params["image"]
        square = (known**2).sum(1) - 2 * jnp.matmul(
            x, known.T, precision="highest"
        )  # The same |x|² is left out of all.
        return params["label"][square.argmin(1)]

    return FeatureNet("nearest", params, apply, logits=lambda params, z: z)


def classifier(workdir: str | pathlib.Path, seed: int = 0) -> FeatureNet:
    """The features below the linear layer, and the logits, of a finished run of experiments/supervised.py, lane `seed` of it.

    Its name says what it was trained on and its percent of test images named rightly, as in mnist_classifier_99.1.
    InputError where there is no such run, or where images have another number of channels.
    """
    folder = pathlib.Path(workdir).expanduser()
    try:
        arguments = json.loads((folder / "record.json").read_text())["computes"]
        accuracy = json.loads((folder / "results.json").read_text())["results"]["test/accuracy"][
            seed
        ]
        net = rebuild(arguments["encoder"])
    except (OSError, KeyError, IndexError, ValueError, TypeError):
        raise InputError(
            f"{workdir} holds no trained classifier: make one with `launch/local.sh "
            f"experiments/supervised.py --data DATA --run.workdir {workdir}`."
        ) from None
    state, size = load(folder, seed), arguments["image_size"]
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
        return net.apply(params["encoder"], augment.resize(augment.to_float(x), size))

    logits = lambda params, z: z @ params["head"]["kernel"] + params["head"]["bias"]
    data = "_".join(
        pathlib.Path(part).stem for part in arguments["data"].split(":")
    )  # No colon in names of numbers.
    return FeatureNet(f"{data}_classifier_{accuracy:.1f}", params, apply, logits=logits)
