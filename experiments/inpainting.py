"""Context encoder (Pathak et al., 2016, https://arxiv.org/abs/1604.07379): the middle of an image
from its surroundings, by squared error and, for sharper pictures, an adversarial loss.

    launch/local.sh experiments/inpainting.py             # digits: half a minute on a laptop CPU
    # The paper's weight of the adversarial loss
    launch/local.sh experiments/inpainting.py --data cifar10 --code 256 --epochs 20 \
        --adversarial 0.001
"""

import jax
import jax.numpy as jnp
import optax

from ssljax import descend, Experiment, InputError, main, TrainState
from ssljax.data import augment, feed, Images, steps_of
from ssljax.evals.average import average, psnr
from ssljax.evals.pictures import compared
from ssljax.evals.representation import representation
from ssljax.losses.adversarial import gan_critic_loss, nonsaturating_generator_loss
from ssljax.models.coder import Convolutional, Dense
from ssljax.models.dcgan import Discriminator
from ssljax.ranges import checked, Count, Fraction, Positive, ProperFraction


@checked
def inpainting(
    data: Images = Images("digits"),
    coder: Convolutional | Dense = Convolutional(),
    code: Count = 64,
    hole: ProperFraction = 0.5,
    adversarial: Fraction = 0.0,
    epochs: Count = 100,
    batch_size: Count = 128,
    lr: Positive = 1e-3,
) -> Experiment:
    """A context encoder: fills a square hole in the middle of an image.

    Args:
        data: Images to learn from, and those that features are judged on.
        coder: Nets from the image to the code and back.
        code: Units of the code.
        hole: Side of the hole, as a fraction of the image's.
        adversarial: λ_adv in eq. 3: weight of the adversarial loss; λ_rec is 1 - λ_adv.
        epochs: Passes over the training set.
        batch_size: Images in a step.
        lr: Learning rate of the context encoder; the discriminator's is a tenth.
    """
    sets = data.read()
    train, test = sets.train, sets.test
    h, w, _ = train.shape
    side = round(hole * min(h, w))
    if not 0 < side < min(h, w):
        raise InputError(
            f"--hole must leave a pixel in and around the hole, not {hole}: that is {side} of the "
            f"{min(h, w)} pixels of an image's side."
        )
    rows, columns = (slice((s - side) // 2, (s + side) // 2) for s in (h, w))
    gap = jnp.zeros((1, h, w, 1), bool).at[:, rows, columns].set(True)
    encoder, decoder = coder.encoder(code), coder.decoder(train.shape)
    disc = Discriminator(norm="layer")
    tx, disc_tx = optax.adam(lr), optax.adam(lr / 10)

    def middle(image):
        return augment.to_float(image)[:, rows, columns]

    def surroundings(image):
        """The images with their hole filled by the mean of what is around it."""
        x = augment.to_float(image)
        return jnp.where(gap, x.mean((1, 2), keepdims=True, where=~gap), x)

    def codes(net, image):
        return jax.nn.relu(encoder.apply(net["encoder"], augment.to_float(image)))

    def fill(net, image):
        """The images with their hole filled by the net."""
        given = surroundings(image)
        drawn = jax.nn.sigmoid(decoder.apply(net["decoder"], codes(net, given)))
        return jnp.where(gap, drawn, given)

    def init(key, batch):
        k1, k2, k3 = jax.random.split(key, 3)
        image = batch["image"][:2]
        z, e = encoder.init_with_output(k1, surroundings(image))
        net = {"encoder": e, "decoder": decoder.init(k2, z)}
        judge = disc.init(k3, middle(image)) if adversarial else {}
        opt_state = (tx.init(net), disc_tx.init(judge))
        return TrainState(jnp.zeros((), jnp.int32), (net, judge), opt_state, {})

    def step(state, batch, key):
        image, (net, judge), (opt, disc_opt) = batch["image"], state.params, state.opt_state

        def fill_loss(net):  # Eq. 3, with the adversarial loss in its non-saturating form.
            y = fill(net, image)
            error = jnp.mean((middle(image) - middle(y)) ** 2)
            value = (1 - adversarial) * error
            if adversarial:
                fooled = nonsaturating_generator_loss(disc.apply(judge, middle(y)))
                value = value + adversarial * fooled
            return value, (error, y)

        net, opt, (error, y) = descend(tx, fill_loss, net, opt)
        metrics = {"error": error}

        def disc_loss(judge):  # Eq. 2.
            value = gan_critic_loss(*(disc.apply(judge, middle(x)) for x in (image, y)))
            return value, value

        if adversarial:
            judge, disc_opt, value = descend(disc_tx, disc_loss, judge, disc_opt)
            metrics["discriminator"] = value
        return state.replace(params=(net, judge), opt_state=(opt, disc_opt)), metrics

    def encode(state, x):
        return codes(state.params[0], x)

    def errors(state, key, x, label):
        filled = psnr(x, fill(state.params[0], x), gap)
        return {"psnr": filled, "psnr_of_mean": psnr(x, surroundings(x), gap)}

    def show(state, key, x):
        return [surroundings(x), fill(state.params[0], x)]

    return Experiment(
        init=init,
        step=step,
        data=feed(train, batch_size),
        num_steps=steps_of(epochs, train, batch_size),
        encode=encode,
        evals={
            "hole": average(
                errors, test, better={"psnr": "higher"}, floors={"psnr": "psnr_of_mean"}
            ),
            **representation(encode, sets),
            "images": compared(show, test, names=["without the middle", "filled"]),
        },
    )


if __name__ == "__main__":
    main(inpainting)
