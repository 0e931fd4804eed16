"""MoCo v3 (Chen et al., 2021, https://arxiv.org/abs/2104.02057): BYOL's nets, with negatives.

    launch/local.sh experiments/mocov3.py  # doodles
    launch/local.sh experiments/mocov3.py --data cifar10 --view-size 24 --epochs 15
    # Sizes of solo-learn's benchmark, without its LARS
    launch/local.sh experiments/mocov3.py --data cifar10 --epochs 1000 --batch-size 256 \
        --optimizer sgd --lr 0.12 --weight-decay 5e-4 --head.widths 4096 256 \
        --predictor.widths 4096 256 --predictor.no-last-bias encoder:res-net
    # The authors' setting of ResNet-50, in bfloat16; planned in launch/plans.md
    launch/local.sh experiments/mocov3.py --data imagenet2012 --image-size 320 --view-size 224 \
        --epochs 1000 --batch-size 4096 --optimizer lars-outer --lr 4.8 --warmup 0.01 \
        --weight-decay 1.5e-6 --decay 0.996 --temperature 1 --jitter 0.4 0.4 0.2 0.1 --blur 1 0.1 \
        --solarize 0 0.2 --head.widths 4096 256 --predictor.widths 4096 256 \
        --predictor.no-last-bias encoder:res-net --encoder.depth 50 --encoder.stem imagenet \
        --dtype bfloat16
    # The authors' setting of ViT-S, in bfloat16, except that they freeze its patch embedding;
    # planned in launch/plans.md
    launch/local.sh experiments/mocov3.py --data imagenet2012 --image-size 320 --view-size 224 \
        --epochs 300 --batch-size 4096 --lr 2.4e-3 --warmup 0.133 --weight-decay 0.1 --crop 0.08 \
        --jitter 0.4 0.4 0.2 0.1 --blur 1 0.1 --solarize 0 0.2 --head.widths 4096 4096 256 \
        --predictor.widths 4096 256 --predictor.last-norm encoder:vit --encoder.patch 16 \
        --encoder.width 384 --encoder.depth 12 --encoder.heads 12 --encoder.pool token \
        --dtype bfloat16
"""

from functools import partial

import jax

from ssljax import ema, Experiment, Kept, main, minimize, TrainState
from ssljax.data import feed, few, Images, steps_of
from ssljax.data.views import Views
from ssljax.evals.representation import representation
from ssljax.losses.infonce import info_nce_loss
from ssljax.models.convnet import ConvNet
from ssljax.models.encoder import Chain, check_predictor, Encoder
from ssljax.models.mlp import MLP
from ssljax.optim import Optimizer, optimizer_of, rising_decay, warmup_cosine
from ssljax.ranges import checked, Count, Fraction, FractionBelowOne, NotNegative, Positive


@checked
def mocov3(
    data: Images = Images(),
    view: Views = Views(),
    encoder: Encoder = ConvNet(),
    head: MLP = MLP(widths=(256, 128), norm=True, last_norm=True),
    predictor: MLP = MLP(widths=(256, 128), norm=True),
    decay: Fraction = 0.99,
    temperature: Positive = 0.2,
    epochs: Count = 12,
    batch_size: Count = 128,
    optimizer: Optimizer = "adamw",
    lr: Positive = 2e-3,
    warmup: FractionBelowOne = 0.1,
    weight_decay: NotNegative = 1e-4,
) -> Experiment:
    """MoCo v3: a view predicts its other view's key, in contrast to the batch's other images.

    Args:
        data: Images to learn from, and those that features are judged on.
        view: Random views of an image.
        encoder: Encoder, whose features are evaluated; with head and predictor it is f_q.
        head: Projection head, which only training uses.
        predictor: Prediction head of f_q alone; its last width is the head's.
        decay: m: decay of the momentum encoder's moving average at first; it rises to 1.
        temperature: τ in eq. 1: temperature of the softmax.
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
    m = rising_decay(decay, num_steps)
    features, projection = Chain(encoder=encoder), Chain(encoder=encoder, head=head)
    net = Chain(encoder=encoder, head=head, predictor=predictor)

    def init(key, batch):
        params, stats = net.init(jax.random.split(key, 3), view(key, few(batch)))
        target = {k: params[k] for k in ("encoder", "head")}
        return TrainState.create(tx, params, **stats, target=target)

    def loss(params, state, batch, key):
        x, target = view.each(key, batch), state.extra["target"]
        target = ema(target, {k: params[k] for k in target}, m(state.step))
        # In both nets each view has batch statistics of its own.
        (q1, q2), stats = net.each(params, state.extra, x)
        (k1, k2), _ = projection.each(target, state.extra, x)
        ctr = partial(info_nce_loss, tau=temperature)
        value = 2 * temperature * (ctr(q1, k2) + ctr(q2, k1))
        return value, ({**stats, "target": target}, {"loss": value})

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
    main(mocov3)
