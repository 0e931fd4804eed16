"""MoCo v3 (Chen et al., 2021, https://arxiv.org/abs/2104.02057): BYOL's two nets with the other images as negatives.

    launch/local.sh experiments/mocov3.py                                  # digits: a minute on a laptop CPU
    launch/local.sh experiments/mocov3.py --data cifar10 --view-size 24 --epochs 15
    launch/local.sh experiments/mocov3.py --data cifar10 --epochs 1000 --batch-size 256 --optimizer sgd --lr 0.12 \
        --weight-decay 5e-4 --head.widths 4096 256 --predictor.widths 4096 256 --predictor.no-last-bias \
        encoder:res-net  # solo-learn's sizes, but not its LARS
    launch/local.sh experiments/mocov3.py --data imagenet2012 --image-size 320 --view-size 224 --epochs 1000 \
        --batch-size 4096 --optimizer lars --lr 4.8 --warmup 0.01 --weight-decay 1.5e-6 --decay 0.996 --temperature 1 \
        --jitter 0.4 0.4 0.2 0.1 --blur 1 0.1 --solarize 0 0.2 --head.widths 4096 256 --predictor.widths 4096 256 \
        --predictor.no-last-bias encoder:res-net --encoder.depth 50 --encoder.stem imagenet  # the authors' ResNet-50
    launch/local.sh experiments/mocov3.py --data imagenet2012 --image-size 320 --view-size 224 --epochs 300 --batch-size 4096 \
        --lr 2.4e-3 --warmup 0.133 --weight-decay 0.1 --crop 0.08 --jitter 0.4 0.4 0.2 0.1 --blur 1 0.1 --solarize 0 0.2 \
        --head.widths 4096 4096 256 --predictor.widths 4096 256 --predictor.last-norm encoder:vit --encoder.patch 16 \
        --encoder.width 384 --encoder.depth 12 --encoder.heads 12 \
        --encoder.pool token  # and ViT-S, whose first layer they freeze
"""

import jax

from ssljax import ema, Experiment, main, minimize, TrainState
from ssljax.data import feed, images
from ssljax.data.views import Views
from ssljax.evals.collapse import collapse
from ssljax.evals.knn import knn
from ssljax.evals.pictures import feature_map, views
from ssljax.evals.probe import linear_probe
from ssljax.losses.infonce import info_nce_loss
from ssljax.models.convnet import ConvNet
from ssljax.models.encoder import Chain, Encoder
from ssljax.models.mlp import MLP
from ssljax.optim import Optimizer, optimizer_of, rising_decay, warmup_cosine


def mocov3(
    data: str = "digits",
    image_size: int = 0,
    view: Views = Views(),
    encoder: Encoder = ConvNet(),
    head: MLP = MLP(widths=(256, 128), norm=True, last_norm=True),
    predictor: MLP = MLP(widths=(256, 128), norm=True),
    decay: float = 0.99,
    temperature: float = 0.2,
    epochs: int = 50,
    batch_size: int = 128,
    optimizer: Optimizer = "adamw",
    lr: float = 2e-3,
    warmup: float = 0.1,
    weight_decay: float = 1e-4,
) -> Experiment:
    """MoCo v3: from one view the net finds a slow copy's projection of the other among those of all images.

    Args:
        data: digits (embedded), a TFDS image set (cifar10, fashion_mnist), a folder of class folders, or an .npz.
        image_size: Pixels a side to resize images to as they are read; 0 to leave them.
        encoder: What is kept; on it lie the head and the predictor.
        predictor: Of the net that is trained alone; it ends with the width that the head ends with.
        decay: m, of the momentum encoder's moving average at the start; it rises to 1.
        warmup: Of training, the part over which lr rises to its peak.
    """
    train, test = (images(data, split, image_size) for split in ("train", "test"))
    num_steps = epochs * (len(train) // batch_size)
    tx = optimizer_of(optimizer, warmup_cosine(lr, num_steps, warmup), weight_decay)
    m = rising_decay(decay, num_steps)
    features, projection = Chain(encoder=encoder), Chain(encoder=encoder, head=head)
    net = Chain(encoder=encoder, head=head, predictor=predictor)

    def init(key, batch):
        params, stats = net.init(jax.random.split(key, 3), view(key, batch["image"][:2]))
        return TrainState.create(
            tx, params, **stats, target={k: params[k] for k in ("encoder", "head")}
        )

    def loss(params, state, batch, key):
        x, target = view.each(key, batch["image"]), state.extra["target"]
        target = ema(target, {k: params[k] for k in target}, m(state.step))
        (q1, q2), stats = net.each(
            params, state.extra, x
        )  # Each view by its own batch statistics: in both nets.
        (k1, k2), _ = projection.each(target, state.extra, x)
        value = (
            2
            * temperature
            * (info_nce_loss(q1, k2, tau=temperature) + info_nce_loss(q2, k1, tau=temperature))
        )
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
    main(mocov3)
