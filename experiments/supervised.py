"""A classifier trained with labels: the ceiling of what the other files learn without them, and the net that generated
images are compared by (ssljax/evals/feature_nets.py). An encoder of the other files, a linear layer, images shifted
and, if asked for, mirrored (He et al., 2015), AdamW (Loshchilov and Hutter, 2017, https://arxiv.org/abs/1711.05101).

    launch/local.sh experiments/supervised.py                              # digits: half a minute on a laptop CPU
    launch/local.sh experiments/supervised.py --data mnist --epochs 3 --run.workdir runs/mnist_classifier
    launch/local.sh experiments/supervised.py --data cifar10 --shift 4 --flip 0.5 --epochs 100 encoder:res-net
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from ssljax import Experiment, main, minimize, TrainState
from ssljax.data import augment, feed, images
from ssljax.evals.accuracy import accuracy
from ssljax.evals.collapse import collapse
from ssljax.evals.knn import knn
from ssljax.evals.pictures import feature_map, views
from ssljax.evals.probe import linear_probe
from ssljax.models.convnet import ConvNet
from ssljax.models.resnet import ResNet
from ssljax.optim import adamw, warmup_cosine
from ssljax.sharding import over_batch


def supervised(
    data: str = "digits",
    image_size: int = 0,
    encoder: ConvNet | ResNet = ConvNet(),
    shift: int = 1,
    flip: float = 0.0,
    smoothing: float = 0.0,
    epochs: int = 100,
    batch_size: int = 128,
    lr: float = 2e-3,
    weight_decay: float = 0.05,
) -> Experiment:
    """A classifier trained with labels.

    Args:
        data: digits (embedded), a TFDS image set (cifar10, fashion_mnist), a folder of class folders, or an .npz.
        image_size: Pixels a side to resize images to as they are read; 0 to leave them.
        encoder: What gives the features; on them lies a linear layer.
        shift: Most pixels by which an image is moved, in each direction, as it is trained on.
        flip: How often it is mirrored: 0.5 for photographs, 0 for digits.
        smoothing: The share of a label that is spread over all classes.
        lr: Its peak, after a warm-up over a tenth of training.
    """
    train, test = (images(data, split, image_size) for split in ("train", "test"))
    num_steps = epochs * (len(train) // batch_size)
    tx, head = adamw(warmup_cosine(lr, num_steps), weight_decay), nn.Dense(train.num_classes)

    def view(key, x):
        k1, k2 = jax.random.split(key)
        n, h, w, _ = x.shape
        x = jnp.pad(
            augment.to_float(x), ((0, 0), (shift, shift), (shift, shift), (0, 0)), mode="edge"
        )
        top, left = over_batch(jax.random.randint(k1, (n, 2), 0, 2 * shift + 1)).T
        return augment.flip(
            k2, augment.crop_and_resize(x, top, left, jnp.full(n, h), jnp.full(n, w), (h, w)), flip
        )

    def encode(params, stats, x, training):
        return encoder.apply(
            {"params": params["encoder"], "batch_stats": stats},
            x,
            training,
            mutable=["batch_stats"],
        )

    def init(key, batch):
        k1, k2 = jax.random.split(key)
        h, e = encoder.init_with_output(k1, augment.to_float(batch["image"][:2]))
        return TrainState.create(
            tx,
            {"encoder": e["params"], "head": head.init(k2, h)["params"]},
            encoder=e["batch_stats"],
        )

    def loss(params, state, batch, key):
        h, e = encode(params, state.extra["encoder"], view(key, batch["image"]), True)
        z, y = (
            head.apply({"params": params["head"]}, h),
            jax.nn.one_hot(batch["label"], train.num_classes),
        )
        value = optax.softmax_cross_entropy(z, optax.smooth_labels(y, smoothing)).mean()
        right = jnp.mean(jnp.argmax(z, -1) == batch["label"])
        return value, (
            {"encoder": e["batch_stats"]},
            {"loss": value, "train_accuracy": 100 * right},
        )

    features = lambda state, x: encode(
        state.params, state.extra["encoder"], augment.to_float(x), False
    )[0]
    logits = lambda state, x: head.apply({"params": state.params["head"]}, features(state, x))
    return Experiment(
        init=init,
        step=minimize(tx, loss),
        data=feed(train, batch_size),
        num_steps=num_steps,
        evals={
            "test": accuracy(logits, test),
            "knn": knn(features, train, test),
            "probe": linear_probe(features, train, test),
            "collapse": collapse(features, test),
            "features": feature_map(features, test),
            "views": views(view, train),
        },
    )


if __name__ == "__main__":
    main(supervised)
