"""NNCLR (Dwibedi et al., 2021, https://arxiv.org/abs/2104.14548): a neighbour as the positive.

    launch/local.sh experiments/nnclr.py  # doodles
    launch/local.sh experiments/nnclr.py --data cifar10 --view-size 24 --epochs 15
    # Sizes and optimizer of lightly's benchmark
    launch/local.sh experiments/nnclr.py --data cifar10 --epochs 800 --batch-size 512 \
        --optimizer sgd --lr 0.24 --weight-decay 5e-4 --head.widths 2048 256 \
        --predictor.widths 4096 256 --queue 8192 --temperature 0.5 encoder:res-net
    # The paper's setting, in bfloat16; planned in launch/plans.md
    launch/local.sh experiments/nnclr.py --data imagenet2012 --image-size 320 --view-size 224 \
        --epochs 1000 --batch-size 4096 --optimizer lars --lr 4.8 --warmup 0.01 \
        --weight-decay 1e-6 --crop 0.08 --blur 0.5 --head.widths 2048 2048 256 \
        --predictor.widths 4096 256 --queue 98304 encoder:res-net --encoder.depth 50 \
        --encoder.stem imagenet --dtype bfloat16
"""

import jax
import jax.numpy as jnp

from ssljax import Experiment, Kept, main, minimize, TrainState
from ssljax.data import feed, few, Images, steps_of
from ssljax.data.views import Views
from ssljax.evals.representation import representation
from ssljax.losses.infonce import check_queue, enqueue, info_nce_loss, nearest_neighbour, normalize
from ssljax.models.convnet import ConvNet
from ssljax.models.encoder import Chain, check_predictor, Encoder
from ssljax.models.mlp import MLP
from ssljax.optim import Optimizer, optimizer_of, warmup_cosine
from ssljax.ranges import checked, Count, FractionBelowOne, NotNegative, Positive


@checked
def nnclr(
    data: Images = Images(),
    view: Views = Views(),
    encoder: Encoder = ConvNet(),
    head: MLP = MLP(widths=(256, 128), norm=True, last_norm=True),
    predictor: MLP = MLP(widths=(256, 128), norm=True),
    queue: Count = 1024,
    temperature: Positive = 0.1,
    epochs: Count = 12,
    batch_size: Count = 128,
    optimizer: Optimizer = "adamw",
    lr: Positive = 2e-3,
    warmup: FractionBelowOne = 0.1,
    weight_decay: NotNegative = 1e-4,
) -> Experiment:
    """NNCLR: a view's nearest neighbour in a queue is the positive of the other view.

    Args:
        data: Images to learn from, and those that features are judged on.
        view: Random views of an image.
        encoder: f: encoder, whose features are evaluated.
        head: g: projection head, which only training uses.
        predictor: Prediction head (figure 2); its last width is the head's.
        queue: Q: earlier projections, the support set; a multiple of the batch size.
        temperature: τ in eq. 3: temperature of the softmax.
        epochs: Passes over the training set.
        batch_size: Images in a step.
        optimizer: Optimizer; lars-outer is LARS with the learning rate outside the momentum.
        lr: Peak learning rate.
        warmup: Fraction of training over which the learning rate rises to its peak.
        weight_decay: Weight decay.
    """
    check_predictor(head, predictor)
    check_queue(queue, batch_size)
    sets = data.read(whole=True)
    train = sets.train
    num_steps = steps_of(epochs, train, batch_size)
    tx = optimizer_of(optimizer, warmup_cosine(lr, num_steps, warmup), weight_decay)
    features, projection = Chain(encoder=encoder), Chain(encoder=encoder, head=head)
    predict = Chain(predictor=predictor)

    def init(key, batch):
        k1, k2, k3, k4 = jax.random.split(key, 4)
        params, stats = projection.init((k1, k2), view(key, few(batch)))
        more, rest = predict.init((k3,), jnp.zeros((2, head.widths[-1])))
        support = normalize(jax.random.normal(k4, (queue, head.widths[-1])))
        return TrainState.create(tx, params | more, **stats, **rest, queue=support)

    def loss(params, state, batch, key):
        x, support = view.each(key, batch), state.extra["queue"]
        # Each view has batch statistics of its own.
        (z1, z2), stats = projection.each(params, state.extra, x)
        (p1, p2), rest = predict.each(params, state.extra, (z1, z2))
        n1, n2 = nearest_neighbour(z1, support), nearest_neighbour(z2, support)
        value = info_nce_loss(n1, p2, tau=temperature) + info_nce_loss(n2, p1, tau=temperature)
        extra = stats | rest | {"queue": enqueue(support, normalize(z1))}
        return value / 2, (extra, {"loss": value / 2})

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
    main(nnclr)
