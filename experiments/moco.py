"""MoCo v2 (Chen et al., 2020, https://arxiv.org/abs/2003.04297): negatives from a queue that a slow net fills.

    launch/local.sh experiments/moco.py                                  # digits: a minute on a laptop CPU
    launch/local.sh experiments/moco.py --data cifar10 --view-size 24 --epochs 15
    launch/local.sh experiments/moco.py --data cifar10 --epochs 1000 --batch-size 256 --optimizer sgd --lr 0.3 \
        --weight-decay 1e-4 --head.widths 2048 256 --queue 32768 --temperature 0.2 \
        encoder:res-net  # solo-learn's sizes and optimizer
    launch/local.sh experiments/moco.py --data imagenet2012 --image-size 320 --view-size 224 --epochs 800 --batch-size 256 \
        --optimizer sgd --lr 0.03 --warmup 0 --weight-decay 1e-4 --decay 0.999 --queue 65536 --temperature 0.2 --blur 0.5 \
        --head.no-norm --head.widths 2048 128 encoder:res-net --encoder.depth 50 --encoder.stem imagenet  # the paper's

Deviations: BatchNorm is not shuffled between devices: a query's statistics and its key's are both of the whole batch,
so that what shuffling hides may leak. And the head has BatchNorm, where the paper's has none (`--head.no-norm`).
"""

import jax

from ssljax import ema, Experiment, main, minimize, TrainState
from ssljax.data import feed, images
from ssljax.data.views import Views
from ssljax.evals.collapse import collapse
from ssljax.evals.knn import knn
from ssljax.evals.pictures import feature_map, views
from ssljax.evals.probe import linear_probe
from ssljax.losses.infonce import enqueue, info_nce_loss, normalize
from ssljax.models.convnet import ConvNet
from ssljax.models.encoder import Chain, Encoder
from ssljax.models.mlp import MLP
from ssljax.optim import moving_average, Optimizer, optimizer_of, warmup_cosine


def moco(
    data: str = "digits",
    image_size: int = 0,
    view: Views = Views(),
    encoder: Encoder = ConvNet(),
    head: MLP = MLP(widths=(256, 128), norm=True),
    queue: int = 1024,
    decay: float = 0.99,
    temperature: float = 0.1,
    epochs: int = 50,
    batch_size: int = 128,
    optimizer: Optimizer = "adamw",
    lr: float = 2e-3,
    warmup: float = 0.1,
    weight_decay: float = 1e-4,
) -> Experiment:
    """MoCo: a view finds its other view, seen by a moving average of the net, among a queue of earlier ones.

    Args:
        data: digits (embedded), a TFDS image set (cifar10, fashion_mnist), a folder of class folders, or an .npz.
        image_size: Pixels a side to resize images to as they are read; 0 to leave them.
        encoder: f_q in the paper, which is kept; the head is not.
        queue: Keys of earlier batches that are kept as negatives: a multiple of the batch size.
        decay: m, of the key encoder's moving average.
        warmup: Of training, the part over which lr rises to its peak.
    """
    train, test = (images(data, split, image_size) for split in ("train", "test"))
    num_steps = epochs * (len(train) // batch_size)
    tx = optimizer_of(optimizer, warmup_cosine(lr, num_steps, warmup), weight_decay)
    m = moving_average(decay)
    net, features = Chain(encoder=encoder, head=head), Chain(encoder=encoder)

    def init(key, batch):
        k1, k2, k3 = jax.random.split(key, 3)
        params, stats = net.init((k1, k2), view(key, batch["image"][:2]))
        keys = normalize(jax.random.normal(k3, (queue, head.widths[-1])))
        return TrainState.create(tx, params, **stats, target=params, queue=keys)

    def loss(params, state, batch, key):
        x, k = view.each(key, batch["image"])
        target, keys = ema(state.extra["target"], params, m), state.extra["queue"]
        q, stats = net(params, state.extra, x, train=True)
        k, _ = net(target, state.extra, k, train=True)  # By the batch's statistics.
        value = info_nce_loss(q, k, keys, temperature)
        return value, (
            {**stats, "target": target, "queue": enqueue(keys, normalize(k))},
            {"loss": value},
        )

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
    main(moco)
