"""wav2vec 2.0 (Baevski et al., 2020, https://arxiv.org/abs/2006.11477).

    launch/local.sh experiments/wav2vec2.py                  # embedded signals, to see it run
    launch/local.sh experiments/wav2vec2.py --data FOLDER --wave 8000 --waves.strides 5 4 2 2 2 \\
        --waves.width 128 --context.width 128 --context.reach 16 --share 0.065 --span 10 \\
        --alpha 1 --batch-size 64 --epochs 25 --bands 40 \\
        --window 256                                         # recordings, read at 8 kHz
    # BASE, 960 hours of LibriSpeech: 400,000 steps of 1.6 hours; planned in launch/plans.md
    launch/local.sh experiments/wav2vec2.py --data LibriSpeech --rate 16000 --wave 250000 \\
        --waves.strides 5 2 2 2 2 2 2 --waves.width 512 --context.layers 12 --context.heads 8 \\
        --context.width 768 --context.reach 128 --context.blocks post-norm --entries 320 \\
        --size 256 --share 0.065 --span 10 --penalty 10 --batch-size 384 --epochs 694 --lr 5e-4 \\
        --bands 40 --window 400 --context.dtype bfloat16

FOLDER with spoken letters in 20 languages is klettres-data, as in cpc.py, where a language is one
speaker and one microphone. With the paper's α = 0.1 codebooks collapsed there, to a perplexity of 2
of 64 within 100 steps (one seed).

Where we differ: each convolution is over twice its stride, and a code sees nothing after its end
(the paper's kernels are 10, 3, 3, 3, 3, 2 and 2); all have LayerNorm, as in the paper's text and
its LARGE model, where BASE's code has one GroupNorm. Convolutional positions have no weight
normalisation. Layers are not dropped, nor the quantiser's inputs. The learning rate falls by a
cosine. The encoder's gradient is not divided by ten, as Adam would multiply it again. The diversity
loss has exp H in place of eq. 4's H, and distractors of a step's own code are left out, as in the
authors' code. Zeros at the end of a wave are padding: their steps are neither masked nor targets.
"""

import math
from typing import Annotated

import jax
import jax.numpy as jnp
import optax

from ssljax import Experiment, main, minimize, TrainState
from ssljax.accumulation import by_parts
from ssljax.data import audio, feed
from ssljax.evals.average import average
from ssljax.evals.codebook import codebook_use
from ssljax.evals.recordings import of_recordings
from ssljax.losses.quantization import diversity_loss, group_perplexities
from ssljax.losses.wav2vec2 import (
    contrastive_loss,
    contrasts,
    draw_distractors,
    masked_at_most,
    masked_steps,
    real_steps,
    span_mask,
)
from ssljax.models.transformer import Transformer
from ssljax.models.wav2vec2 import Quantizer, Wav2Vec2
from ssljax.models.waves import Waves
from ssljax.optim import adamw, warmup_cosine
from ssljax.ranges import checked, Count, NotNegative, Positive, PositiveFraction, Range


