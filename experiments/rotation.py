"""RotNet (Gidaris et al., 2018, https://arxiv.org/abs/1803.07728): which way up is an image? A simple baseline.

launch/local.sh experiments/rotation.py                                # digits: a minute on a laptop CPU
launch/local.sh experiments/rotation.py --data cifar10 --epochs 100 encoder:res-net
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from ssljax import Experiment, InputError, main, minimize, TrainState
from ssljax.data import augment, feed, images
from ssljax.evals.average import average
from ssljax.evals.knn import knn
from ssljax.evals.pictures import feature_map
from ssljax.evals.probe import linear_probe
from ssljax.models.convnet import ConvNet
from ssljax.models.resnet import ResNet
from ssljax.optim import adamw, warmup_cosine


def rotation(
    data: str = "digits",
    image_size: int = 0,
    encoder: ConvNet | ResNet = ConvNet(),
    epochs: int = 50,
    batch_size: int = 128,
    lr: float = 2e-3,
    weight_decay: float = 1e-4,
) -> Experiment:
    """Tells by which of four angles an image was turned.

    Args:
        data: digits (embedded), a TFDS image set (cifar10, fashion_mnist), a folder of class folders, or an .npz.
        image_size: Pixels a side to resize images to as they are read; 0 to leave them.
        encoder: What gives the features; on them lies a linear layer, which is not kept.
        batch_size: Images, each of which is seen in all four directions.
        lr: Its peak, after a warm-up over a tenth of training.
    """
    train, test = (images(data, split, image_size) for split in ("train", "test"))
    if train.shape[0] != train.shape[1]:
        raise InputError(
            f"Images of {train.shape[0]}x{train.shape[1]} can't be turned in place: give --image-size."
        )
    num_steps = epochs * (len(train) // batch_size)
    tx, head = adamw(warmup_cosine(lr, num_steps), weight_decay), nn.Dense(4)

    def turned(image):
        """Each image in four directions, next to one another, (4 n, ...), and their numbers."""
        x = augment.to_float(image)
        x = jnp.stack([jnp.rot90(x, k, axes=(1, 2)) for k in range(4)], axis=1)
        return x.reshape(-1, *x.shape[2:]), jnp.tile(jnp.arange(4), len(image))

    def features(params, stats, x, training):
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
            tx, {"encoder": e["params"], "head": head.init(k2, h)}, encoder=e["batch_stats"]
        )

    def loss(params, state, batch, key):
        x, angle = turned(batch["image"])
        h, e = features(params, state.extra["encoder"], x, True)
        z = head.apply(params["head"], h)
        value = optax.softmax_cross_entropy_with_integer_labels(z, angle).mean()
        return value, (
            {"encoder": e["batch_stats"]},
            {"loss": value, "right": jnp.mean(z.argmax(-1) == angle)},
        )

    def named(state, key, image, label):
        x, angle = turned(image)
        z = head.apply(
            state.params["head"], features(state.params, state.extra["encoder"], x, False)[0]
        )
        return {
            "accuracy": 100.0 * (z.argmax(-1) == angle).reshape(-1, 4).mean(1)
        }  # Of all four; chance is 25.

    encode = lambda state, x: features(
        state.params, state.extra["encoder"], augment.to_float(x), False
    )[0]
    return Experiment(
        init=init,
        step=minimize(tx, loss),
        data=feed(train, batch_size),
        num_steps=num_steps,
        evals={
            "angle": average(named, test, better={"accuracy": "higher"}),
            "knn": knn(encode, train, test),
            "probe": linear_probe(encode, train, test),
            "features": feature_map(encode, test),
        },
    )


if __name__ == "__main__":
    main(rotation)
