"""I-JEPA (Assran et al., 2023, https://arxiv.org/abs/2301.08243): features of hidden blocks from a visible one.

    launch/local.sh experiments/ijepa.py                                   # digits: two minutes on a laptop CPU
    launch/local.sh experiments/ijepa.py --data cifar10 --vit.patch 4 --flip 0.5 --epochs 100   # 64 patches of 32x32
    launch/local.sh experiments/ijepa.py --data imagenet2012 --image-size 320 --view-size 224 --epochs 600 --batch-size 2048 \
        --weight-decay 0.04 --final-decay 0.4 --warmup 0.025 --decay 0.996 --predictor-width 384 --predictor-depth 6 \
        --vit.patch 16 --vit.width 768 --vit.depth 12 --vit.heads 12  # the paper's ViT-B
"""

import jax
import jax.numpy as jnp

from ssljax import ema, Experiment, main, minimize, TrainState
from ssljax.data import feed, images
from ssljax.data.views import Views
from ssljax.evals.collapse import collapse
from ssljax.evals.knn import knn
from ssljax.evals.pictures import compared, feature_map
from ssljax.evals.probe import linear_probe
from ssljax.losses.distillation import ijepa_loss
from ssljax.losses.masked_image import block_masks
from ssljax.models.vit import patchify, Predictor, unpatchify, ViT
from ssljax.optim import cosine, linear_rise, Optimizer, optimizer_of, warmup_cosine


def ijepa(
    data: str = "digits",
    image_size: int = 0,
    view: Views = Views(crop=0.3, flip=0.0, jitter=0.0, gray=0.0),
    vit: ViT = ViT(patch=2, width=96, depth=4, heads=3),
    predictor_width: int = 48,
    predictor_depth: int = 2,
    targets: int = 4,
    decay: float = 0.99,
    epochs: int = 50,
    batch_size: int = 128,
    optimizer: Optimizer = "adamw",
    lr: float = 1e-3,
    warmup: float = 0.1,
    weight_decay: float = 0.05,
    final_decay: float | None = None,
) -> Experiment:
    """I-JEPA: from what it sees of an image a net predicts a slow copy's features of blocks that it does not see.

    Args:
        data: digits (embedded), a TFDS image set (cifar10, fashion_mnist), a folder of class folders, or an .npz.
        image_size: Pixels a side to resize images to as they are read; 0 to leave them.
        targets: M, the blocks to predict of each image, each by itself.
        decay: Of the encoder's moving average, the target encoder, which is kept: at first; it rises linearly to 1.
        final_decay: What weight decay ends at, by a cosine; else it stays. (`warmup`: the part over which lr rises.)
    """
    train, test = (images(data, split, image_size) for split in ("train", "test"))
    num_steps = epochs * (len(train) // batch_size)
    tx = optimizer_of(
        optimizer,
        warmup_cosine(lr, num_steps, warmup),
        cosine(weight_decay, final_decay, num_steps),
    )
    rate, grid = (
        linear_rise(decay, num_steps),
        tuple((view.view_size or s) // vit.patch for s in train.shape[:2]),
    )
    predictor = Predictor(grid, vit.width, predictor_width, predictor_depth, vit.heads, vit.dtype)
    tokens = lambda p, x, seen=None: vit.apply({"params": p}, x, seen=seen, method=vit.tokens)[
        :, -grid[0] * grid[1] :
    ]

    def masks(key, n):  # What is asked for, (n, targets, patches), and what is seen, (n, patches).
        k1, k2 = jax.random.split(key)
        asked = block_masks(k1, n, grid, targets)
        seen = block_masks(k2, n, grid, 1, area=(0.85, 1.0), aspect=(1.0, 1.0))[:, 0] & ~asked.any(
            1
        )
        return asked & seen.any(1)[
            :, None, None
        ], seen  # Where nothing is left to see, nothing is asked.

    def init(key, batch):
        e, (asked, seen) = vit.init(key, view(key, batch["image"][:2]))["params"], masks(key, 2)
        p = predictor.init(
            jax.random.fold_in(key, 1), jnp.zeros((*seen.shape, vit.width)), seen, asked[:, 0]
        )
        return TrainState.create(tx, {"encoder": e, "predictor": p}, teacher={"encoder": e})

    def loss(params, state, batch, key):
        k1, k2 = jax.random.split(key)
        x, (asked, seen) = view(k1, batch["image"]), masks(k2, batch_size)
        target = ema(state.extra["teacher"]["encoder"], params["encoder"], rate(state.step))
        y, asked = tokens(params["encoder"], x, seen), jnp.concatenate(asked)
        y, seen, goal = (
            jnp.repeat(a, targets, axis=0) for a in (y, seen, tokens(target, x))
        )  # Block by block.
        value = ijepa_loss(predictor.apply(params["predictor"], y, seen, asked), goal, asked)
        return value, ({"teacher": {"encoder": target}}, {"loss": value})

    def show(state, key, x):
        (asked, seen), whole = masks(key, len(x)), view.whole(x)
        hidden = lambda m: unpatchify(
            jnp.where(m[:, :, None], patchify(whole, vit.patch), 0.5), whole.shape[1:]
        )
        return [
            jax.image.resize(hidden(m), x.shape, "nearest") for m in (seen, *asked.swapaxes(0, 1))
        ]

    encode = lambda state, x: vit.apply(
        {"params": state.extra["teacher"]["encoder"]}, view.whole(x)
    )
    return Experiment(
        init=init,
        step=minimize(tx, loss),
        data=feed(train, batch_size),
        num_steps=num_steps,
        evals={
            "knn": knn(encode, train, test),
            "probe": linear_probe(encode, train, test),
            "collapse": collapse(encode, test),
            "features": feature_map(encode, test),
            "masks": compared(show, test),
        },
    )


if __name__ == "__main__":
    main(ijepa)
