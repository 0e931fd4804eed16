"""SimCLR (Chen et al., 2020, https://arxiv.org/abs/2002.05709): two views of an image agree.

    launch/local.sh experiments/simclr.py                     # doodles: two minutes on two cores
    # The ledger's setting, there with a wider net
    launch/local.sh experiments/simclr.py --data cifar10 --view-size 24 --epochs 15
    # Sizes and optimizer of lightly's benchmark
    launch/local.sh experiments/simclr.py --data cifar10 --epochs 800 --batch-size 512 \
        --optimizer sgd --lr 0.24 --weight-decay 5e-4 --temperature 0.5 --head.widths 512 128 \
        encoder:res-net
    # The paper's setting, in bfloat16; planned in launch/plans.md
    launch/local.sh experiments/simclr.py --data imagenet2012 --image-size 320 --view-size 224 \
        --epochs 1000 --batch-size 4096 --optimizer lars --lr 4.8 --warmup 0.01 \
        --weight-decay 1e-6 --crop 0.08 --jitter 0.8 --blur 0.5 --interpolation bicubic \
        --head.widths 2048 128 encoder:res-net --encoder.depth 50 --encoder.stem imagenet \
        --dtype bfloat16

Doodles, three seeds: kNN 42.0 ± 3.1 % (untrained net 17.1, pixels 25.3), linear probe 50.4 ± 2.5 %
(20.9, 28.9); 210 s of CPU time a seed, evaluations included. With `--view-size 24 --epochs 16`
kNN is 44.7, and the probe 54.3 (one seed).
"""

import jax

from ssljax import Experiment, Kept, main, minimize, TrainState
from ssljax.data import feed, few, Images, steps_of
from ssljax.data.views import Views
from ssljax.evals.representation import representation
from ssljax.losses.infonce import nt_xent_loss
from ssljax.models.convnet import ConvNet
from ssljax.models.encoder import Chain, Encoder
from ssljax.models.mlp import MLP
from ssljax.optim import Optimizer, optimizer_of, warmup_cosine
from ssljax.ranges import checked, Count, FractionBelowOne, NotNegative, Positive


@checked
def simclr(
    data: Images = Images(),
    view: Views = Views(),
    encoder: Encoder = ConvNet(),
    head: MLP = MLP(widths=(256, 128), norm=True),
    temperature: Positive = 0.1,
    epochs: Count = 12,
    batch_size: Count = 128,
    optimizer: Optimizer = "adamw",
    lr: Positive = 2e-3,
    warmup: FractionBelowOne = 0.1,
    weight_decay: NotNegative = 1e-4,
) -> Experiment:
    """SimCLR: two views of an image agree, in contrast to all other images of the batch.

    Args:
        data: Images to learn from, and those that features are judged on.
        view: Random views of an image.
        encoder: f: encoder, whose features are evaluated.
        head: g: projection head, which only training uses.
        temperature: τ in eq. 1: temperature of the softmax.
        epochs: Passes over the training set.
        batch_size: Images in a step.
        optimizer: Optimizer; lars-outer is LARS with the learning rate outside the momentum.
        lr: Peak learning rate.
        warmup: Fraction of training over which the learning rate rises to its peak.
        weight_decay: Weight decay.
    """
    sets = data.read(whole=True)
    train = sets.train
    num_steps = steps_of(epochs, train, batch_size)
    tx = optimizer_of(optimizer, warmup_cosine(lr, num_steps, warmup), weight_decay)
    net, features = Chain(encoder=encoder, head=head), Chain(encoder=encoder)

    def init(key, batch):
        k1, k2, k3 = jax.random.split(key, 3)
        params, stats = net.init((k1, k3), view(k2, few(batch)))
        return TrainState.create(tx, params, **stats)

    def loss(params, state, batch, key):
        z, stats = net(params, state.extra, view.several(key, batch, 2), train=True)
        value = nt_xent_loss(z[0::2], z[1::2], temperature)
        return value, (stats, {"loss": value})

    def encode(state, x):
        return features(state.params, state.extra, view.whole(x), train=False)[0]

    return Experiment(
        init=init,
        step=minimize(tx, loss),
        data=feed(train, batch_size),
        num_steps=num_steps,
        encode=encode,
        kept=lambda state: Kept(encoder, state.params["encoder"], state.extra["encoder"]),
        evals=representation(encode, sets, view.either),
    )


if __name__ == "__main__":
    main(simclr)
