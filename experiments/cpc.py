"""Contrastive predictive coding (van den Oord et al., 2018, https://arxiv.org/abs/1807.03748).

Of raw waves of sound.

    launch/local.sh experiments/cpc.py                       # embedded signals, to see it run
    launch/local.sh experiments/cpc.py --data FOLDER --wave 8000 --waves.strides 5 4 2 2 2 \\
        --steps 12 --waves.width 128 --batch-size 64 --epochs 25 --bands 40 \\
        --window 256                                         # recordings, read at 8 kHz
    launch/local.sh experiments/cpc.py --data train-clean-100 --rate 16000 --wave 20480 \\
        --waves.strides 5 4 2 2 2 --waves.width 512 --context.width 256 --steps 12 \\
        --batch-size 8 --epochs 9 --lr 2e-4 --bands 40 --window 400

The last command is the paper's LibriSpeech setting and its 300,000 steps; the paper's learning
rate is constant and its network has no norm. FOLDER with spoken letters in 20 languages is
usr/share/klettres in Debian's klettres-data (unpack the package with `dpkg -x`): 93.5 % in a
quarter of an hour, when every tenth recording was for testing; now they are chosen by a hash of
their names. There each language is one speaker and one microphone, so that the mean of a
log-mel spectrogram is a high floor.
"""

from typing import Annotated

import flax.linen as nn
import jax

from ssljax import Experiment, main, minimize, TrainState
from ssljax.data import audio, feed
from ssljax.evals.recordings import of_recordings
from ssljax.losses.cpc import cpc_loss
from ssljax.models.rnn import RNN
from ssljax.models.waves import Waves
from ssljax.optim import adamw, warmup_cosine
from ssljax.ranges import checked, Count, Positive, Range


@checked
def cpc(
    data: audio.Recordings = audio.Recordings(),
    waves: Waves = Waves(strides=(4, 2), width=64),
    context: RNN = RNN("gru", width=64, layers=1),
    steps: Count = 4,
    epochs: Count = 200,
    batch_size: Count = 32,
    lr: Positive = 1e-3,
    bands: Count = 8,
    window: Annotated[int, Range(least=2)] = 32,
) -> Experiment:
    """A context predicts the codes that follow, against the codes of the other waves of a batch.

    Args:
        data: Recordings to learn from, labelled or not.
        waves: The encoder of waves into codes (g_enc in the paper).
        context: The recurrent net over codes (g_ar in the paper).
        steps: Number of codes ahead that are predicted, each by its own matrix (K in the paper).
        epochs: Passes through the training waves.
        batch_size: Waves in a step.
        lr: Peak learning rate of AdamW, after a warm-up over a tenth of training.
        bands: Bands of the log-mel spectrogram, whose means and deviations are the floor.
        window: Samples in a window of the spectrogram.
    """
    audio.check_log_mel(data.wave, data.rate, window, bands)
    train, test, labelled = data.read()
    num_steps = epochs * (len(train) // batch_size)
    tx = adamw(warmup_cosine(lr, num_steps))

    def codes(params, x):
        z = waves.apply(params["encoder"], audio.to_wave(x))
        return z, context.apply(params["context"], z)[0]

    def init(key, batch):
        k1, k2, k3 = jax.random.split(key, 3)
        z, e = waves.init_with_output(k1, audio.to_wave(batch["image"]))
        w = nn.initializers.lecun_normal(batch_axis=0)(k3, (steps, context.width, waves.width))
        return TrainState.create(tx, {"encoder": e, "context": context.init(k2, z), "w": w})

    def loss(params, state, batch, key):
        z, c = codes(params, batch["image"])
        value, accuracy = cpc_loss(c, z, params["w"])
        return value, (state.extra, {"loss": value, "accuracy": accuracy})

    def encode(state, x):
        return codes(state.params, x)[1].mean(1)

    return Experiment(
        init=init,
        step=minimize(tx, loss),
        data=feed(train, batch_size),
        num_steps=num_steps,
        encode=encode,
        evals=of_recordings(encode, train, test, labelled, data.rate, window, bands),
    )


if __name__ == "__main__":
    main(cpc)