@checked
def wav2vec2(
    data: audio.Recordings = audio.Recordings(),
    waves: Waves = Waves(strides=(4, 2), width=64, unit="gelu"),
    context: Transformer = Transformer(
        layers=2,
        heads=4,
        width=64,
        norm="layer",
        positions="convolutional",
        unit="gelu",
        reach=8,
        dropout=0.1,
    ),
    groups: Count = 2,
    entries: Count = 64,
    size: Count = 64,
    share: PositiveFraction = 0.125,
    span: Annotated[int, Range(least=2)] = 4,
    distractors: Count = 100,
    kappa: Positive = 0.1,
    alpha: NotNegative = 0.1,
    penalty: NotNegative = 0.0,
    tau: Positive = 2.0,
    last_tau: Positive = 0.5,
    epochs: Count = 200,
    batch_size: Count = 32,
    lr: Positive = 1e-3,
    bands: Count = 8,
    window: Annotated[int, Range(least=2)] = 32,
) -> Experiment:
    """Contexts of masked steps pick the codes of these steps among those of other masked steps.

    Args:
        data: Recordings to learn from, labelled or not.
        waves: The encoder of waves into features.
        context: The Transformer over features, of which spans are masked.
        groups: Codebooks of the quantiser (G in the paper).
        entries: Entries of a codebook (V in the paper).
        size: Dimensions of a code, and of the contexts that are compared with it.
        share: Share of the steps that begin a masked span (p in the paper).
        span: Steps of a masked span (M in the paper).
        distractors: Other masked steps of the same recording that a code is picked from (K).
        kappa: Temperature of the cosines that are compared (κ in eq. 3).
        alpha: Weight of the diversity loss (α in eq. 2).
        penalty: Weight of the mean square of the features.
        tau: Temperature of the Gumbel softmax in the first step (τ in eq. 1).
        last_tau: Temperature after 70 % of training, after a geometric decay.
        epochs: Passes through the training waves.
        batch_size: Waves in a step.
        lr: Peak learning rate of AdamW, after a warm-up over 8 % of training.
        bands: Bands of the log-mel spectrogram, whose means and deviations are the floor.
        window: Samples in a window of the spectrogram.
    """
    stride = math.prod(waves.strides)
    length = data.wave // stride
    most = masked_at_most(length, share, span)
    audio.check_log_mel(data.wave, data.rate, window, bands)
    train, test, labelled = data.read()
    num_steps = epochs * (len(train) // batch_size)
    temperature = optax.exponential_decay(
        tau, max(1, round(0.7 * num_steps)), last_tau / tau, end_value=last_tau
    )
    tx = adamw(warmup_cosine(lr, num_steps, 0.08), weight_decay=0.01, b2=0.98)
    net = Wav2Vec2(waves, context, Quantizer(groups, entries, size))

    def masked(params, x, key, tau=1.0, train=False):
        k1, k2, k3, k4 = jax.random.split(key, 4)
        mask = span_mask(k1, real_steps(x, stride), length, share, span)
        at, real = masked_steps(mask, most)
        others = draw_distractors(k2, real.sum(1), most, distractors)
        drawn, rngs = (k3 if train else None), {"dropout": k4}
        out = net.apply(params["net"], audio.to_wave(x), mask, at, drawn, tau, train, rngs=rngs)
        return (*out, others, real), {}

    def init(key, batch):
        x = audio.to_wave(batch["image"][:2])
        mask, at = jnp.zeros((len(x), length), bool), jnp.zeros((len(x), most), int)
        return TrainState.create(tx, {"net": net.init(key, x, mask, at)})

    def loss(params, state, batch, key):
        drawn = lambda params, x, key: masked(params, x, key, temperature(state.step), train=True)
        (c, q, entry, p, square, others, real), _ = by_parts(drawn, params, batch["image"], key)
        contrastive, accuracy = contrastive_loss(c, q, entry, others, real, kappa)
        diversity, use = diversity_loss(p, real), group_perplexities(p, real)
        value = contrastive + alpha * diversity + penalty * square.mean()
        found = {"contrastive": contrastive, "accuracy": accuracy, "diversity": diversity}
        found |= {f"perplexity{g + 1}": use[g] for g in range(groups)}
        return value, (state.extra, {"loss": value, **found})

    def held_out(state, key, x, label):
        (c, q, entry, _, _, others, real), _ = masked(state.params, x, key)
        nll, right = contrasts(c, q, entry, others, kappa)
        mean = lambda y: jnp.mean(y, axis=1, where=real)
        return {"accuracy": 100 * mean(right), "nats": mean(nll)}

    def encode(state, x):
        return net.apply(state.params["net"], audio.to_wave(x), method="encode").mean(1)

    def code(state, x):
        return net.apply(state.params["net"], audio.to_wave(x), method="entries")

    evals = of_recordings(encode, train, test, labelled, data.rate, window, bands) | {
        "test": average(held_out, test, better={"accuracy": "higher", "nats": "lower"}),
        "codebook": codebook_use(code, test, entries, groups=groups),
    }
    return Experiment(
        init=init,
        step=minimize(tx, loss),
        data=feed(train, batch_size),
        num_steps=num_steps,
        encode=encode,
        evals=evals,
    )


if __name__ == "__main__":
    main(wav2vec2)
