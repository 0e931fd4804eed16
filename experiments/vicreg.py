"""VICReg (Bardes et al., 2021, https://arxiv.org/abs/2105.04906): variance, invariance and covariance of the features.

    launch/local.sh experiments/vicreg.py                                  # digits: a minute on a laptop CPU
    launch/local.sh experiments/vicreg.py --data cifar10 --view-size 24 --epochs 15
    launch/local.sh experiments/vicreg.py --data cifar10 --epochs 1000 --batch-size 256 --head.widths 2048 2048 2048 \
        --jitter 0.4 0.4 0.2 0.1 --solarize 0.1 encoder:res-net  # the sizes of solo-learn's CIFAR-10, whose LARS is another
    launch/local.sh experiments/vicreg.py --data imagenet2012 --image-size 320 --view-size 224 --epochs 1000 \
        --batch-size 2048 --optimizer lars --lr 1.6 --warmup 0.01 --weight-decay 1e-6 --crop 0.08 --jitter 0.4 0.4 0.2 0.1 \
        --blur 0.5 --solarize 0.1 --head.widths 8192 8192 8192 encoder:res-net --encoder.depth 50 \
        --encoder.stem imagenet  # the paper's
"""

import jax

from ssljax import Experiment, main, minimize, TrainState
from ssljax.data import feed, images
from ssljax.data.views import Views
from ssljax.evals.collapse import collapse
from ssljax.evals.knn import knn
from ssljax.evals.pictures import feature_map, views
from ssljax.evals.probe import linear_probe
from ssljax.losses.redundancy import vicreg_loss
from ssljax.models.convnet import ConvNet
from ssljax.models.encoder import Chain, Encoder
from ssljax.models.mlp import MLP
from ssljax.optim import Optimizer, optimizer_of, warmup_cosine


def vicreg(
    data: str = "digits",
    image_size: int = 0,
    view: Views = Views(),
    encoder: Encoder = ConvNet(),
    head: MLP = MLP(widths=(512, 512), norm=True, last_bias=False),
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
    epochs: int = 50,
    batch_size: int = 128,
    optimizer: Optimizer = "adamw",
    lr: float = 2e-3,
    warmup: float = 0.1,
    weight_decay: float = 1e-4,
) -> Experiment:
    """VICReg: two views agree, while each feature varies over the batch and covaries with no other.

    Args:
        data: digits (embedded), a TFDS image set (cifar10, fashion_mnist), a folder of class folders, or an .npz.
        image_size: Pixels a side to resize images to as they are read; 0 to leave them.
        encoder: f in the paper, which is kept; the head, the expander, is not, and gains from width.
        invariance: λ, the weight of the squared error between the views.
        variance: μ, of what each feature's standard deviation lacks of 1.
        covariance: ν, of the squared covariances between different features.
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
        value = vicreg_loss(*z, invariance, variance, covariance)
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
    main(vicreg)
