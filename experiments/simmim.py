"""SimMIM (Xie et al., 2021, https://arxiv.org/abs/2111.09886): a learned token stands for hidden patches, and a
linear layer on the encoder tells their pixels.

    launch/local.sh experiments/simmim.py                                   # scikit-learn's digits, embedded
    launch/local.sh experiments/simmim.py --data cifar10 --vit.patch 4 --flip 0.5 --epochs 800 --vit.depth 12
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax import Experiment, main, minimize, TrainState
from ssljax.data import augment, feed, images
from ssljax.evals.average import average
from ssljax.evals.knn import knn
from ssljax.evals.pictures import compared, feature_map
from ssljax.evals.probe import linear_probe
from ssljax.losses.masked_image import masked_patch_loss, random_mask
from ssljax.models.vit import patchify, unpatchify, ViT
from ssljax.optim import adamw, warmup_cosine


def simmim(
    data: str = "digits",
    image_size: int = 0,
    vit: ViT = ViT(patch=2, width=96, depth=4, heads=3),
    mask: float = 0.6,
    crop: float = 0.67,
    flip: float = 0.0,
    epochs: int = 100,
    batch_size: int = 128,
    lr: float = 1e-3,
    weight_decay: float = 0.05,
) -> Experiment:
    """SimMIM: a Transformer sees an image with blank patches, and says what was there.

    Args:
        data: digits (embedded), a TFDS image set (mnist, cifar10), a folder of class folders, or an .npz.
        image_size: Pixels a side to resize images to as they are read; 0 to leave them.
        mask: The share of patches that are blank.
        crop: The least part of the image's area that is shown in training.
        flip: How often an image is mirrored.
        lr: Its peak, after a warm-up over a tenth of training.
    """
    train, test = (images(data, split, image_size) for split in ("train", "test"))
    num_steps = epochs * (len(train) // batch_size)
    tx = adamw(warmup_cosine(lr, num_steps), weight_decay)
    head = nn.Dense(train.shape[2] * vit.patch**2)

    def init(key, batch):
        k1, k2, k3 = jax.random.split(key, 3)
        y, e = vit.init_with_output(k1, augment.to_float(batch["image"][:2]), method=vit.tokens)
        blank = 0.02 * jax.random.normal(k2, (vit.width,))
        return TrainState.create(tx, {"encoder": e, "blank": blank, "head": head.init(k3, y)})

    def answer(params, key, x):
        """Each patch, (n, patches, pixels), as it is told and as it is, and which are hidden, (n, patches)."""
        target = patchify(x, vit.patch)
        keep, place = random_mask(key, *target.shape[:2], mask)
        hidden = place >= keep.shape[1]
        y = vit.apply(params["encoder"], x, None, hidden, params["blank"], method=vit.tokens)[
            :, -target.shape[1] :
        ]
        return head.apply(params["head"], y.astype(jnp.float32)), target, hidden

    def loss(params, state, batch, key):
        k1, k2, k3 = jax.random.split(key, 3)
        x = augment.random_resized_crop(k1, augment.to_float(batch["image"]), scale=(crop, 1.0))
        value = masked_patch_loss(*answer(params, k3, augment.flip(k2, x, flip)), power=1)
        return value, (state.extra, {"loss": value})

    def errors(state, key, x, label):
        y, target, hidden = answer(state.params, key, augment.to_float(x))
        seen = target.mean((1, 2), keepdims=True, where=~hidden[..., None])
        error = lambda y: jnp.mean(jnp.abs(y - target), (1, 2), where=hidden[..., None])
        return {"error": error(y), "error_of_mean": error(seen)}

    def show(state, key, x):
        y, target, hidden = answer(state.params, key, augment.to_float(x))
        return [unpatchify(jnp.where(hidden[..., None], z, target), train.shape) for z in (0.5, y)]

    encode = lambda state, x: vit.apply(state.params["encoder"], augment.to_float(x))
    return Experiment(
        init=init,
        step=minimize(tx, loss),
        data=feed(train, batch_size),
        num_steps=num_steps,
        evals={
            "test": average(
                errors, test, better={"error": "lower"}, floors={"error": "error_of_mean"}
            ),
            "knn": knn(encode, train, test),
            "probe": linear_probe(encode, train, test),
            "features": feature_map(encode, test),
            "pictures": compared(show, test),
        },
    )


if __name__ == "__main__":
    main(simmim)
