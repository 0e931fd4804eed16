"""DINO (Caron et al., 2021, https://arxiv.org/abs/2104.14294): a net learns the sharpened outputs of its own slow copy.

    launch/local.sh experiments/dino.py                                    # digits: two minutes on a laptop CPU
    launch/local.sh experiments/dino.py --data cifar10 --epochs 800 --batch-size 512 --optimizer sgd --lr 0.24 \
        --weight-decay 5e-4 --small 0 --head.widths 2048 256 --prototypes 2048 encoder:res-net  # as lightly, but GELU
    launch/local.sh experiments/dino.py --data imagenet2012 --image-size 320 --view-size 224 --epochs 800 --batch-size 1024 \
        --weight-decay 0.04 --final-decay 0.4 --warmup 0.0125 --sharpen 0.0375 --decay 0.996 --crop 0.05 --part 0.25 \
        --small 10 --small-size 96 --jitter 0.4 0.4 0.2 0.1 --blur 1 0.1 0.5 --solarize 0 0.2 0 --head.widths 2048 2048 256 \
        --head.no-norm --head.activation gelu --prototypes 65536 --frozen 0.00125 encoder:vit --encoder.patch 16 \
        --encoder.width 384 --encoder.depth 12 --encoder.heads 6 --encoder.pool token --encoder.positions learned  # no drop path
"""

import jax
import jax.numpy as jnp

from ssljax import ema, Experiment, main, minimize, TrainState
from ssljax.data import feed, images
from ssljax.data.views import MultiCrop
from ssljax.evals.collapse import collapse
from ssljax.evals.knn import knn
from ssljax.evals.pictures import feature_map, views
from ssljax.evals.probe import linear_probe
from ssljax.losses.distillation import dino_loss, teacher_temperature
from ssljax.losses.infonce import normalize, product
from ssljax.models.convnet import ConvNet
from ssljax.models.encoder import Chain, Encoder
from ssljax.models.mlp import MLP
from ssljax.optim import (
    cosine,
    moving_average,
    Optimizer,
    optimizer_of,
    rising_decay,
    warmup_cosine,
)


def dino(
    data: str = "digits",
    image_size: int = 0,
    crops: MultiCrop = MultiCrop(),
    encoder: Encoder = ConvNet(),
    head: MLP = MLP(widths=(256, 128), norm=True),
    prototypes: int = 256,
    frozen: float = 0.02,
    decay: float = 0.99,
    centre_decay: float = 0.9,
    temperature: float = 0.1,
    sharp: float = 0.07,
    sharpen: float = 1 / 3,
    epochs: int = 50,
    batch_size: int = 128,
    optimizer: Optimizer = "adamw",
    lr: float = 2e-3,
    warmup: float = 0.1,
    weight_decay: float = 1e-4,
    final_decay: float | None = None,
) -> Experiment:
    """DINO: all views learn what the teacher, a moving average of the student, makes of the large ones.

    Args:
        data: digits (embedded), a TFDS image set (cifar10, fashion_mnist), a folder of class folders, or an .npz.
        image_size: Pixels a side to resize images to as they are read; 0 to leave them.
        encoder: f in the paper; the teacher's is kept. The head, and the prototypes at length 1, are not.
        frozen: The part of training for which the student's prototypes stay as drawn.
        decay: λ, of the teacher's moving average at the start; it rises to 1.
        sharp: The teacher's temperature, reached over the part `sharpen` of training, from 0.04.
        final_decay: What weight decay ends at, by a cosine; else it stays. (`warmup`: the part over which lr rises.)
    """
    train, test = (images(data, split, image_size) for split in ("train", "test"))
    num_steps = epochs * (len(train) // batch_size)
    tx = optimizer_of(
        optimizer,
        warmup_cosine(lr, num_steps, warmup),
        cosine(weight_decay, final_decay, num_steps),
    )
    rate, tau, (large, *small) = (
        rising_decay(decay, num_steps),
        teacher_temperature(sharp, sharpen * num_steps),
        crops.kinds(train.shape),
    )
    net, features = Chain(encoder=encoder, head=head), Chain(encoder=encoder)
    scores = lambda z, c: product(normalize(z), normalize(c).T).reshape(-1, batch_size, prototypes)

    def init(key, batch):
        k1, k2, k3 = jax.random.split(key, 3)
        params, stats = net.init((k1, k2), crops.view(key, batch["image"][:2]))
        params["prototypes"] = jax.random.normal(k3, (prototypes, head.widths[-1]))
        return TrainState.create(
            tx, params, **stats, teacher=params, seen=stats, centre=jnp.zeros(prototypes)
        )

    def loss(params, state, batch, key):
        x, c, extra = crops(key, batch["image"]), params["prototypes"], state.extra
        teacher = ema(extra["teacher"], params, rate(state.step))
        (t, seen), (s, stats) = (
            net.crops(teacher, extra["seen"], x[:1]),
            net.crops(params, extra, x),
        )  # Own statistics.
        c = jnp.where(state.step < frozen * num_steps, jax.lax.stop_gradient(c), c)
        t = scores(t, teacher["prototypes"])
        value = dino_loss(t, scores(s, c), extra["centre"], tau(state.step), temperature)
        centre = ema(extra["centre"], t.mean((0, 1)), moving_average(centre_decay))
        return value, (
            stats | {"teacher": teacher, "seen": seen, "centre": centre},
            {"loss": value},
        )

    encode = lambda state, x: features(
        state.extra["teacher"], state.extra["seen"], crops.view.whole(x), train=False
    )[0]
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
            "views": views(large.either, train),
            **{"small_views": views(kind, train) for kind in small},
        },
    )


if __name__ == "__main__":
    main(dino)
