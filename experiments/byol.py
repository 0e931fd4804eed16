"""BYOL (Grill et al., 2020, https://arxiv.org/abs/2006.07733): predict a slow net's features.

    launch/local.sh experiments/byol.py  # doodles
    launch/local.sh experiments/byol.py --data cifar10 --view-size 24 --epochs 15 \
        --decay 0.99 --lr 2e-3
    # Sizes and optimizer of lightly's benchmark
    launch/local.sh experiments/byol.py --data cifar10 --epochs 800 --batch-size 512 \
        --optimizer sgd --lr 0.24 --decay 0.99 --weight-decay 5e-4 --head.widths 1024 256 \
        --head.no-last-norm --predictor.widths 1024 256 encoder:res-net
    # The paper's setting, in bfloat16; planned in launch/plans.md
    launch/local.sh experiments/byol.py --data imagenet2012 --image-size 320 --view-size 224 \
        --epochs 1000 --batch-size 4096 --optimizer lars-outer --lr 3.2 --warmup 0.01 \
        --weight-decay 1.5e-6 --decay 0.996 --crop 0.08 --jitter 0.4 0.4 0.2 0.1 --blur 1 0.1 \
        --solarize 0 0.2 --interpolation bicubic --head.widths 4096 256 --head.no-last-norm \
        --head.no-last-bias \
        --predictor.widths 4096 256 --predictor.no-last-bias encoder:res-net --encoder.depth 50 \
        --encoder.stem imagenet --dtype bfloat16

Deviation: BatchNorm is also applied to the head's output, as in MoCo v3. Without it, as in the
paper and the last command, kNN on digits ends below the untrained net's (90.6 against 93.1 %, mean
of three seeds, with `--decay 0.99 --lr 2e-3`; the linear probe is level).

The default is for a training of 700 steps: on held-out training drawings, one seed, kNN was 27.3 %
and the linear probe 41.5 %; with `--decay 0.99 --lr 2e-3` they were 25.3 % and 35.4 %.
"""

import jax

from ssljax import ema, Experiment, Kept, main, minimize, TrainState
from ssljax.data import feed, few, Images, steps_of
from ssljax.data.views import Views
from ssljax.evals.representation import representation
from ssljax.losses.distillation import byol_loss
from ssljax.models.convnet import ConvNet
from ssljax.models.encoder import Chain, check_predictor, Encoder
from ssljax.models.mlp import MLP
from ssljax.optim import Optimizer, optimizer_of, rising_decay, warmup_cosine
from ssljax.ranges import checked, Count, Fraction, FractionBelowOne, NotNegative, Positive


@checked
def byol(
    data: Images = Images(),
    view: Views = Views(),
    encoder: Encoder = ConvNet(),
    head: MLP = MLP(widths=(256, 128), norm=True, last_norm=True),
    predictor: MLP = MLP(widths=(256, 128), norm=True),
    decay: Fraction = 0.9,
    epochs: Count = 12,
    batch_size: Count = 128,
    optimizer: Optimizer = "adamw",
    lr: Positive = 4e-3,
    warmup: FractionBelowOne = 0.1,
    weight_decay: NotNegative = 1e-4,
) -> Experiment:
    """BYOL: from one view the online net predicts the target net's projection of the other.

    Args:
        data: Images to learn from, and those that features are judged on.
        view: Random views of an image.
        encoder: f: encoder, whose features are evaluated.
        head: g: projection head, which only training uses.
        predictor: q: prediction head of the online net; its last width is the head's.
        decay: τ: decay of the target's moving average at first; it rises to 1.
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
    tau = rising_decay(decay, num_steps)
    features, projection = Chain(encoder=encoder), Chain(encoder=encoder, head=head)
    net = Chain(encoder=encoder, head=head, predictor=predictor)

    def init(key, batch):
        params, stats = net.init(jax.random.split(key, 3), view(key, few(batch)))
        target = {k: params[k] for k in ("encoder", "head")}
        return TrainState.create(tx, params, **stats, target=target)

    def loss(params, state, batch, key):
        x, target = view.each(key, batch), state.extra["target"]
        # ξ is the average up to this step's θ.
        target = ema(target, {k: params[k] for k in target}, tau(state.step))
        # In both nets each view has batch statistics of its own.
        (q1, q2), stats = net.each(params, state.extra, x)
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
        encode=encode,
        kept=lambda state: Kept(encoder, state.params["encoder"], state.extra["encoder"]),
        evals=representation(encode, sets, view.either),
    )


if __name__ == "__main__":
    main(byol)
