"""DINO (Caron et al., 2021, https://arxiv.org/abs/2104.14294): self-distillation, no labels.

    launch/local.sh experiments/dino.py  # doodles
    # Sizes and optimizer of lightly's benchmark, which has GELU in the head
    launch/local.sh experiments/dino.py --data cifar10 --epochs 800 --batch-size 512 \
        --optimizer sgd --lr 0.24 --weight-decay 5e-4 --small 0 --head.widths 2048 256 \
        --prototypes 2048 encoder:res-net
    # The paper's setting of ViT-S, without its stochastic depth; planned in launch/plans.md
    launch/local.sh experiments/dino.py --data imagenet2012 --image-size 320 --view-size 224 \
        --epochs 800 --batch-size 1024 --weight-decay 0.04 --final-decay 0.4 --final-lr 1e-6 \
        --warmup 0.0125 --sharpen 0.0375 --decay 0.996 --crop 0.05 --part 0.25 --small 10 \
        --small-size 96 --jitter 0.4 0.4 0.2 0.1 --blur 1 0.1 0.5 --solarize 0 0.2 0 \
        --interpolation bicubic --head.widths 2048 2048 256 --head.no-norm \
        --head.activation gelu --prototypes 65536 --frozen 0.00125 encoder:vit --encoder.patch 16 \
        --encoder.width 384 --encoder.depth 12 --encoder.heads 6 --encoder.pool token \
        --encoder.positions learned
    # The paper's setting of ViT-B, in bfloat16; planned in launch/plans.md
    launch/local.sh experiments/dino.py --data imagenet2012 --image-size 320 --view-size 224 \
        --epochs 400 --batch-size 1024 --lr 3e-3 --weight-decay 0.04 --final-decay 0.4 \
        --final-lr 2e-6 --warmup 0.025 --sharpen 0.125 --decay 0.996 --crop 0.05 --part 0.25 \
        --small 10 --small-size 96 --jitter 0.4 0.4 0.2 0.1 --blur 1 0.1 0.5 --solarize 0 0.2 0 \
        --interpolation bicubic --head.widths 2048 2048 256 --head.no-norm \
        --head.activation gelu --prototypes 65536 --frozen 0.0075 encoder:vit --encoder.patch 16 \
        --encoder.width 768 --encoder.depth 12 --encoder.heads 12 --encoder.pool token \
        --encoder.positions learned --dtype bfloat16
"""

import jax
import jax.numpy as jnp

from ssljax import ema, Experiment, Kept, main, minimize, TrainState
from ssljax.data import feed, few, Images, steps_of
from ssljax.data.views import MultiCrop
from ssljax.evals.pictures import views
from ssljax.evals.representation import representation
from ssljax.losses.distillation import dino_loss, teacher_temperature
from ssljax.losses.infonce import normalize, product
from ssljax.models.convnet import ConvNet
from ssljax.models.encoder import Chain, Encoder
from ssljax.models.mlp import MLP
from ssljax.optim import (
    cosine,
    Optimizer,
    optimizer_of,
    rising_decay,
    warmup_cosine,
)
from ssljax.ranges import checked, Count, Fraction, FractionBelowOne, NotNegative, Positive


