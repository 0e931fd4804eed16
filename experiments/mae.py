"""Masked autoencoder (He et al., 2021, https://arxiv.org/abs/2111.06377): three quarters of an image from one quarter.

launch/local.sh experiments/mae.py                                      # scikit-learn's digits, embedded
launch/local.sh experiments/mae.py --data cifar10 --flip 0.5 --epochs 20
launch/local.sh experiments/mae.py --data cifar10 --flip 0.5 --epochs 2000 --batch-size 4096 --vit.depth 12
"""

import jax
import jax.numpy as jnp

from ssljax import Experiment, main, minimize, TrainState
from ssljax.data import augment, feed, images
from ssljax.evals.knn import knn
from ssljax.evals.pictures import compared, feature_map
from ssljax.evals.probe import linear_probe
from ssljax.losses.masked_image import masked_patch_loss, patch_statistics, random_mask
from ssljax.models.vit import MAEDecoder, patchify, unpatchify, ViT
from ssljax.optim import adamw, warmup_cosine


def mae(
    data: str = "digits",
    image_size: int = 0,
    vit: ViT = ViT(patch=2, width=96, depth=4, heads=3),
    decoder_width: int = 64,
    decoder_depth: int = 1,
    mask: float = 0.75,
    crop: float = 0.2,
    flip: float = 0.0,
    epochs: int = 100,
    batch_size: int = 128,
    lr: float = 1e-3,
    weight_decay: float = 0.05,
) -> Experiment:
    """A masked autoencoder: a Transformer sees some patches, and a lighter one draws the others.

    Args:
        data: digits (embedded), a TFDS image set (mnist, cifar10), a folder of class folders, or an .npz.
        image_size: Pixels a side to resize images to as they are read; 0 to leave them.
        mask: The share of patches that the encoder does not see.
        crop: The least part of the image's area that is shown in training.
        flip: How often an image is mirrored.
        lr: Its peak, after a warm-up over a tenth of training.
    """
    train, test = (images(data, split, image_size) for split in ("train", "test"))
    num_steps = epochs * (len(train) // batch_size)
    tx = adamw(warmup_cosine(lr, num_steps), weight_decay, b2=0.95)
    h, w, c = train.shape
    grid, out = (h // vit.patch, w // vit.patch), c * vit.patch**2
    decoder = MAEDecoder(grid, out, decoder_width, decoder_depth, dtype=vit.dtype)
    draw_mask = lambda key, n: random_mask(key, n, grid[0] * grid[1], mask)

    def init(key, batch):
        keep, place = draw_mask(key, 2)
        y, e = vit.init_with_output(
            key, augment.to_float(batch["image"][:2]), keep, method=vit.tokens
        )
        return TrainState.create(
            tx, {"encoder": e, "decoder": decoder.init(jax.random.fold_in(key, 1), y, place)}
        )

    def predict(
        params, x, keep, place
    ):  # Of each patch, what is left of it less its mean, over its deviation.
        y = vit.apply(params["encoder"], x, keep, method=vit.tokens)[:, -keep.shape[1] :]
        return decoder.apply(params["decoder"], y, place)

    def loss(params, state, batch, key):
        k1, k2, k3 = jax.random.split(key, 3)
        x = augment.random_resized_crop(k1, augment.to_float(batch["image"]), scale=(crop, 1.0))
        x = augment.flip(k2, x, flip)
        keep, place = draw_mask(k3, len(x))
        y = patchify(x, vit.patch)
        mean, deviation = patch_statistics(y)
        value = masked_patch_loss(
            predict(params, x, keep, place), (y - mean) / deviation, place >= keep.shape[1]
        )
        return value, (state.extra, {"loss": value})

    def encode(state, x):
        return vit.apply(state.params["encoder"], augment.to_float(x))

    def show(state, key, x):
        x = augment.to_float(x)
        keep, place = draw_mask(key, len(x))
        y, hidden = patchify(x, vit.patch), (place >= keep.shape[1])[:, :, None]
        mean, deviation = patch_statistics(y)  # The true ones: the net predicts neither.
        drawn = predict(state.params, x, keep, place) * deviation + mean
        return [unpatchify(jnp.where(hidden, z, y), train.shape) for z in (0.5, drawn)]

    return Experiment(
        init=init,
        step=minimize(tx, loss),
        data=feed(train, batch_size),
        num_steps=num_steps,
        evals={
            "knn": knn(encode, train, test),
            "probe": linear_probe(encode, train, test),
            "features": feature_map(encode, test),
            "pictures": compared(show, test),
        },
    )


if __name__ == "__main__":
    main(mae)
