"""SupCon (Khosla et al., 2020, https://arxiv.org/abs/2004.11362): SimCLR with labels.

    launch/local.sh experiments/supcon.py  # doodles
    launch/local.sh experiments/supcon.py --data cifar10 --view-size 24 --epochs 15
    # The authors' setting of CIFAR-10: their rate 0.5, as their loss is τ/0.07 = 1.43 times eq. 2
    launch/local.sh experiments/supcon.py --data cifar10 --epochs 1000 --batch-size 1024 \
        --optimizer sgd --lr 0.714 --final-lr 7.14e-4 --weight-decay 1e-4 --head.widths 2048 128 \
        --head.no-norm encoder:res-net --encoder.depth 50
    # The paper's batch, epochs and LARS, with SimCLR's rate and views: no AutoAugment; bfloat16;
    # planned in launch/plans.md
    launch/local.sh experiments/supcon.py --data imagenet2012 --image-size 320 --view-size 224 \
        --epochs 350 --batch-size 6144 --optimizer lars --lr 7.2 --warmup 0.03 --weight-decay 1e-6 \
        --crop 0.08 --jitter 0.8 --blur 0.5 --head.widths 2048 128 --head.no-norm encoder:res-net \
        --encoder.depth 50 --encoder.stem imagenet --dtype bfloat16
"""

import jax
import jax.numpy as jnp

from ssljax import Experiment, Kept, main, minimize, TrainState
from ssljax.data import feed, few, Images, steps_of
from ssljax.data.views import Views
from ssljax.evals.representation import representation
from ssljax.losses.infonce import supcon_loss
from ssljax.models.convnet import ConvNet
from ssljax.models.encoder import Chain, Encoder
from ssljax.models.mlp import MLP
from ssljax.optim import Optimizer, optimizer_of, warmup_cosine
from ssljax.ranges import checked, Count, FractionBelowOne, NotNegative, Positive


@checked
def supcon(
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
    final_lr: NotNegative = 0.0,
    weight_decay: NotNegative = 1e-4,
) -> Experiment:
    """SupCon: views of a class's images agree, in contrast to other classes; it uses labels.

    Args:
        data: Images to learn from, and those that features are judged on.
        view: Random views of an image.
        encoder: Enc: encoder, whose features are evaluated.
        head: Proj: projection head, which only training uses.
        temperature: τ in eq. 2: temperature of the softmax.
        epochs: Passes over the training set.
        batch_size: Images in a step.
        optimizer: Optimizer; lars-outer is LARS with the learning rate outside the momentum.
        lr: Peak learning rate.
        warmup: Fraction of training over which the learning rate rises to its peak.
        final_lr: Learning rate at the end, reached by a cosine.
        weight_decay: Weight decay.
    """
    sets = data.read(whole=True, labels=True)
    train = sets.train
    num_steps = steps_of(epochs, train, batch_size)
    tx = optimizer_of(optimizer, warmup_cosine(lr, num_steps, warmup, final_lr), weight_decay)
    net, features = Chain(encoder=encoder, head=head), Chain(encoder=encoder)

    def init(key, batch):
        k1, k2, k3 = jax.random.split(key, 3)
        params, stats = net.init((k1, k3), view(k2, few(batch)))
        return TrainState.create(tx, params, **stats)

    def loss(params, state, batch, key):
        z, stats = net(params, state.extra, view.several(key, batch, 2), train=True)
        value = supcon_loss(z, jnp.repeat(batch["label"], 2), temperature)
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
    main(supcon)
