"""SimMIM (Xie et al., 2021, https://arxiv.org/abs/2111.09886): a mask token in place of hidden
patches, whose pixels a linear layer on the encoder predicts.

    launch/local.sh experiments/simmim.py                     # scikit-learn's digits, embedded
    launch/local.sh experiments/simmim.py --data cifar10 --vit.patch 4 --flip 0.5 --epochs 800 \
        --vit.depth 12
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax import Experiment, Kept, main, minimize, TrainState
from ssljax.data import augment, feed, Images, steps_of
from ssljax.evals.average import average
from ssljax.evals.pictures import compared
from ssljax.evals.representation import representation
from ssljax.losses.masked_image import masked_patch_loss, random_mask
from ssljax.models.vit import patchify, unpatchify, ViT
from ssljax.optim import adamw, warmup_cosine
from ssljax.ranges import (
    checked,
    Count,
    Fraction,
    NotNegative,
    Positive,
    PositiveFraction,
    ProperFraction,
)


@checked
def simmim(
    data: Images = Images("digits"),
    vit: ViT = ViT(patch=2, width=96, depth=4, heads=3),
    mask: ProperFraction = 0.6,
    crop: PositiveFraction = 0.67,
    flip: Fraction = 0.0,
    epochs: Count = 100,
    batch_size: Count = 128,
    lr: Positive = 1e-3,
    weight_decay: NotNegative = 0.05,
) -> Experiment:
    """SimMIM: a Transformer sees an image with masked patches, and predicts their pixels.

    Args:
        data: Images to learn from, and those that features are judged on.
        vit: Encoder, whose features are evaluated.
        mask: Fraction of patches that are masked.
        crop: Smallest fraction of the image's area in a random crop.
        flip: Probability of a horizontal flip.
        epochs: Passes over the training set.
        batch_size: Images in a step.
        lr: Peak learning rate, after a warm-up over a tenth of training.
        weight_decay: Weight decay.
    """
    sets = data.read(whole=True)
    train, test = sets.train, sets.test
    num_steps = steps_of(epochs, train, batch_size)
    tx = adamw(warmup_cosine(lr, num_steps), weight_decay)
    head = nn.Dense(train.shape[2] * vit.patch**2, dtype=vit.dtype)

    def init(key, batch):
        k1, k2, k3 = jax.random.split(key, 3)
        y, e = vit.init_with_output(k1, augment.to_float(batch["image"][:2]), method=vit.tokens)
        blank = 0.02 * jax.random.normal(k2, (vit.width,))
        return TrainState.create(tx, {"encoder": e, "blank": blank, "head": head.init(k3, y)})

    def predict(params, key, x):
        """Predicted and true patches, (n, patches, pixels), and which are hidden, (n, patches)."""
        target = patchify(x, vit.patch)
        keep, place = random_mask(key, *target.shape[:2], mask)
        hidden = place >= keep.shape[1]
        y = vit.apply(params["encoder"], x, None, hidden, params["blank"], method=vit.tokens)
        y = head.apply(params["head"], y[:, -target.shape[1] :])  # Without the class token, if any.
        return y.astype(jnp.float32), target, hidden

    def loss(params, state, batch, key):
        k1, k2, k3 = jax.random.split(key, 3)
        x = augment.random_resized_crop(
            k1, augment.to_float(batch["image"]), scale=(crop, 1.0), aspect=batch.get("aspect")
        )
        y, target, hidden = predict(params, k3, augment.flip(k2, x, flip))
        value = masked_patch_loss(y, target, hidden, power=1)
        return value, (state.extra, {"loss": value})

    def encode(state, x):
        return vit.apply(state.params["encoder"], augment.to_float(x))

    def errors(state, key, x, label):
        y, target, hidden = predict(state.params, key, augment.to_float(x))
        hidden = hidden[..., None]
        mean_of_seen = target.mean((1, 2), keepdims=True, where=~hidden)

        def error(y):
            return jnp.mean(jnp.abs(y - target), (1, 2), where=hidden)

        return {"error": error(y), "error_of_mean": error(mean_of_seen)}

    def show(state, key, x):
        y, target, hidden = predict(state.params, key, augment.to_float(x))
        return [unpatchify(jnp.where(hidden[..., None], z, target), train.shape) for z in (0.5, y)]

    return Experiment(
        init=init,
        step=minimize(tx, loss),
        data=feed(train, batch_size),
        num_steps=num_steps,
        encode=encode,
        kept=lambda state: Kept(vit, state.params["encoder"]["params"]),
        evals={
            **representation(encode, sets),
            "test": average(
                errors, test, better={"error": "lower"}, floors={"error": "error_of_mean"}
            ),
            "pictures": compared(show, test, names=["masked", "predicted"]),
        },
    )


if __name__ == "__main__":
    main(simmim)
