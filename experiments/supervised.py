"""A classifier trained with labels: the upper bound for the other files, and a feature network for
evaluating generated images (ssljax/evals/feature_nets.py). It is an encoder of the other files and
a linear layer, with random shifts and flips (He et al., 2015) and AdamW (Loshchilov and Hutter,
2017, https://arxiv.org/abs/1711.05101).

    launch/local.sh experiments/supervised.py             # digits: half a minute on a laptop CPU
    launch/local.sh experiments/supervised.py --data mnist --epochs 3 \
        --run.workdir runs/mnist_classifier
    launch/local.sh experiments/supervised.py --data cifar10 --shift 4 --flip 0.5 --epochs 100 \
        encoder:res-net
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from ssljax import Experiment, Kept, main, minimize, TrainState
from ssljax.data import augment, feed, Images, steps_of
from ssljax.evals.accuracy import accuracy
from ssljax.evals.representation import representation
from ssljax.models.convnet import ConvNet
from ssljax.models.resnet import ResNet
from ssljax.optim import adamw, warmup_cosine
from ssljax.ranges import (
    checked,
    Count,
    CountOrZero,
    Fraction,
    FractionBelowOne,
    NotNegative,
    Positive,
)
from ssljax.sharding import over_batch


@checked
def supervised(
    data: Images = Images("digits"),
    encoder: ConvNet | ResNet = ConvNet(),
    shift: CountOrZero = 1,
    flip: Fraction = 0.0,
    smoothing: FractionBelowOne = 0.0,
    epochs: Count = 100,
    batch_size: Count = 128,
    lr: Positive = 2e-3,
    weight_decay: NotNegative = 0.05,
) -> Experiment:
    """A classifier trained with labels.

    Args:
        data: Images to learn from, and those that features are judged on.
        encoder: Encoder; a linear layer follows.
        shift: Largest random shift in each direction, in pixels.
        flip: Probability of a horizontal flip: 0.5 for photographs, 0 for digits.
        smoothing: Label smoothing: fraction of a label spread over all classes.
        epochs: Passes over the training set.
        batch_size: Images in a step.
        lr: Peak learning rate, after a warm-up over a tenth of training.
        weight_decay: Weight decay.
    """
    sets = data.read(labels=True)
    train, test = sets.train, sets.test
    num_steps = steps_of(epochs, train, batch_size)
    tx, head = adamw(warmup_cosine(lr, num_steps), weight_decay), nn.Dense(train.num_classes)

    def view(key, batch):
        k1, k2 = jax.random.split(key)
        n, h, w, _ = batch["image"].shape
        border = ((0, 0), (shift, shift), (shift, shift), (0, 0))
        x = jnp.pad(augment.to_float(batch["image"]), border, mode="edge")
        top, left = over_batch(jax.random.randint(k1, (n, 2), 0, 2 * shift + 1)).T
        x = augment.crop_and_resize(x, top, left, jnp.full(n, h), jnp.full(n, w), (h, w))
        return augment.flip(k2, x, flip)

    def apply(params, stats, x, training):
        variables = {"params": params["encoder"], "batch_stats": stats}
        return encoder.apply(variables, x, training, mutable=["batch_stats"])

    def init(key, batch):
        k1, k2 = jax.random.split(key)
        h, e = encoder.init_with_output(k1, augment.to_float(batch["image"][:2]))
        params = {"encoder": e["params"], "head": head.init(k2, h)["params"]}
        return TrainState.create(tx, params, encoder=e["batch_stats"])

    def loss(params, state, batch, key):
        h, e = apply(params, state.extra["encoder"], view(key, batch), True)
        z = head.apply({"params": params["head"]}, h)
        y = optax.smooth_labels(jax.nn.one_hot(batch["label"], train.num_classes), smoothing)
        value = optax.softmax_cross_entropy(z, y).mean()
        right = jnp.mean(jnp.argmax(z, -1) == batch["label"])
        metrics = {"loss": value, "train_accuracy": 100 * right}
        return value, ({"encoder": e["batch_stats"]}, metrics)

    def encode(state, x):
        return apply(state.params, state.extra["encoder"], augment.to_float(x), False)[0]

    def logits(state, x):
        return head.apply({"params": state.params["head"]}, encode(state, x))

    return Experiment(
        init=init,
        step=minimize(tx, loss),
        data=feed(train, batch_size),
        num_steps=num_steps,
        encode=encode,
        kept=lambda state: Kept(encoder, state.params["encoder"], state.extra["encoder"]),
        evals={
            "test": accuracy(logits, test),
            **representation(encode, sets, view),
        },
    )


if __name__ == "__main__":
    main(supervised)
