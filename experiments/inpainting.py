"""Inpainting by a context encoder (Pathak et al., 2016, https://arxiv.org/abs/1604.07379): the middle of an image from
what is around it, by squared error alone (the paper adds an adversarial term for sharper pictures).

    launch/local.sh experiments/inpainting.py                              # digits: half a minute on a laptop CPU
    launch/local.sh experiments/inpainting.py --data cifar10 --code 256 --epochs 20
"""

import jax
import jax.numpy as jnp
import optax

from ssljax import Experiment, InputError, TrainState, main, minimize
from ssljax.data import augment, feed, images
from ssljax.evals.average import average
from ssljax.evals.knn import knn
from ssljax.evals.pictures import compared
from ssljax.evals.probe import linear_probe
from ssljax.models.coder import Convolutional, Dense


def inpainting(
    data: str = "digits", image_size: int = 0, coder: Convolutional | Dense = Convolutional(), code: int = 64,
    hole: float = 0.5, epochs: int = 100, batch_size: int = 128, lr: float = 1e-3,
) -> Experiment:
    """A context encoder: fills a square hole in the middle of an image.

    Args:
        data: digits (embedded), a TFDS image set (cifar10), a folder of class folders, or an .npz.
        image_size: Pixels a side to resize images to as they are read; 0 to leave them.
        coder: The nets from the image to the code, and from the code to the image.
        code: Its size.
        hole: Its side, as a part of the image's.
    """
    train, test = (images(data, split, image_size) for split in ("train", "test"))
    (h, w, _), num_steps, tx = train.shape, epochs * (len(train) // batch_size), optax.adam(lr)
    high, wide = round(hole * h), round(hole * w)
    if not (0 < high < h and 0 < wide < w):
        raise InputError(f"A hole of {high}x{wide} in images of {h}x{w} leaves nothing to do: choose --hole in (0, 1).")
    top, left = (h - high) // 2, (w - wide) // 2
    inside = jnp.zeros((h, w, 1), bool).at[top:top + high, left:left + wide].set(True)
    encoder, decoder = coder.encoder(code), coder.decoder(train.shape)
    given = lambda x: jnp.where(inside, x.mean((1, 2), keepdims=True, where=~inside), x)  # The mean of what is around.
    miss = lambda x, y: jnp.sum(jnp.where(inside, (x - y) ** 2, 0), axis=(1, 2, 3)) / (high * wide * x.shape[-1])

    def codes(params, x):
        return jax.nn.relu(encoder.apply(params["encoder"], x))

    def init(key, batch):
        z, e = encoder.init_with_output(key, augment.to_float(batch["image"][:2]))
        return TrainState.create(tx, {"encoder": e, "decoder": decoder.init(jax.random.fold_in(key, 1), z)})

    def fill(params, x):
        y = jax.nn.sigmoid(decoder.apply(params["decoder"], codes(params, given(x))))
        return jnp.where(inside, y, x)

    def loss(params, state, batch, key):
        x = augment.to_float(batch["image"])
        value = miss(x, fill(params, x)).mean()
        return value, (state.extra, {"loss": value})

    def errors(state, key, x, label):
        x = augment.to_float(x)
        psnr = lambda y: -10 * jnp.log10(miss(x, y) + 1e-10)
        return {"psnr": psnr(fill(state.params, x)), "psnr_of_mean": psnr(given(x))}

    def show(state, key, x):
        x = augment.to_float(x)
        return [given(x), fill(state.params, x)]

    encode = lambda state, x: codes(state.params, augment.to_float(x))
    return Experiment(init=init, step=minimize(tx, loss), data=feed(train, batch_size), num_steps=num_steps, evals={
        "hole": average(errors, test), "images": compared(show, test), "knn": knn(encode, train, test),
        "probe": linear_probe(encode, train, test)})


if __name__ == "__main__":
    main(inpainting)
