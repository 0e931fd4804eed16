"""Barlow Twins (Zbontar et al., 2021, https://arxiv.org/abs/2103.03230): features agree across views, each for itself.

    launch/local.sh experiments/barlow.py                                  # digits: a minute on a laptop CPU
    launch/local.sh experiments/barlow.py --data cifar10 --view-size 24 --epochs 15
    launch/local.sh experiments/barlow.py --data cifar10 --epochs 800 --batch-size 512 --optimizer sgd --lr 0.24 \
        --weight-decay 5e-4 --head.widths 2048 2048 encoder:res-net  # lightly's sizes and optimizer
    launch/local.sh experiments/barlow.py --data imagenet2012 --image-size 320 --view-size 224 --epochs 1000 \
        --batch-size 2048 --optimizer lars --lr 1.6 --warmup 0.01 --weight-decay 1e-6 --redundancy 5.1e-3 --crop 0.08 \
        --jitter 0.4 0.4 0.2 0.1 --blur 1 0.1 --solarize 0 0.2 --head.widths 8192 8192 8192 encoder:res-net \
        --encoder.depth 50 --encoder.stem imagenet  # the authors'; biases' rate is lower there
"""

import jax

from ssljax import Experiment, main, minimize, TrainState
from ssljax.data import feed, images
from ssljax.data.views import Views
from ssljax.evals.collapse import collapse
from ssljax.evals.knn import knn
from ssljax.evals.pictures import feature_map, views
from ssljax.evals.probe import linear_probe
from ssljax.losses.redundancy import barlow_twins_loss
from ssljax.models.convnet import ConvNet
from ssljax.models.encoder import Chain, Encoder
from ssljax.models.mlp import MLP
from ssljax.optim import Optimizer, optimizer_of, warmup_cosine


def barlow(
    data: str = "digits",
    image_size: int = 0,
    view: Views = Views(),
    encoder: Encoder = ConvNet(),
    head: MLP = MLP(widths=(512, 512), norm=True, last_bias=False),
    redundancy: float = 5e-3,
    epochs: int = 50,
    batch_size: int = 128,
    optimizer: Optimizer = "adamw",
    lr: float = 2e-3,
    warmup: float = 0.1,
    weight_decay: float = 1e-4,
) -> Experiment:
    """Barlow Twins: the features of two views are correlated each with itself, and with no other.

    Args:
        data: digits (embedded), a TFDS image set (cifar10, fashion_mnist), a folder of class folders, or an .npz.
        image_size: Pixels a side to resize images to as they are read; 0 to leave them.
        encoder: f in the paper, which is kept; the head, the projector, is not, and gains from width.
        redundancy: λ, the weight of the correlations between different features.
        warmup: Of training, the part over which lr rises to its peak.
    """
    train, test = (images(data, split, image_size) for split in ("train", "test"))
    num_steps = epochs * (len(train) // batch_size)
    tx = optimizer_of(optimizer, warmup_cosine(lr, num_steps, warmup), weight_decay)
    net, features = Chain(encoder=encoder, head=head), Chain(encoder=encoder)

    def init(key, batch):
        k1, k2, k3 = jax.random.split(key, 3)
        params, stats = net.init((k1, k3), view(k2, batch["image"][:2]))
        return TrainState.create(tx, params, **stats)

    def loss(params, state, batch, key):
        x = view.each(key, batch["image"])
        z, stats = net.each(
            params, state.extra, x
        )  # Each view by its own batch statistics, as in the authors' code.
        value = barlow_twins_loss(*z, redundancy)
        return value, (stats, {"loss": value})

    def encode(state, x):
        return features(state.params, state.extra, view.whole(x), train=False)[0]

    return Experiment(
        init=init,
        step=minimize(tx, loss),
        data=feed(train, batch_size),
        num_steps=num_steps,
        evals={
            "knn": knn(encode, train, test),
            "probe": linear_probe(encode, train, test),
            "collapse": collapse(encode, test),
            "features": feature_map(encode, test),
            "views": views(view.either, train),
        },
    )


if __name__ == "__main__":
    main(barlow)
