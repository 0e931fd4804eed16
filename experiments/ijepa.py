"""I-JEPA (Assran et al., 2023, https://arxiv.org/abs/2301.08243): predict features of masked
blocks.

    launch/local.sh experiments/ijepa.py  # doodles
    # An image of 32x32 pixels has 64 patches
    launch/local.sh experiments/ijepa.py --data cifar10 --flip 0.5 --epochs 100
    # The authors' setting of ViT-B; planned in launch/plans.md
    launch/local.sh experiments/ijepa.py --data imagenet2012 --image-size 320 --view-size 224 \
        --epochs 600 --batch-size 2048 --weight-decay 0.04 --final-decay 0.4 --final-lr 1e-6 \
        --warmup 0.025 --decay 0.996 --predictor-width 384 --predictor-depth 6 --vit.patch 16 \
        --vit.width 768 --vit.depth 12 --vit.heads 12 --error smooth-l1 --blocks correlated
"""

import math
from typing import Literal

import jax
import jax.numpy as jnp

from ssljax import ema, Experiment, InputError, Kept, main, minimize, TrainState
from ssljax.data import feed, few, Images, steps_of
from ssljax.data.views import Views
from ssljax.evals.pictures import compared
from ssljax.evals.representation import representation
from ssljax.losses.distillation import ijepa_loss
from ssljax.losses.masked_image import block_masks
from ssljax.models.vit import patchify, Predictor, unpatchify, ViT
from ssljax.optim import cosine, linear_rise, Optimizer, optimizer_of, warmup_cosine
from ssljax.ranges import checked, Count, Fraction, FractionBelowOne, NotNegative, Positive


@checked
def ijepa(
    data: Images = Images(),
    view: Views = Views(crop=0.3, flip=0.0, jitter=0.0, gray=0.0),
    vit: ViT = ViT(patch=4, width=96, depth=4, heads=3),
    predictor_width: Count = 48,
    predictor_depth: Count = 2,
    targets: Count = 4,
    error: Literal["squared", "smooth-l1"] = "squared",
    blocks: Literal["independent", "correlated"] = "independent",
    decay: Fraction = 0.99,
    epochs: Count = 12,
    batch_size: Count = 128,
    optimizer: Optimizer = "adamw",
    lr: Positive = 1e-3,
    warmup: FractionBelowOne = 0.1,
    final_lr: NotNegative = 0.0,
    weight_decay: NotNegative = 0.05,
    final_decay: NotNegative | None = None,
) -> Experiment:
    """I-JEPA: from a part of an image, predicts a slow copy's features of hidden blocks.

    Args:
        data: Images to learn from, and those that features are judged on.
        view: Random views of an image.
        vit: Encoder; the target encoder, its moving average, is evaluated.
        predictor_width: Width of the predictor; a multiple of 4 and of the heads.
        predictor_depth: Blocks of the predictor.
        targets: M: blocks of patches to predict in each image.
        error: Error of predictions: squared in the paper, smooth L1 in the authors' code.
        blocks: Independent area and aspect of a block, or one number for both (authors' code).
        decay: Decay of the target encoder's moving average at first; it rises to 1.
        epochs: Passes over the training set.
        batch_size: Images in a step.
        optimizer: Optimizer; lars-outer is LARS with the learning rate outside the momentum.
        lr: Peak learning rate.
        warmup: Fraction of training over which the learning rate rises to its peak.
        final_lr: Learning rate at the end, reached by a cosine.
        weight_decay: Weight decay.
        final_decay: Weight decay at the end, reached by a cosine; None for constant decay.
    """
    if predictor_width % math.lcm(4, vit.heads):
        raise InputError(
            f"--predictor-width must be a multiple of {math.lcm(4, vit.heads)}, for its positions "
            f"and --vit.heads {vit.heads}, not {predictor_width}."
        )
    sets = data.read(whole=True)
    train, test = sets.train, sets.test
    num_steps = steps_of(epochs, train, batch_size)
    wd = cosine(weight_decay, final_decay, num_steps)
    tx = optimizer_of(optimizer, warmup_cosine(lr, num_steps, warmup, final_lr), wd)
    m = linear_rise(decay, num_steps)
    height, width = ((view.view_size or s) // vit.patch for s in train.shape[:2])
    grid, patches = (height, width), height * width
    of_vit = (vit.heads, vit.dtype, vit.remat)
    predictor = Predictor(grid, vit.width, predictor_width, predictor_depth, *of_vit)

    def tokens(params, x, seen=None):
        y = vit.apply({"params": params}, x, seen=seen, method=vit.tokens)
        return y[:, -patches:]  # Without the class token, if there is one.

    def masks(key, n):
        """Masks of the targets, (n, targets, patches), and of the context, (n, patches)."""
        k1, k2 = jax.random.split(key)
        asked = block_masks(k1, n, grid, targets, correlated=blocks == "correlated")
        context = block_masks(k2, n, grid, 1, area=(0.85, 1.0), aspect=(1.0, 1.0))[:, 0]
        seen = context & ~asked.any(1)
        # An image without a context has no targets either.
        return asked & seen.any(1)[:, None, None], seen

    def init(key, batch):
        e = vit.init(key, view(key, few(batch)))["params"]
        asked, seen = masks(key, 2)
        y = jnp.zeros((2, patches, vit.width))
        p = predictor.init(jax.random.fold_in(key, 1), y, seen, asked[:, 0])
        return TrainState.create(tx, {"encoder": e, "predictor": p}, teacher={"encoder": e})

    def loss(params, state, batch, key):
        k1, k2 = jax.random.split(key)
        x, (asked, seen) = view(k1, batch), masks(k2, len(batch["image"]))
        target = ema(state.extra["teacher"]["encoder"], params["encoder"], m(state.step))
        y, goal = tokens(params["encoder"], x, seen), tokens(target, x)
        # The predictor sees each block of targets alone: an image is repeated for each block.
        y, seen, goal = (jnp.repeat(a, targets, axis=0) for a in (y, seen, goal))
        asked = asked.reshape(-1, patches)
        predicted = predictor.apply(params["predictor"], y, seen, asked)
        value = ijepa_loss(predicted, goal, asked, error)
        return value, ({"teacher": {"encoder": target}}, {"loss": value})

    def encode(state, x):
        return vit.apply({"params": state.extra["teacher"]["encoder"]}, view.whole(x))

    def show(state, key, x):
        """The images as seen through the mask of the context and of each target."""
        asked, seen = masks(key, len(x))
        whole = view.whole(x)
        y = patchify(whole, vit.patch)
        pictures = []
        for mask in (seen, *asked.swapaxes(0, 1)):
            masked = unpatchify(jnp.where(mask[:, :, None], y, 0.5), whole.shape[1:])
            pictures.append(jax.image.resize(masked, x.shape, "nearest"))
        return pictures

    return Experiment(
        init=init,
        step=minimize(tx, loss),
        data=feed(train, batch_size),
        num_steps=num_steps,
        encode=encode,
        kept=lambda state: Kept(vit, state.extra["teacher"]["encoder"]),
        evals={
            **representation(encode, sets),
            "masks": compared(show, test, names=["context", "targets"]),
        },
    )


if __name__ == "__main__":
    main(ijepa)
