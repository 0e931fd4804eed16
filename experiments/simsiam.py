"""SimSiam (Chen and He, 2020, https://arxiv.org/abs/2011.10566): a stop-gradient is enough.

    launch/local.sh experiments/simsiam.py  # doodles
    launch/local.sh experiments/simsiam.py --data cifar10 --view-size 24 --epochs 15
    # The paper's appendix D
    launch/local.sh experiments/simsiam.py --data cifar10 --epochs 800 --batch-size 512 \
        --optimizer sgd --lr 0.06 --weight-decay 5e-4 --head.widths 2048 2048 \
        --predictor.widths 512 2048 encoder:res-net
    # The paper's setting; planned in launch/plans.md
    launch/local.sh experiments/simsiam.py --data imagenet2012 --image-size 320 --view-size 224 \
        --epochs 100 --batch-size 256 --optimizer sgd --lr 0.05 --warmup 0 --weight-decay 1e-4 \
        --blur 0.5 --head.widths 2048 2048 2048 --predictor.widths 512 2048 encoder:res-net \
        --encoder.depth 50 --encoder.stem imagenet

Doodles, on training drawings held out, one seed: kNN 27.8 % (untrained net 15.4, pixels 25.3),
linear probe 37.8 % (18.5, 28.9). The paper's SGD of .05 with decay 5e-4 learns too slowly for 12
epochs: kNN 22.4 %, probe 24.2 % on the test drawings.
"""

import jax
import jax.numpy as jnp

from ssljax import Experiment, Kept, main, minimize, TrainState
from ssljax.data import feed, few, Images, steps_of
from ssljax.data.views import Views
from ssljax.evals.representation import representation
from ssljax.losses.distillation import negative_cosine_loss
from ssljax.models.convnet import ConvNet
from ssljax.models.encoder import Chain, check_predictor, Encoder
from ssljax.models.mlp import MLP
from ssljax.optim import Optimizer, optimizer_of, warmup_cosine
from ssljax.ranges import checked, Count, FractionBelowOne, NotNegative, Positive


@checked
def simsiam(
    data: Images = Images(),
    view: Views = Views(),
    encoder: Encoder = ConvNet(),
    head: MLP = MLP(widths=(256, 128), norm=True, last_norm=True),
    predictor: MLP = MLP(widths=(64, 128), norm=True),
    epochs: Count = 12,
    batch_size: Count = 128,
    optimizer: Optimizer = "adamw",
    lr: Positive = 2e-3,
    warmup: FractionBelowOne = 0.1,
    weight_decay: NotNegative = 1e-4,
) -> Experiment:
    """SimSiam: from each of two views a predictor finds the other's projection, held constant.

    Args:
        data: Images to learn from, and those that features are judged on.
        view: Random views of an image.
        encoder: Encoder, whose features are evaluated; with the head it is f.
        head: Projection head, which only training uses.
        predictor: h: prediction head, narrower inside; its last width is the head's.
        epochs: Passes over the training set.
        batch_size: Images in a step.
        optimizer: Optimizer; lars-outer is LARS with the learning rate outside the momentum.
        lr: Peak learning rate.
        warmup: Fraction of training over which the learning rate rises to its peak.
        weight_decay: Weight decay.
    """
    check_predictor(head, predictor)
    sets = data.read(whole=True)
    train = sets.train
    num_steps = steps_of(epochs, train, batch_size)
    tx = optimizer_of(optimizer, warmup_cosine(lr, num_steps, warmup), weight_decay)
    features, projection = Chain(encoder=encoder), Chain(encoder=encoder, head=head)
    predict = Chain(predictor=predictor)

    def init(key, batch):
        k1, k2, k3 = jax.random.split(key, 3)
        params, stats = projection.init((k1, k2), view(key, few(batch)))
        more, rest = predict.init((k3,), jnp.zeros((2, head.widths[-1])))
        return TrainState.create(tx, params | more, **stats, **rest)

    def loss(params, state, batch, key):
        x = view.each(key, batch)
        # Each view has batch statistics of its own.
        (z1, z2), stats = projection.each(params, state.extra, x)
        (p1, p2), rest = predict.each(params, state.extra, (z1, z2))
        value = negative_cosine_loss(p1, z2) / 2 + negative_cosine_loss(p2, z1) / 2
        return value, (stats | rest, {"loss": value})

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
    main(simsiam)
