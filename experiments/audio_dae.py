"""A denoising autoencoder (Vincent et al., 2010, JMLR 11; https://arxiv.org/abs/1206.5538 tells of it) of spectrograms.

    launch/local.sh experiments/audio_dae.py                      # two embedded signals, not sound: to see it run
    launch/local.sh experiments/audio_dae.py --data FOLDER --wave 8000 --bands 40 --window 256 --epochs 20 \\
        --code 64 coder:convolutional                             # FOLDER/CLASS/*.wav, at 8 kHz: the ledger's

Spoken letters in 20 languages: Debian's klettres-data, as in cpc.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ssljax import Experiment, main, minimize, TrainState
from ssljax.data import audio, feed
from ssljax.evals.average import average
from ssljax.evals.features import subset
from ssljax.evals.pictures import samples
from ssljax.evals.probe import linear_probe
from ssljax.losses.reconstruction import corrupt, Noise, squared_error
from ssljax.models.coder import Convolutional, Dense


def audio_dae(
    data: str = "signals",
    rate: int = 8000,
    wave: int = 128,
    bands: int = 8,
    window: int = 32,
    coder: Dense | Convolutional = Dense((256,)),
    code: int = 16,
    noise: Noise = "gaussian",
    amount: float = 1.0,
    epochs: int = 200,
    batch_size: int = 32,
    lr: float = 1e-3,
) -> Experiment:
    """A log-mel spectrogram from a noisy one, through a narrow code.

    Args:
        data: signals (embedded), or a folder of class folders of recordings.
        rate: Samples a second to bring recordings to; the embedded signals keep theirs.
        wave: Samples of a wave; longer recordings are cut into several.
        bands: Of the log-mel spectrogram.
        window: Samples of its windows, which are half of that apart.
        code: Units of the code.
        noise: What is done to the spectrogram, of mean 0 and deviation 1 in each band, that the encoder sees.
        amount: The share of values masked, or the Gaussian's standard deviation.
    """
    train, test = (audio.recordings(data, split, wave, rate) for split in ("train", "test"))
    log_mel = lambda x: audio.log_mel(audio.to_wave(x), rate, window, window // 2, bands)
    some = np.asarray(jax.jit(log_mel)(train.read(subset(train, 500))["image"]))
    mean, deviation = some.mean((0, 1)), some.std((0, 1)) + 1e-3
    look = lambda x: ((log_mel(x) - mean) / deviation)[..., None]
    encoder, decoder, tx = coder.encoder(code), coder.decoder((*some.shape[1:], 1)), optax.adam(lr)
    encode = lambda state, x: encoder.apply(state.params["encoder"], look(x))
    through = lambda params, x: decoder.apply(
        params["decoder"], encoder.apply(params["encoder"], x)
    )

    def init(key, batch):
        z, e = encoder.init_with_output(key, look(batch["image"]))
        return TrainState.create(
            tx, {"encoder": e, "decoder": decoder.init(jax.random.fold_in(key, 1), z)}
        )

    def loss(params, state, batch, key):
        x = look(batch["image"])
        value = squared_error(x, through(params, corrupt(noise, key, x, amount))).mean() / x[0].size
        return value, (state.extra, {"loss": value})

    def errors(state, key, x, label):
        x = look(x)
        seen = corrupt(noise, key, x, amount)
        error = lambda y: squared_error(x, y) / x[0].size
        return {
            "error": error(through(state.params, seen)),
            "of_noisy": error(seen),
            "of_mean": error(0 * x),
        }

    def show(
        state, key, n
    ):  # Clean, noisy and denoised, with time to the right and high bands on top.
        x = look(jnp.asarray(test.read(np.resize(subset(test, n // 3), n // 3))["image"]))
        seen = corrupt(noise, key, x, amount)
        rows = jnp.concatenate([x, seen, through(state.params, seen)])
        return jnp.clip(rows.swapaxes(1, 2)[:, ::-1] / 6 + 0.5, 0, 1)

    return Experiment(
        init=init,
        step=minimize(tx, loss),
        data=feed(train, batch_size),
        num_steps=epochs * (len(train) // batch_size),
        evals={
            "test": average(
                errors, test, better={"error": "lower"}, floors={"error": "of_noisy"}
            ),
            "images": samples(show, rows=3),
            "probe": linear_probe(encode, train, test, floor=False),
            "log_mel": linear_probe(
                lambda state, x: look(x).reshape(len(x), -1), train, test, floor=False
            ),
        },
    )


if __name__ == "__main__":
    main(audio_dae)
