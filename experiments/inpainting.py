"""Inpainting by a context encoder (Pathak et al., 2016, https://arxiv.org/abs/1604.07379): the middle of an image from
what is around it, by squared error and, for sharper pictures, a discriminator's judgement of what was filled in.

    launch/local.sh experiments/inpainting.py                              # digits: half a minute on a laptop CPU
    launch/local.sh experiments/inpainting.py --data cifar10 --code 256 --epochs 20 --adversarial 0.001  # as in it
"""

import jax
import jax.numpy as jnp
import optax

from ssljax import descend, Experiment, InputError, main, TrainState
from ssljax.data import augment, feed, images
from ssljax.evals.average import average, psnr
from ssljax.evals.knn import knn
from ssljax.evals.pictures import compared
from ssljax.evals.probe import linear_probe
from ssljax.losses.adversarial import gan_critic_loss, nonsaturating_generator_loss
from ssljax.models.coder import Convolutional, Dense
from ssljax.models.dcgan import Discriminator


def inpainting(
    data: str = "digits",
    image_size: int = 0,
    coder: Convolutional | Dense = Convolutional(),
    code: int = 64,
    hole: float = 0.5,
    adversarial: float = 0.0,
    epochs: int = 100,
    batch_size: int = 128,
    lr: float = 1e-3,
) -> Experiment:
    """A context encoder: fills a square hole in the middle of an image.

    Args:
        data: digits (embedded), a TFDS image set (cifar10), a folder of class folders, or an .npz.
        image_size: Pixels a side to resize images to as they are read; 0 to leave them.
        coder: The nets from the image to the code, which has `code` units, and back.
        hole: Its side, as a part of the image's.
        adversarial: Weight in eq. 3 of being taken for real; the squared error's is the rest to 1. 0 for no such term.
        lr: Of the context encoder; the discriminator's is a tenth.
    """
    train, test = (images(data, split, image_size) for split in ("train", "test"))
    (h, w, _), steps, tx, slow = (
        train.shape,
        epochs * (len(train) // batch_size),
        optax.adam(lr),
        optax.adam(lr / 10),
    )
    side = round(hole * min(h, w))
    if not 0 < side < min(h, w):
        raise InputError(
            f"A hole of {side} pixels in images of {h}x{w} leaves nothing to do: choose --hole in (0, 1)."
        )
    rows, columns = (slice((s - side) // 2, (s + side) // 2) for s in (h, w))
    gap = jnp.zeros((1, h, w, 1), bool).at[:, rows, columns].set(True)
    middle = lambda x: augment.to_float(x)[:, rows, columns]
    given = lambda x: jnp.where(
        gap, augment.to_float(x).mean((1, 2), keepdims=True, where=~gap), augment.to_float(x)
    )
    encoder, decoder, disc = (
        coder.encoder(code),
        coder.decoder(train.shape),
        Discriminator(norm="layer"),
    )
    codes = lambda p, x: jax.nn.relu(encoder.apply(p["encoder"], augment.to_float(x)))
    fill = lambda p, x: jnp.where(
        gap, jax.nn.sigmoid(decoder.apply(p["decoder"], codes(p, given(x)))), given(x)
    )

    def init(key, batch):
        k1, k2, k3 = jax.random.split(key, 3)
        z, e = encoder.init_with_output(k1, given(batch["image"][:2]))
        told = disc.init(k3, middle(batch["image"][:2])) if adversarial else {}
        params = {"encoder": e, "decoder": decoder.init(k2, z)}, told
        return TrainState(
            jnp.zeros((), jnp.int32), params, (tx.init(params[0]), slow.init(told)), {}
        )

    def step(state, batch, key):
        x, (net, told), (opt, opt_told), metrics = batch["image"], state.params, state.opt_state, {}

        def filling(
            net,
        ):  # Eq. 3, with the discriminator's judgement in the form that has gradients from the start.
            y = fill(net, x)
            error = jnp.mean((middle(x) - middle(y)) ** 2)
            fooling = (
                nonsaturating_generator_loss(disc.apply(told, middle(y))) if adversarial else 0.0
            )
            return (1 - adversarial) * error + adversarial * fooling, (error, y)

        net, opt, (metrics["error"], y) = descend(tx, filling, net, opt)
        if adversarial:
            telling = lambda told: (
                2 * (gan_critic_loss(*(disc.apply(told, middle(im)) for im in (x, y))),)
            )  # Eq. 2.
            told, opt_told, metrics["discriminator"] = descend(slow, telling, told, opt_told)
        return state.replace(params=(net, told), opt_state=(opt, opt_told)), metrics

    errors = lambda s, key, x, y: {
        "psnr": psnr(x, fill(s.params[0], x), gap),
        "psnr_of_mean": psnr(x, given(x), gap),
    }
    encode = lambda state, x: codes(state.params[0], x)
    return Experiment(
        init=init,
        step=step,
        data=feed(train, batch_size),
        num_steps=steps,
        evals={
            "hole": average(
                errors, test, better={"psnr": "higher"}, floors={"psnr": "psnr_of_mean"}
            ),
            "knn": knn(encode, train, test),
            "probe": linear_probe(encode, train, test),
            "images": compared(lambda state, key, x: [given(x), fill(state.params[0], x)], test),
        },
    )


if __name__ == "__main__":
    main(inpainting)
