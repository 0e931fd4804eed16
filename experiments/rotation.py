"""RotNet (Gidaris et al., 2018, https://arxiv.org/abs/1803.07728): predict an image's rotation.

launch/local.sh experiments/rotation.py                   # digits: a minute on a laptop CPU
launch/local.sh experiments/rotation.py --data cifar10 --epochs 100 encoder:res-net
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from ssljax import Experiment, InputError, Kept, main, minimize, TrainState
from ssljax.data import augment, feed, Images, steps_of
from ssljax.evals.average import average
from ssljax.evals.representation import representation
from ssljax.models.convnet import ConvNet
from ssljax.models.resnet import ResNet
from ssljax.optim import adamw, warmup_cosine
from ssljax.ranges import checked, Count, NotNegative, Positive


@checked
def rotation(
    data: Images = Images("digits"),
    encoder: ConvNet | ResNet = ConvNet(),
    epochs: Count = 50,
    batch_size: Count = 128,
    lr: Positive = 2e-3,
    weight_decay: NotNegative = 1e-4,
) -> Experiment:
    """RotNet: predicts by which of four angles an image was turned.

    Args:
        data: Images to learn from, and those that features are judged on.
        encoder: Encoder, whose features are evaluated; a linear layer follows.
        epochs: Passes over the training set.
        batch_size: Images in a step, each in all four directions.
        lr: Peak learning rate, after a warm-up over a tenth of training.
        weight_decay: Weight decay.
    """
    sets = data.read()
    train, test = sets.train, sets.test
    height, width, _ = train.shape
    if height != width:
        raise InputError(
            f"Images of {height}x{width} pixels can't be turned in place: choose an --image-size."
        )
    num_steps = steps_of(epochs, train, batch_size)
    tx, head = adamw(warmup_cosine(lr, num_steps), weight_decay), nn.Dense(4)

    def turned(image):
        """Each image in its four directions, (4 n, ...), and their classes, (4 n,)."""
        x = augment.to_float(image)
        x = jnp.stack([jnp.rot90(x, k, axes=(1, 2)) for k in range(4)], axis=1)
        return x.reshape(-1, *x.shape[2:]), jnp.tile(jnp.arange(4), len(image))

    def features(params, stats, x, training):
        variables = {"params": params["encoder"], "batch_stats": stats}
        return encoder.apply(variables, x, training, mutable=["batch_stats"])

    def init(key, batch):
        k1, k2 = jax.random.split(key)
        h, e = encoder.init_with_output(k1, augment.to_float(batch["image"][:2]))
        params = {"encoder": e["params"], "head": head.init(k2, h)}
        return TrainState.create(tx, params, encoder=e["batch_stats"])

    def loss(params, state, batch, key):
        x, angle = turned(batch["image"])
        h, e = features(params, state.extra["encoder"], x, True)
        z = head.apply(params["head"], h)
        value = optax.softmax_cross_entropy_with_integer_labels(z, angle).mean()
        right = jnp.mean(z.argmax(-1) == angle)
        return value, ({"encoder": e["batch_stats"]}, {"loss": value, "right": right})

    def encode(state, x):
        return features(state.params, state.extra["encoder"], augment.to_float(x), False)[0]

    def correct(state, key, image, label):
        """Percentage of an image's four directions that are predicted; chance is 25."""
        x, angle = turned(image)
        h, _ = features(state.params, state.extra["encoder"], x, False)
        right = head.apply(state.params["head"], h).argmax(-1) == angle
        return {"accuracy": 100.0 * right.reshape(-1, 4).mean(1)}

    return Experiment(
        init=init,
        step=minimize(tx, loss),
        data=feed(train, batch_size),
        num_steps=num_steps,
        encode=encode,
        kept=lambda state: Kept(encoder, state.params["encoder"], state.extra["encoder"]),
        evals={
            **representation(encode, sets),
            "angle": average(correct, test, better={"accuracy": "higher"}),
        },
    )


if __name__ == "__main__":
    main(rotation)
