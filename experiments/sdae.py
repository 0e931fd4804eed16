"""Stacked denoising autoencoder (Vincent et al., 2010, JMLR 11, 3371-3408; reviewed by Bengio et
al., 2012, https://arxiv.org/abs/1206.5538, section 7.2): each layer learns to denoise its input,
then all layers learn the labels.

    launch/local.sh experiments/sdae.py                       # digits: ten seconds on a laptop CPU
    # SDAE-3; error in the paper: 1.99 %
    launch/local.sh experiments/sdae.py --data rect --widths 1000 1000 1000
    # SAE-3; error in the paper: 2.41 %
    launch/local.sh experiments/sdae.py --data rect --widths 1000 1000 1000 --corruption 0
    # SDAE-3; error in the paper: 10.30 %, of SAE-3 11.28 %
    launch/local.sh experiments/sdae.py --data bg-rand --widths 1000 1000 1000

The paper stops early by the validation split; here epochs are fixed. Train several seeds with
`--run.lanes loop`: vmap computes every phase in each step.
"""

from functools import partial
import math

import jax
import jax.numpy as jnp
import optax
from optax import softmax_cross_entropy_with_integer_labels

from ssljax import descend, Experiment, main, TrainState
from ssljax.data import augment, feed, steps_of
from ssljax.data.image_sets import check_labels
from ssljax.data.variations import variation_images
from ssljax.evals.average import average
from ssljax.evals.pictures import filters
from ssljax.losses.reconstruction import cross_entropy, masking
from ssljax.models.coder import Tied
from ssljax.models.mlp import MLP
from ssljax.ranges import checked, Count, CountOrZero, Counts, Fraction, Positive


@checked
def sdae(
    data: str = "digits",
    judge: str = "test",
    image_size: CountOrZero = 0,
    widths: Counts = (256, 256, 256),
    corruption: Fraction = 0.25,
    pretrain_epochs: CountOrZero = 20,
    pretrain_lr: Positive = 1e-3,
    epochs: Count = 40,
    lr: Positive = 1e-3,
    batch_size: Count = 64,
) -> Experiment:
    """A stack of denoising autoencoders, trained layer by layer, then with labels.

    Args:
        data: Images: digits (embedded), rect, rect-1000, bg-rand, a TFDS set, a folder or an .npz.
        judge: Split to evaluate on: test; or, for rect and bg-rand, validation.
        image_size: Side of the images in pixels, to which they are resized; 0 for their own.
        widths: Units of each layer.
        corruption: Fraction of a layer's inputs masked in its pretraining; 0 for none.
        pretrain_epochs: Passes of pretraining for each layer; 0 for labels alone.
        pretrain_lr: Learning rate of pretraining.
        epochs: Passes of training with labels.
        lr: Learning rate of training with labels.
        batch_size: Images in a step.
    """
    train, test = (variation_images(data, split, image_size) for split in ("train", judge))
    check_labels(train, data)
    n, per_epoch = len(widths), steps_of(1, train, batch_size)
    layers = list(map(Tied, (math.prod(train.shape), *widths), widths))
    stack = [*layers, MLP((train.num_classes,))]
    pretrain_tx, tx = optax.adam(pretrain_lr), optax.adam(lr)

    def apply(params, image, depth):
        """The output of the first `depth` layers."""
        x = augment.to_float(image).reshape(len(image), -1)
        for layer, p in zip(stack[:depth], params[:depth], strict=True):
            x = layer.apply(p, x)
        return x

    def init(key, batch):
        params = []
        for i, k in enumerate(jax.random.split(key, n + 1)):
            params.append(stack[i].init(k, apply(params, batch["image"][:2], i)))
        opt_state = [*map(pretrain_tx.init, params[:n]), tx.init(params)]
        return TrainState(jnp.zeros((), jnp.int32), params, opt_state, {})

    def replaced(items, i, new):
        return [*items[:i], new, *items[i + 1 :]]

    def pretrain(i, state, batch, key):
        """Trains layer i to denoise its own input."""
        layer, x = stack[i], apply(state.params, batch["image"], i)
        noisy = masking(key, x, corruption)

        def loss(p):
            value = cross_entropy(x, layer.apply(p, layer.apply(p, noisy), method=layer.decode))
            return value.mean(), value.mean()

        p, opt, value = descend(pretrain_tx, loss, state.params[i], state.opt_state[i])
        params, opt_state = replaced(state.params, i, p), replaced(state.opt_state, i, opt)
        return state.replace(params=params, opt_state=opt_state), value

    def tune(state, batch, key):
        """Trains all layers to predict the labels."""

        def loss(params):
            logits = apply(params, batch["image"], n + 1)
            value = softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()
            return value, value

        params, opt, value = descend(tx, loss, state.params, state.opt_state[n])
        return state.replace(params=params, opt_state=replaced(state.opt_state, n, opt)), value

    phases = [*(partial(pretrain, i) for i in range(n)), tune]

    def step(state, batch, key):
        phase = state.step // (pretrain_epochs * per_epoch) if pretrain_epochs else n
        phase = jnp.minimum(phase, n)
        state, value = jax.lax.switch(phase, phases, state, batch, key)
        return state, {"loss": value, "phase": phase}

    def wrong(state, key, x, label):
        return {"error": 100.0 * (apply(state.params, x, n + 1).argmax(-1) != label)}

    return Experiment(
        init=init,
        step=step,
        data=feed(train, batch_size),
        num_steps=(n * pretrain_epochs + epochs) * per_epoch,
        evals={
            judge: average(wrong, test, len(test), better={"error": "lower"}),
            "first": filters(lambda s: s.params[0]["params"]["w"], train.shape),
        },
    )


if __name__ == "__main__":
    main(sdae)
