"""A denoising autoencoder of spectrograms (Vincent et al., 2010, JMLR 11).

The method is reviewed in https://arxiv.org/abs/1206.5538.

    launch/local.sh experiments/audio_dae.py                 # embedded signals, to see it run
    launch/local.sh experiments/audio_dae.py --data FOLDER --wave 8000 --bands 40 --window 256 \\
        --epochs 20 --code 64 coder:convolutional            # recordings, read at 8 kHz

FOLDER with spoken letters in 20 languages: Debian's klettres-data, as in cpc.py.
"""

from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ssljax import Experiment, main, minimize, TrainState
from ssljax.data import audio, feed
from ssljax.evals.average import average
from ssljax.evals.collapse import collapse
from ssljax.evals.features import subset
from ssljax.evals.pictures import feature_map, samples
from ssljax.evals.probe import linear_probe
from ssljax.losses.reconstruction import corrupt, Noise, squared_error
from ssljax.models.coder import Convolutional, Dense
from ssljax.ranges import checked, Count, NotNegative, Positive, Range


@checked
def audio_dae(
    data: audio.Recordings = audio.Recordings(),
    bands: Count = 8,
    window: Annotated[int, Range(least=2)] = 32,
    coder: Dense | Convolutional = Dense((256,)),
    code: Count = 16,
    noise: Noise = "gaussian",
    amount: NotNegative = 1.0,
    epochs: Count = 200,
    batch_size: Count = 32,
    lr: Positive = 1e-3,
) -> Experiment:
    """A log-mel spectrogram is predicted from a noisy one, through a narrow code.

    Args:
        data: Recordings to learn from, labelled or not.
        bands: Bands of the log-mel spectrogram.
        window: Samples in a window of the spectrogram; windows are half of this apart.
        coder: Encoder and decoder.
        code: Dimensions of the code.
        noise: Corruption of the encoder's input, a spectrogram with mean 0 and deviation 1 in
            each band.
        amount: Fraction of values that is masked, or standard deviation of the Gaussian.
        epochs: Passes through the training waves.
        batch_size: Waves in a step.
        lr: Learning rate of Adam.
    """
    audio.check_log_mel(data.wave, data.rate, window, bands)
    train, test, labelled = data.read()

    def log_mel(x):
        return audio.log_mel(audio.to_wave(x), data.rate, window, window // 2, bands)

    some = np.asarray(jax.jit(log_mel)(train.read(subset(train, 500))["image"]))
    mean, deviation = some.mean((0, 1)), some.std((0, 1)) + 1e-3
    encoder, decoder = coder.encoder(code), coder.decoder((*some.shape[1:], 1))
    tx = optax.adam(lr)

    def spectrogram(x):
        return ((log_mel(x) - mean) / deviation)[..., None]

    def reconstruct(params, x):
        return decoder.apply(params["decoder"], encoder.apply(params["encoder"], x))

    def init(key, batch):
        z, e = encoder.init_with_output(key, spectrogram(batch["image"]))
        d = decoder.init(jax.random.fold_in(key, 1), z)
        return TrainState.create(tx, {"encoder": e, "decoder": d})

    def loss(params, state, batch, key):
        x = spectrogram(batch["image"])
        y = reconstruct(params, corrupt(noise, key, x, amount))
        value = squared_error(x, y).mean() / x[0].size
        return value, (state.extra, {"loss": value})

    def encode(state, x):
        return encoder.apply(state.params["encoder"], spectrogram(x))

    def raw(state, x):
        return spectrogram(x).reshape(len(x), -1)

    def errors(state, key, x, label):
        x = spectrogram(x)
        noisy = corrupt(noise, key, x, amount)
        guesses = {
            "error": reconstruct(state.params, noisy),
            "of_noisy": noisy,
            "of_mean": jnp.zeros_like(x),
        }
        return {name: squared_error(x, y) / x[0].size for name, y in guesses.items()}

    def draw(state, key, n):
        """Clean, noisy and denoised spectrograms, time to the right and high bands on top."""
        at = np.resize(subset(test, n // 3), n // 3)
        x = spectrogram(jnp.asarray(test.read(at)["image"]))
        noisy = corrupt(noise, key, x, amount)
        rows = jnp.concatenate([x, noisy, reconstruct(state.params, noisy)])
        return jnp.clip(rows.swapaxes(1, 2)[:, ::-1] / 6 + 0.5, 0, 1)

    evals = {
        "test": average(errors, test, better={"error": "lower"}, floors={"error": "of_noisy"}),
        "images": samples(draw, rows=3),
        "collapse": collapse(encode, test),
        "features": feature_map(encode, test),
    }
    if labelled:
        evals |= {
            "probe": linear_probe(encode, train, test, floor=False),
            "log_mel": linear_probe(raw, train, test, floor=False),
        }
    return Experiment(
        init=init,
        step=minimize(tx, loss),
        data=feed(train, batch_size),
        num_steps=epochs * (len(train) // batch_size),
        encode=encode,
        evals=evals,
    )


if __name__ == "__main__":
    main(audio_dae)
