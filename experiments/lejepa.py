"""LeJEPA (Balestriero and LeCun, 2025, https://arxiv.org/abs/2511.08544): Gaussian features.

    launch/local.sh experiments/lejepa.py  # doodles
    launch/local.sh experiments/lejepa.py --data cifar10 --view-size 24 --epochs 15
    # λ, widths and learning rate of the authors' example
    launch/local.sh experiments/lejepa.py --data cifar10 --epochs 800 --batch-size 256 --lr 2e-3 \
        --final-lr 1e-3 --weight-decay 0.05 --head.widths 2048 2048 16 --large 4 --sketch 0.02 \
        encoder:res-net
    # The paper's ViT-L, views and slices; the rest is our choice
    launch/local.sh experiments/lejepa.py --data imagenet2012 --image-size 320 --view-size 224 \
        --epochs 100 --batch-size 512 --lr 5e-4 --weight-decay 0.05 --small 8 --small-size 98 \
        --part 0.3 --crop 0.05 --jitter 0.4 0.4 0.2 0.1 --blur 1 0.1 0.5 --solarize 0 0.2 0 \
        --slices 1024 --head.widths 2048 2048 128 encoder:vit --encoder.patch 14 \
        --encoder.width 1024 --encoder.depth 24 --encoder.heads 16
"""

import jax

from ssljax import Experiment, Kept, main, minimize, TrainState
from ssljax.data import feed, few, Images, steps_of
from ssljax.data.views import MultiCrop
from ssljax.evals.pictures import views
from ssljax.evals.representation import representation
from ssljax.losses.redundancy import lejepa_loss
from ssljax.models.convnet import ConvNet
from ssljax.models.encoder import Chain, Encoder
from ssljax.models.mlp import MLP
from ssljax.optim import Optimizer, optimizer_of, warmup_cosine
from ssljax.ranges import checked, Count, Fraction, FractionBelowOne, NotNegative, Positive


@checked
def lejepa(
    data: Images = Images(),
    crops: MultiCrop = MultiCrop(small=0),
    encoder: Encoder = ConvNet(),
    head: MLP = MLP(widths=(256, 128), norm=True),
    sketch: Fraction = 0.05,
    slices: Count = 256,
    epochs: Count = 12,
    batch_size: Count = 128,
    optimizer: Optimizer = "adamw",
    lr: Positive = 2e-3,
    warmup: FractionBelowOne = 0.1,
    final_lr: NotNegative = 0.0,
    weight_decay: NotNegative = 1e-4,
) -> Experiment:
    """LeJEPA: views are near the mean of the large ones, and features are Gaussian (SIGReg).

    Args:
        data: Images to learn from, and those that features are judged on.
        crops: Large and small random views of an image.
        encoder: Encoder, whose features are evaluated.
        head: Projection head, which only training uses.
        sketch: λ: weight of SIGReg; the distance between views has 1 - λ.
        slices: Random directions along which SIGReg tests the features in a step.
        epochs: Passes over the training set.
        batch_size: Images in a step.
        optimizer: Optimizer; lars-outer is LARS with the learning rate outside the momentum.
        lr: Peak learning rate.
        warmup: Fraction of training over which the learning rate rises to its peak.
        final_lr: Learning rate at the end, reached by a cosine.
        weight_decay: Weight decay.
    """
    sets = data.read(whole=True)
    train = sets.train
    num_steps = steps_of(epochs, train, batch_size)
    tx = optimizer_of(optimizer, warmup_cosine(lr, num_steps, warmup, final_lr), weight_decay)
    large, *small = crops.kinds(train.shape)
    net, features = Chain(encoder=encoder, head=head), Chain(encoder=encoder)

    def init(key, batch):
        k1, k2, k3 = jax.random.split(key, 3)
        params, stats = net.init((k1, k3), crops.view(k2, few(batch)))
        return TrainState.create(tx, params, **stats)

    def loss(params, state, batch, key):
        k1, k2 = jax.random.split(key)
        z, stats = net.crops(params, state.extra, crops(k1, batch))
        d = z.shape[-1]
        # All examples share the directions: there is no batch to split over devices.
        directions = jax.random.normal(k2, (slices, d))
        value = lejepa_loss(z.swapaxes(0, 1), directions, sketch, crops.large)
        return value, (stats, {"loss": value})

    def encode(state, x):
        return features(state.params, state.extra, crops.view.whole(x), train=False)[0]

    return Experiment(
        init=init,
        step=minimize(tx, loss),
        data=feed(train, batch_size),
        num_steps=num_steps,
        encode=encode,
        kept=lambda state: Kept(encoder, state.params["encoder"], state.extra["encoder"]),
        evals={
            **representation(encode, sets, large.either),
            **({"small_views": views(small[0], train)} if small else {}),
        },
    )


if __name__ == "__main__":
    main(lejepa)
