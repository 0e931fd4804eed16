"""NNCLR (Dwibedi et al., 2021, https://arxiv.org/abs/2104.14548): the positive is a neighbour of the other view.

    launch/local.sh experiments/nnclr.py                                  # digits: a minute on a laptop CPU
    launch/local.sh experiments/nnclr.py --data cifar10 --view-size 24 --epochs 15
    launch/local.sh experiments/nnclr.py --data cifar10 --epochs 800 --batch-size 512 --optimizer sgd --lr 0.24 \
        --weight-decay 5e-4 --head.widths 2048 256 --predictor.widths 4096 256 --queue 8192 --temperature 0.5 \
        encoder:res-net  # lightly's sizes and optimizer
    launch/local.sh experiments/nnclr.py --data imagenet2012 --image-size 320 --view-size 224 --epochs 1000 --batch-size 4096 \
        --optimizer lars --lr 4.8 --warmup 0.01 --weight-decay 1e-6 --crop 0.08 --blur 0.5 --head.widths 2048 2048 256 \
        --predictor.widths 4096 256 --queue 98304 encoder:res-net --encoder.depth 50 --encoder.stem imagenet  # the paper's
"""

import jax
import jax.numpy as jnp

from ssljax import Experiment, main, minimize, TrainState
from ssljax.data import feed, images
from ssljax.data.views import Views
from ssljax.evals.collapse import collapse
from ssljax.evals.knn import knn
from ssljax.evals.pictures import feature_map, views
from ssljax.evals.probe import linear_probe
from ssljax.losses.infonce import enqueue, info_nce_loss, nearest_neighbour, normalize
from ssljax.models.convnet import ConvNet
from ssljax.models.encoder import Chain, Encoder
from ssljax.models.mlp import MLP
from ssljax.optim import Optimizer, optimizer_of, warmup_cosine


def nnclr(
    data: str = "digits",
    image_size: int = 0,
    view: Views = Views(),
    encoder: Encoder = ConvNet(),
    head: MLP = MLP(widths=(256, 128), norm=True, last_norm=True),
    predictor: MLP = MLP(widths=(256, 128), norm=True),
    queue: int = 1024,
    temperature: float = 0.1,
    epochs: int = 50,
    batch_size: int = 128,
    optimizer: Optimizer = "adamw",
    lr: float = 2e-3,
    warmup: float = 0.1,
    weight_decay: float = 1e-4,
) -> Experiment:
    """NNCLR: of a view the nearest of earlier ones is found from the other view, among the batch.

    Args:
        data: digits (embedded), a TFDS image set (cifar10, fashion_mnist), a folder of class folders, or an .npz.
        image_size: Pixels a side to resize images to as they are read; 0 to leave them.
        encoder: f in the paper, which is kept; the head, g, is not.
        predictor: g of the paper's figure 2, on one side; it ends with the width that the head ends with.
        queue: Projections of earlier batches, the support set: a multiple of the batch size.
        warmup: Of training, the part over which lr rises to its peak.
    """
    train, test = (images(data, split, image_size) for split in ("train", "test"))
    num_steps = epochs * (len(train) // batch_size)
    tx = optimizer_of(optimizer, warmup_cosine(lr, num_steps, warmup), weight_decay)
    features, projection = Chain(encoder=encoder), Chain(encoder=encoder, head=head)
    predict = Chain(predictor=predictor)

    def init(key, batch):
        k1, k2, k3, k4 = jax.random.split(key, 4)
        params, stats = projection.init((k1, k2), view(key, batch["image"][:2]))
        more, rest = predict.init((k3,), jnp.zeros((2, head.widths[-1])))
        support = normalize(jax.random.normal(k4, (queue, head.widths[-1])))
        return TrainState.create(tx, params | more, **stats, **rest, queue=support)

    def loss(params, state, batch, key):
        x, support = view.each(key, batch["image"]), state.extra["queue"]
        (z1, z2), stats = projection.each(
            params, state.extra, x
        )  # Each view by its own batch statistics.
        (p1, p2), rest = predict.each(params, state.extra, (z1, z2))
        one, two = (
            info_nce_loss(nearest_neighbour(a, support), b, tau=temperature)
            for a, b in ((z1, p2), (z2, p1))
        )
        value = (one + two) / 2
        return value, (stats | rest | {"queue": enqueue(support, normalize(z1))}, {"loss": value})

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
    main(nnclr)
