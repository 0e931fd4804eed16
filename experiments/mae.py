"""Masked autoencoder (He et al., 2021, https://arxiv.org/abs/2111.06377): predict masked patches.

    launch/local.sh experiments/mae.py                        # scikit-learn's digits, embedded
    launch/local.sh experiments/mae.py --data cifar10 --flip 0.5 --epochs 20
    launch/local.sh experiments/mae.py --data cifar10 --flip 0.5 --epochs 2000 --batch-size 4096 \
        --vit.depth 12
    # The paper's setting of ViT-B, in bfloat16; planned in launch/plans.md
    launch/local.sh experiments/mae.py --data imagenet2012 --image-size 224 --epochs 1600 \
        --batch-size 4096 --lr 2.4e-3 --flip 0.5 --decoder-width 512 --decoder-depth 8 \
        --vit.patch 16 --vit.width 768 --vit.depth 12 --vit.heads 12 --dtype bfloat16
    # The paper's setting of ViT-L, in bfloat16; planned in launch/plans.md
    launch/local.sh experiments/mae.py --data imagenet2012 --image-size 224 --epochs 1600 \
        --batch-size 4096 --lr 2.4e-3 --flip 0.5 --decoder-width 512 --decoder-depth 8 \
        --vit.patch 16 --vit.width 1024 --vit.depth 24 --vit.heads 16 --dtype bfloat16
"""

import jax
import jax.numpy as jnp

from ssljax import Experiment, InputError, Kept, main, minimize, TrainState
from ssljax.data import augment, feed, Images, steps_of
from ssljax.evals.pictures import compared
from ssljax.evals.representation import representation
from ssljax.losses.masked_image import masked_patch_loss, patch_statistics, random_mask
from ssljax.models.vit import MAEDecoder, patchify, unpatchify, ViT
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
def mae(
    data: Images = Images("digits"),
    vit: ViT = ViT(patch=2, width=96, depth=4, heads=3),
    decoder_width: Count = 64,
    decoder_depth: Count = 1,
    mask: ProperFraction = 0.75,
    crop: PositiveFraction = 0.2,
    flip: Fraction = 0.0,
    epochs: Count = 100,
    batch_size: Count = 128,
    lr: Positive = 1e-3,
    weight_decay: NotNegative = 0.05,
) -> Experiment:
    """Masked autoencoder: an encoder sees some patches; a lighter decoder predicts the others.

    Args:
        data: Images to learn from, and those that features are judged on.
        vit: Encoder, whose features are evaluated.
        decoder_width: Width of the decoder; a multiple of 4.
        decoder_depth: Blocks of the decoder.
        mask: Fraction of patches that are masked.
        crop: Smallest fraction of the image's area in a random crop.
        flip: Probability of a horizontal flip.
        epochs: Passes over the training set.
        batch_size: Images in a step.
        lr: Peak learning rate, after a warm-up over a tenth of training.
        weight_decay: Weight decay.
    """
    if decoder_width % 4:
        raise InputError(
            f"--decoder-width must be a multiple of 4, for its heads and its sine and cosine "
            f"positions, not {decoder_width}."
        )
    sets = data.read(whole=True)
    train, test = sets.train, sets.test
    num_steps = steps_of(epochs, train, batch_size)
    tx = adamw(warmup_cosine(lr, num_steps), weight_decay, b2=0.95)
    h, w, c = train.shape
    grid, out = (h // vit.patch, w // vit.patch), c * vit.patch**2
    same = {"dtype": vit.dtype, "remat": vit.remat}
    decoder = MAEDecoder(grid, out, decoder_width, decoder_depth, **same)

    def draw_mask(key, n):
        return random_mask(key, n, grid[0] * grid[1], mask)

    def init(key, batch):
        keep, place = draw_mask(key, 2)
        x = augment.to_float(batch["image"][:2])
        y, e = vit.init_with_output(key, x, keep, method=vit.tokens)
        d = decoder.init(jax.random.fold_in(key, 1), y, place)
        return TrainState.create(tx, {"encoder": e, "decoder": d})

    def predict(params, x, keep, place):
        """Pixels of all patches, less a patch's mean and over its deviation."""
        y = vit.apply(params["encoder"], x, keep, method=vit.tokens)[:, -keep.shape[1] :]
        return decoder.apply(params["decoder"], y, place)

    def loss(params, state, batch, key):
        k1, k2, k3 = jax.random.split(key, 3)
        x = augment.random_resized_crop(
            k1, augment.to_float(batch["image"]), scale=(crop, 1.0), aspect=batch.get("aspect")
        )
        x = augment.flip(k2, x, flip)
        keep, place = draw_mask(k3, len(x))
        y = patchify(x, vit.patch)
        mean, deviation = patch_statistics(y)
        target, hidden = (y - mean) / deviation, place >= keep.shape[1]
        value = masked_patch_loss(predict(params, x, keep, place), target, hidden)
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
        encode=encode,
        kept=lambda state: Kept(vit, state.params["encoder"]["params"]),
        evals={
            **representation(encode, sets),
            "pictures": compared(show, test, names=["masked", "predicted"]),
        },
    )


if __name__ == "__main__":
    main(mae)
