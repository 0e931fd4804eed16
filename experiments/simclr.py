"""SimCLR: two random views of an image agree, against all other images of the batch.

Chen et al., 2020, https://arxiv.org/abs/2002.05709.

    launch/local.sh experiments/simclr.py                              # scikit-learn's digits, 2 minutes on a laptop
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
    data: str = "digits",
    image_size: int = 0,
    encoder: ConvNet | ResNet = ConvNet(),
    head: MLP = MLP(widths=(256, 128), norm=True),
    temperature: float = 0.2,
    crop: float = 0.2,
    jitter: float = 0.4,
    epochs: int = 50,
    batch_size: int = 256,
    lr: float = 2e-3,
    weight_decay: float = 1e-4,
) -> Experiment:
    """SimCLR: two random views of an image agree, against all other images of the batch.

    Args:
        data: digits (embedded), a TFDS image set (cifar10, fashion_mnist), a folder of class folders, or an .npz.
    """
    train, test = (images(data, split, image_size) for split in ("train", "test"))
    batches = feed(train, batch_size)
    num_steps = epochs * (len(train) // batch_size)
    tx = adamw(warmup_cosine(lr, num_steps), weight_decay)

    def view(key, x):
        k1, k2, k3, k4 = jax.random.split(key, 4)
        x = augment.flip(k2, augment.random_resized_crop(k1, augment.to_float(x), scale=(crop, 1.0)))
        x = augment.colour_jitter(k3, x, jitter, jitter, jitter, jitter / 4, p=0.8)
        return augment.grayscale(k4, x, p=0.2)

    def init(key, batch):
        ke, kh = jax.random.split(key)
        e = encoder.init(ke, augment.to_float(batch["image"][:2]))
        h = head.init(kh, encoder.apply(e, augment.to_float(batch["image"][:2])))
        params = {"encoder": e["params"], "head": h["params"]}
        return TrainState.create(tx, params, encoder=e["batch_stats"], head=h["batch_stats"])

    def loss(params, state, batch, key):
        x = jnp.concatenate([view(k, batch["image"]) for k in jax.random.split(key)])
        net = lambda m, name, x: m.apply({"params": params[name], "batch_stats": state.extra[name]}, x, train=True,
                                         mutable=["batch_stats"])
        h, e_stats = net(encoder, "encoder", x)
        z, h_stats = net(head, "head", h)
        value = nt_xent(*jnp.split(z, 2), temperature)
        return value, ({"encoder": e_stats["batch_stats"], "head": h_stats["batch_stats"]}, {"loss": value})

    def encode(state, x):
        return encoder.apply({"params": state.params["encoder"], "batch_stats": state.extra["encoder"]},
                             augment.to_float(x))

    return Experiment(init=init, step=minimize(tx, loss), data=batches, num_steps=num_steps, evals={
        "knn": knn(encode, train, test), "probe": linear_probe(encode, train, test), "collapse": collapse(encode, test),
        "features": feature_map(encode, test), "views": views(view, train)})


if __name__ == "__main__":
    main(simclr)
