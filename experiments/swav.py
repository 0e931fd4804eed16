"""SwAV (Caron et al., 2020, https://arxiv.org/abs/2006.09882): predict another view's cluster.

    launch/local.sh experiments/swav.py  # doodles
    launch/local.sh experiments/swav.py --data cifar10 --view-size 24 --epochs 15
    # Sizes and learning rate of lightly's benchmark
    launch/local.sh experiments/swav.py --data cifar10 --epochs 800 --batch-size 512 --lr 4e-3 \
        --weight-decay 1e-6 --small 0 --crop 0.14 --head.widths 512 128 --prototypes 512 \
        encoder:res-net
    # The paper's setting, in bfloat16; planned in launch/plans.md
    launch/local.sh experiments/swav.py --data imagenet2012 --image-size 320 --view-size 224 \
        --epochs 800 --batch-size 4096 --optimizer lars --lr 4.8 --final-lr 4.8e-3 \
        --warmup 0.0125 --weight-decay 1e-6 --crop 0.05 --part 0.14 --small 6 --small-size 96 \
        --jitter 0.8 --blur 0.5 --prototypes 3000 --frozen 0.00125 --head.widths 2048 128 \
        encoder:res-net --encoder.depth 50 --encoder.stem imagenet --dtype bfloat16
"""

import jax
import jax.numpy as jnp

from ssljax import Experiment, Kept, main, minimize, TrainState
from ssljax.data import feed, few, Images, steps_of
from ssljax.data.views import MultiCrop
from ssljax.evals.pictures import views
from ssljax.evals.representation import representation
from ssljax.losses.clustering import swav_loss
from ssljax.losses.infonce import normalize, product
from ssljax.models.convnet import ConvNet
from ssljax.models.encoder import Chain, Encoder
from ssljax.models.mlp import MLP
from ssljax.optim import Optimizer, optimizer_of, warmup_cosine
from ssljax.ranges import checked, Count, Fraction, FractionBelowOne, NotNegative, Positive


@checked
def swav(
    data: Images = Images(),
    crops: MultiCrop = MultiCrop(),
    encoder: Encoder = ConvNet(),
    head: MLP = MLP(widths=(256, 128), norm=True),
    prototypes: Count = 32,
    frozen: Fraction = 0.05,
    temperature: Positive = 0.1,
    epsilon: Positive = 0.05,
    steps: Count = 3,
    epochs: Count = 12,
    batch_size: Count = 128,
    optimizer: Optimizer = "adamw",
    lr: Positive = 2e-3,
    warmup: FractionBelowOne = 0.1,
    final_lr: NotNegative = 0.0,
    weight_decay: NotNegative = 1e-4,
) -> Experiment:
    """SwAV: a view predicts the cluster of another, where clusters share the batch evenly.

    Args:
        data: Images to learn from, and those that features are judged on.
        crops: Large and small random views of an image.
        encoder: f: encoder, whose features are evaluated.
        head: Projection head, which only training uses.
        prototypes: K: prototypes, a few times the number of classes.
        frozen: Fraction of training, at its start, in which prototypes are frozen.
        temperature: τ in eq. 2: temperature of the softmax.
        epsilon: ε in eq. 3: entropy of the codes; the lower, the harder the assignment.
        steps: Iterations of Sinkhorn's algorithm.
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
        params, stats = net.init((k1, k2), crops.view(key, few(batch)))
        drawn = normalize(jax.random.normal(k3, (prototypes, head.widths[-1])))
        return TrainState.create(tx, params | {"prototypes": drawn}, **stats)

    def loss(params, state, batch, key):
        z, stats = net.crops(params, state.extra, crops(key, batch))
        c = params["prototypes"]
        c = jnp.where(state.step < frozen * num_steps, jax.lax.stop_gradient(c), c)
        scores = product(normalize(z), c.T).swapaxes(0, 1)
        value = swav_loss(scores, crops.large, temperature, epsilon, steps)
        return value, (stats, {"loss": value})

    def step(state, batch, key):
        state, metrics = minimize(tx, loss)(state, batch, key)
        prototypes = normalize(state.params["prototypes"])
        return state.replace(params=state.params | {"prototypes": prototypes}), metrics

    def encode(state, x):
        return features(state.params, state.extra, crops.view.whole(x), train=False)[0]

    return Experiment(
        init=init,
        step=step,
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
    main(swav)
