"""SimCLR (Chen et al., 2020, https://arxiv.org/abs/2002.05709): views of an image agree, against all other images.

    launch/local.sh experiments/simclr.py                                  # digits: a minute on a laptop CPU
    launch/local.sh experiments/simclr.py --data cifar10 --view-size 24 --epochs 15        # the ledger: with a wider net
    launch/local.sh experiments/simclr.py --data cifar10 --epochs 500 --batch-size 512 --temperature 0.5 encoder:res-net
"""

import jax
import jax.numpy as jnp

from ssljax import Experiment, TrainState, main, minimize
from ssljax.data import augment, feed, images
from ssljax.evals.collapse import collapse
from ssljax.evals.knn import knn
from ssljax.evals.pictures import feature_map, views
from ssljax.evals.probe import linear_probe
from ssljax.losses.infonce import nt_xent
from ssljax.models.convnet import ConvNet
from ssljax.models.mlp import MLP
from ssljax.models.resnet import ResNet
from ssljax.optim import adamw, warmup_cosine


def simclr(
    data: str = "digits", image_size: int = 0, view_size: int = 0,
    encoder: ConvNet | ResNet = ConvNet(),
    head: MLP = MLP(widths=(256, 128), norm=True),
    temperature: float = 0.1, crop: float = 0.2, flip: float = 0.5, jitter: float = 0.4,
    epochs: int = 50, batch_size: int = 128, lr: float = 2e-3, weight_decay: float = 1e-4,
) -> Experiment:
    """SimCLR: two random views of an image agree, against all other images of the batch.

    Args:
        data: digits (embedded), a TFDS image set (cifar10, fashion_mnist), a folder of class folders, or an .npz.
        image_size: Pixels a side to resize images to as they are read; 0 to leave them.
        view_size: Pixels a side of what the net sees; 0 for the images' own.
        encoder: f in the paper, which is kept; the head, g, is not.
        crop: The least part of the image's area that a view shows.
        flip: How often a view is mirrored.
        jitter: Strength of brightness, contrast and saturation; the hue's is a quarter of it.
        lr: Its peak, after a warm-up over a tenth of training.
    """
    train, test = (images(data, split, image_size) for split in ("train", "test"))
    num_steps = epochs * (len(train) // batch_size)
    tx = adamw(warmup_cosine(lr, num_steps), weight_decay)

    def view(key, x):
        k1, k2, k3, k4 = jax.random.split(key, 4)
        x = augment.random_resized_crop(k1, augment.to_float(x), view_size, scale=(crop, 1.0))
        x = augment.colour_jitter(k2, augment.flip(k3, x, flip), jitter, jitter, jitter, jitter / 4, p=0.8)
        return augment.grayscale(k4, x, p=0.2)

    def apply(net, params, stats, x, train):
        return net.apply({"params": params, "batch_stats": stats}, x, train, mutable=["batch_stats"])

    def init(key, batch):
        k1, k2, k3 = jax.random.split(key, 3)
        h, e = encoder.init_with_output(k1, view(k2, batch["image"][:2]))
        g = head.init(k3, h)
        return TrainState.create(tx, {"encoder": e["params"], "head": g["params"]},
                                 encoder=e["batch_stats"], head=g["batch_stats"])

    def loss(params, state, batch, key):
        x = jnp.concatenate([view(k, batch["image"]) for k in jax.random.split(key)])
        h, e = apply(encoder, params["encoder"], state.extra["encoder"], x, train=True)
        z, g = apply(head, params["head"], state.extra["head"], h, train=True)
        value = nt_xent(*jnp.split(z, 2), temperature)
        return value, ({"encoder": e["batch_stats"], "head": g["batch_stats"]}, {"loss": value})

    def encode(state, x):
        x = augment.resize(augment.to_float(x), view_size)
        return apply(encoder, state.params["encoder"], state.extra["encoder"], x, train=False)[0]

    return Experiment(init=init, step=minimize(tx, loss), data=feed(train, batch_size), num_steps=num_steps, evals={
        "knn": knn(encode, train, test), "probe": linear_probe(encode, train, test), "collapse": collapse(encode, test),
        "features": feature_map(encode, test), "views": views(view, train)})


if __name__ == "__main__":
    main(simclr)
