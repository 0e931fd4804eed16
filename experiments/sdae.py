"""Stacked denoising autoencoder (Vincent et al., 2010, JMLR 11, 3371-3408; in the review of Bengio et al.,
https://arxiv.org/abs/1206.5538, section 7.2): each layer learns to mend its corrupted input, then all learn the labels.

    launch/local.sh experiments/sdae.py                                            # digits: ten seconds on a laptop CPU
    launch/local.sh experiments/sdae.py --data rect --widths 1000 1000 1000                    # SDAE-3; paper: 1.99 %
    launch/local.sh experiments/sdae.py --data rect --widths 1000 1000 1000 --corruption 0     # SAE-3; paper: 2.41 %
    launch/local.sh experiments/sdae.py --data bg-rand --widths 1000 1000 1000                 # 10.30 %; SAE-3: 11.28 %

The paper stops by the validation split; here epochs are fixed. Run seeds by --run.lanes loop: vmap does all phases.
"""

from functools import partial
import math

import jax
import jax.numpy as jnp
import optax
from optax import softmax_cross_entropy_with_integer_labels as cross_entropy_of_classes

from ssljax import descend, Experiment, main, TrainState
from ssljax.data import augment, feed
from ssljax.data.variations import images
from ssljax.evals.average import average
from ssljax.evals.pictures import filters
from ssljax.losses.reconstruction import cross_entropy, masking
from ssljax.models.coder import Tied
from ssljax.models.mlp import MLP


def sdae(
    data: str = "digits",
    judge: str = "test",
    widths: tuple[int, ...] = (256, 256, 256),
    corruption: float = 0.25,
    pretrain_epochs: int = 20,
    pretrain_lr: float = 1e-3,
    epochs: int = 40,
    lr: float = 1e-3,
    batch_size: int = 64,
) -> Experiment:
    """A stack of denoising autoencoders, trained layer by layer, then by labels.

    Args:
        data: digits (embedded), rect, rect-1000, bg-rand (Larochelle et al., 2007), a TFDS image set, a folder or .npz.
        judge: The split to evaluate on: test, or, of rect and bg-rand, validation.
        corruption: The share of a layer's inputs that is masked while it is pretrained; 0 for plain autoencoders.
        pretrain_epochs: For each layer; 0 for a net trained by labels alone.
    """
    train, test, n = images(data, "train"), images(data, judge), len(widths)
    stack = [*map(Tied, (math.prod(train.shape), *widths), widths), MLP((train.num_classes,))]
    pre, fine, per_epoch = optax.adam(pretrain_lr), optax.adam(lr), len(train) // batch_size

    def up(params, x, to):
        x = augment.to_float(x).reshape(len(x), -1)
        for layer, p in zip(stack[:to], params):
            x = layer.apply(p, x)
        return x

    def init(key, batch):
        params = []
        for i, k in enumerate(jax.random.split(key, n + 1)):
            params.append(stack[i].init(k, up(params, batch["image"][:2], i)))
        return TrainState(
            jnp.zeros((), jnp.int32), params, [*map(pre.init, params[:n]), fine.init(params)], {}
        )

    def train_part(i, state, batch, key):  # Layer i alone, or all by the labels.
        x, put = (
            up(state.params, batch["image"], i),
            lambda items, new: [*items[:i], new, *items[i + 1 :]],
        )
        mend = lambda p: stack[i].apply(
            p, stack[i].apply(p, masking(key, x, corruption)), method=stack[i].decode
        )
        mending = lambda p: (
            2 * (cross_entropy(x, mend(p)).mean(),)
        )  # The value, and what to report.
        naming = lambda p: (
            2 * (cross_entropy_of_classes(up(p, batch["image"], n + 1), batch["label"]).mean(),)
        )
        part = (fine, naming, state.params) if i == n else (pre, mending, state.params[i])
        new, opt, error = descend(*part, state.opt_state[i])
        params = new if i == n else put(state.params, new)
        return state.replace(params=params, opt_state=put(state.opt_state, opt)), error

    def step(state, batch, key):
        phase = (
            jnp.minimum(state.step // (pretrain_epochs * per_epoch), n) if pretrain_epochs else n
        )
        state, error = jax.lax.switch(
            phase, [partial(train_part, i) for i in range(n + 1)], state, batch, key
        )
        return state, {"loss": error, "phase": phase}

    wrong = lambda state, key, x, y: {"error": 100.0 * (up(state.params, x, n + 1).argmax(-1) != y)}
    steps = (n * pretrain_epochs + epochs) * per_epoch
    return Experiment(
        init=init,
        step=step,
        data=feed(train, batch_size),
        num_steps=steps,
        evals={
            judge: average(wrong, test, len(test), better={"error": "lower"}),
            "first": filters(lambda s: s.params[0]["params"]["w"], train.shape),
        },
    )


if __name__ == "__main__":
    main(sdae)
