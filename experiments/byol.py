"""BYOL (Grill et al., 2020, https://arxiv.org/abs/2006.07733): one view predicts a slow net's features of another.

    launch/local.sh experiments/byol.py                                  # digits: a minute on a laptop CPU
    launch/local.sh experiments/byol.py --data cifar10 --view-size 24 --epochs 15
    launch/local.sh experiments/byol.py --data cifar10 --epochs 800 --batch-size 512 --optimizer sgd --lr 0.24 \
        --weight-decay 5e-4 --head.widths 1024 256 --head.no-last-norm --predictor.widths 1024 256 \
        encoder:res-net  # lightly's sizes and optimizer
    launch/local.sh experiments/byol.py --data imagenet2012 --image-size 320 --view-size 224 --epochs 1000 \
        --batch-size 4096 --optimizer lars --lr 3.2 --warmup 0.01 --weight-decay 1.5e-6 --decay 0.996 --crop 0.08 \
        --jitter 0.4 0.4 0.2 0.1 --blur 1 0.1 --solarize 0 0.2 --head.widths 4096 256 --head.no-last-norm \
        --head.no-last-bias --predictor.widths 4096 256 --predictor.no-last-bias encoder:res-net --encoder.depth 50 \
        --encoder.stem imagenet  # the paper's

Deviation: the head's output is normalised too, as in MoCo v3: as in the paper, by the last command's flags, neighbours of
digits end below an untrained net's (90.6 against 93.1 % of three seeds; the probe is level).
"""

import jax

from ssljax import ema, Experiment, main, minimize, TrainState
from ssljax.data import feed, images
from ssljax.data.views import Views
from ssljax.evals.collapse import collapse
from ssljax.evals.knn import knn
from ssljax.evals.pictures import feature_map, views
from ssljax.evals.probe import linear_probe
from ssljax.losses.distillation import byol_loss
from ssljax.models.convnet import ConvNet
from ssljax.models.encoder import Chain, Encoder
from ssljax.models.mlp import MLP
from ssljax.optim import Optimizer, optimizer_of, rising_decay, warmup_cosine


def byol(
    data: str = "digits",
    image_size: int = 0,
    view: Views = Views(),
    encoder: Encoder = ConvNet(),
    head: MLP = MLP(widths=(256, 128), norm=True, last_norm=True),
    predictor: MLP = MLP(widths=(256, 128), norm=True),
    decay: float = 0.99,
    epochs: int = 50,
    batch_size: int = 128,
    optimizer: Optimizer = "adamw",
    lr: float = 2e-3,
    warmup: float = 0.1,
    weight_decay: float = 1e-4,
) -> Experiment:
    """BYOL: from one view the online net predicts the target net's projection of the other; no negatives.

    Args:
        data: digits (embedded), a TFDS image set (cifar10, fashion_mnist), a folder of class folders, or an .npz.
        image_size: Pixels a side to resize images to as they are read; 0 to leave them.
        encoder: f in the paper, which is kept; the head, g, is not.
        predictor: q, of the online net alone; it ends with the width that the head ends with.
        decay: τ, of the target's moving average at the start; it rises to 1.
        warmup: Of training, the part over which lr rises to its peak.
    """
    train, test = (images(data, split, image_size) for split in ("train", "test"))
    num_steps = epochs * (len(train) // batch_size)
    tx = optimizer_of(optimizer, warmup_cosine(lr, num_steps, warmup), weight_decay)
    tau = rising_decay(decay, num_steps)
    features, projection = Chain(encoder=encoder), Chain(encoder=encoder, head=head)
    net = Chain(encoder=encoder, head=head, predictor=predictor)

    def init(key, batch):
        params, stats = net.init(jax.random.split(key, 3), view(key, batch["image"][:2]))
        return TrainState.create(
            tx, params, **stats, target={k: params[k] for k in ("encoder", "head")}
        )

    def loss(params, state, batch, key):
        x, target = view.each(key, batch["image"]), state.extra["target"]
        target = ema(
            target, {k: params[k] for k in target}, tau(state.step)
        )  # ξ for the θ of this step.
        (q1, q2), stats = net.each(
            params, state.extra, x
        )  # Each view by its own batch statistics: in both nets.
        (z1, z2), _ = projection.each(target, state.extra, x)
        value = byol_loss(q1, z2) + byol_loss(q2, z1)
        return value, ({**stats, "target": target}, {"loss": value})

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
    main(byol)