@checked
def dino(
    data: Images = Images(),
    crops: MultiCrop = MultiCrop(),
    encoder: Encoder = ConvNet(),
    head: MLP = MLP(widths=(256, 128), norm=True),
    prototypes: Count = 256,
    frozen: Fraction = 0.02,
    decay: Fraction = 0.99,
    centre_decay: Fraction = 0.9,
    temperature: Positive = 0.1,
    sharp: Positive = 0.07,
    sharpen: Fraction = 1 / 3,
    epochs: Count = 12,
    batch_size: Count = 128,
    optimizer: Optimizer = "adamw",
    lr: Positive = 2e-3,
    warmup: FractionBelowOne = 0.1,
    final_lr: NotNegative = 0.0,
    weight_decay: NotNegative = 1e-4,
    final_decay: NotNegative | None = None,
) -> Experiment:
    """DINO: all views predict what the teacher, the student's moving average, says of large ones.

    Args:
        data: Images to learn from, and those that features are judged on.
        crops: Large and small random views of an image.
        encoder: f: encoder; the teacher's features are evaluated.
        head: h: projection head, which only training uses.
        prototypes: K: dimensions of the output, of weight-normalised prototypes.
        frozen: Fraction of training, at its start, in which prototypes are frozen.
        decay: λ: decay of the teacher's moving average at first; it rises to 1.
        centre_decay: m in eq. 4: decay of the centre's moving average.
        temperature: τ_s in eq. 1: the student's temperature.
        sharp: τ_t: the teacher's temperature, after a linear rise from 0.04.
        sharpen: Fraction of training over which the teacher's temperature rises.
        epochs: Passes over the training set.
        batch_size: Images in a step.
        optimizer: Optimizer; lars-outer is LARS with the learning rate outside the momentum.
        lr: Peak learning rate.
        warmup: Fraction of training over which the learning rate rises to its peak.
        final_lr: Learning rate at the end, reached by a cosine.
        weight_decay: Weight decay.
        final_decay: Weight decay at the end, reached by a cosine; None for constant decay.
    """
    sets = data.read(whole=True)
    train = sets.train
    num_steps = steps_of(epochs, train, batch_size)
    wd = cosine(weight_decay, final_decay, num_steps)
    tx = optimizer_of(optimizer, warmup_cosine(lr, num_steps, warmup, final_lr), wd)
    m = rising_decay(decay, num_steps)
    teacher_tau = teacher_temperature(sharp, sharpen * num_steps)
    large, *small = crops.kinds(train.shape)
    net, features = Chain(encoder=encoder, head=head), Chain(encoder=encoder)

    def scores(z, prototypes):
        """Cosines (views, n, K) of features (n, views, d) with prototypes (K, d)."""
        return product(normalize(z), normalize(prototypes).T).swapaxes(0, 1)

    def init(key, batch):
        k1, k2, k3 = jax.random.split(key, 3)
        params, stats = net.init((k1, k2), crops.view(key, few(batch)))
        params["prototypes"] = jax.random.normal(k3, (prototypes, head.widths[-1]))
        extra = {"teacher": params, "seen": stats, "centre": jnp.zeros(prototypes)}
        return TrainState.create(tx, params, **stats, **extra)

    def loss(params, state, batch, key):
        x, extra, c = crops(key, batch), state.extra, params["prototypes"]
        c = jnp.where(state.step < frozen * num_steps, jax.lax.stop_gradient(c), c)
        teacher = ema(extra["teacher"], params, m(state.step))
        # Teacher and student have batch statistics of their own.
        t, seen = net.crops(teacher, extra["seen"], x[:1])
        s, stats = net.crops(params, extra, x)
        t, s = scores(t, teacher["prototypes"]), scores(s, c)
        value = dino_loss(t, s, extra["centre"], teacher_tau(state.step), temperature)
        centre = ema(extra["centre"], t.mean((0, 1)), centre_decay)
        new = stats | {"teacher": teacher, "seen": seen, "centre": centre}
        return value, (new, {"loss": value})

    def encode(state, x):
        teacher, seen = state.extra["teacher"], state.extra["seen"]
        return features(teacher, seen, crops.view.whole(x), train=False)[0]

    return Experiment(
        init=init,
        step=minimize(tx, loss),
        data=feed(train, batch_size),
        num_steps=num_steps,
        encode=encode,
        kept=lambda state: Kept(
            encoder, state.extra["teacher"]["encoder"], state.extra["seen"]["encoder"]
        ),
        evals={
            **representation(encode, sets, large.either),
            **({"small_views": views(small[0], train)} if small else {}),
        },
    )


if __name__ == "__main__":
    main(dino)
