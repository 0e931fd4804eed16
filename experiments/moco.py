"""MoCo v2 (Chen et al., 2020, https://arxiv.org/abs/2003.04297): negatives from a queue.

    launch/local.sh experiments/moco.py  # doodles
    launch/local.sh experiments/moco.py --data cifar10 --view-size 24 --epochs 15
    # Sizes and optimizer of solo-learn's benchmark
    launch/local.sh experiments/moco.py --data cifar10 --epochs 1000 --batch-size 256 \
        --optimizer sgd --lr 0.3 --weight-decay 1e-4 --head.widths 2048 256 --queue 32768 \
        --temperature 0.2 encoder:res-net
    # The paper's setting
    launch/local.sh experiments/moco.py --data imagenet2012 --image-size 320 --view-size 224 \
        --epochs 800 --batch-size 256 --optimizer sgd --lr 0.03 --warmup 0 --weight-decay 1e-4 \
        --decay 0.999 --queue 65536 --temperature 0.2 --blur 0.5 --head.no-norm \
        --head.widths 2048 128 encoder:res-net --encoder.depth 50 --encoder.stem imagenet

Deviations: BatchNorm is not shuffled between devices; the statistics of queries and keys are both
of the whole batch, so they may leak what shuffling hides. The head has BatchNorm, unlike the
paper's (`--head.no-norm`).
"""

import jax

from ssljax import ema, Experiment, Kept, main, minimize, TrainState
from ssljax.data import feed, few, Images, steps_of
from ssljax.data.views import Views
from ssljax.evals.representation import representation
from ssljax.losses.infonce import check_queue, enqueue, info_nce_loss, normalize
from ssljax.models.convnet import ConvNet
from ssljax.models.encoder import Chain, Encoder
from ssljax.models.mlp import MLP
from ssljax.optim import Optimizer, optimizer_of, warmup_cosine
from ssljax.ranges import checked, Count, Fraction, FractionBelowOne, NotNegative, Positive


@checked
def moco(
    data: Images = Images(),
    view: Views = Views(),
    encoder: Encoder = ConvNet(),
    head: MLP = MLP(widths=(256, 128), norm=True),
    queue: Count = 1024,
    decay: Fraction = 0.99,
    temperature: Positive = 0.1,
    epochs: Count = 12,
    batch_size: Count = 128,
    optimizer: Optimizer = "adamw",
    lr: Positive = 2e-3,
    warmup: FractionBelowOne = 0.1,
    weight_decay: NotNegative = 1e-4,
) -> Experiment:
    """MoCo: a view matches its other view's key, in contrast to a queue of earlier keys.

    Args:
        data: Images to learn from, and those that features are judged on.
        view: Random views of an image.
        encoder: Encoder, whose features are evaluated; with the head it is f_q.
        head: Projection head, which only training uses.
        queue: K: keys of earlier batches kept as negatives; a multiple of the batch size.
        decay: m in eq. 2: decay of the key encoder's moving average.
        temperature: τ in eq. 1: temperature of the softmax.
        epochs: Passes over the training set.
        batch_size: Images in a step.
        optimizer: Optimizer; lars-outer is LARS with the learning rate outside the momentum.
        lr: Peak learning rate.
        warmup: Fraction of training over which the learning rate rises to its peak.
        weight_decay: Weight decay.
    """
    check_queue(queue, batch_size)
    sets = data.read(whole=True)
    train = sets.train
    num_steps = steps_of(epochs, train, batch_size)
    tx = optimizer_of(optimizer, warmup_cosine(lr, num_steps, warmup), weight_decay)
    net, features = Chain(encoder=encoder, head=head), Chain(encoder=encoder)

    def init(key, batch):
        k1, k2, k3 = jax.random.split(key, 3)
        params, stats = net.init((k1, k2), view(key, few(batch)))
        keys = normalize(jax.random.normal(k3, (queue, head.widths[-1])))
        return TrainState.create(tx, params, **stats, target=params, queue=keys)

    def loss(params, state, batch, key):
        x, k = view.each(key, batch)
        target, keys = ema(state.extra["target"], params, decay), state.extra["queue"]
        q, stats = net(params, state.extra, x, train=True)
        k, _ = net(target, state.extra, k, train=True)  # With the batch's statistics.
        value = info_nce_loss(q, k, keys, temperature)
        extra = {**stats, "target": target, "queue": enqueue(keys, normalize(k))}
        return value, (extra, {"loss": value})

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
    main(moco)
