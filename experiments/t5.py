"""T5's denoising (Raffel et al., 2020, https://arxiv.org/abs/1910.10683).

Spans of a text are left out; an encoder reads the rest, and a decoder writes them.

launch/local.sh experiments/t5.py                        # Python's manual, with its gaps filled
launch/local.sh experiments/t5.py --data imdb_reviews --vocabulary 8192 --layers 4 \\
    --share 0.15 --length 128 --batch-size 32 --steps 6000 --lr 1e-3
# T5 1.1 base, in bfloat16, with the paper's batch of 128 rows, of 512 tokens once spans are left
# out; planned in launch/plans.md
launch/local.sh experiments/t5.py --data c4.jsonl --vocabulary 32000 --layers 12 --heads 12 \\
    --width 768 --share 0.15 --length 568 --batch-size 128 --steps 524288 --lr 1e-3 \\
    --dtype bfloat16
"""

from typing import Annotated

import jax
import jax.numpy as jnp
import tyro

from ssljax import Experiment, main, minimize, TrainState
from ssljax.data.documents import EMBEDDED
from ssljax.data.text_pairs import sentinel_ids, text_rows
from ssljax.evals.answers import fillings, span_nll
from ssljax.losses.language import masked_lm_loss
from ssljax.losses.span_corruption import corrupt_spans
from ssljax.models.encoder_decoder import decode, EncoderDecoder, END
from ssljax.models.transformer import Transformer
from ssljax.optim import adamw, clipped, warmup_cosine
from ssljax.pretrained import language_model_files
from ssljax.ranges import (
    checked,
    Count,
    CountOrZero,
    NotNegative,
    Positive,
    PositiveFraction,
    ProperFraction,
    Range,
)


@checked
def t5(
    data: str = EMBEDDED,
    vocabulary: Count = 512,
    net: Annotated[Transformer, tyro.conf.arg(name="")] = Transformer(
        layers=2, heads=4, width=128, positions="relative", unit="geglu"
    ),
    share: ProperFraction = 0.5,
    span: Annotated[float, Range(least=1)] = 3.0,
    length: Annotated[int, Range(least=2)] = 64,
    batch_size: Count = 16,
    steps: Count = 1000,
    lr: Positive = 2e-3,
    weight_decay: NotNegative = 0.01,
    temperature: NotNegative = 0.0,
    top_k: CountOrZero = 0,
    top_p: PositiveFraction = 1.0,
) -> Experiment:
    """T5's span corruption, with the network of T5 1.1.

    AdamW with a cosine is used instead of Adafactor with an inverse square root; z-loss is left
    out. The relative positions are learned with weight decay, and a row has spans of its own in
    each epoch.

    Args:
        data: python (its manual, embedded), a text file (the last tenth is held out), a .jsonl or
            .parquet file of texts, a folder of such files, or a TFDS set of texts.
        vocabulary: Number of byte pairs, learned on the training text; 100 sentinels are added.
        net: The form of the encoder and of the decoder.
        share: Fraction of a row's tokens that is left out. The paper's is 0.15; at 0.5, also in
            its section 3.3.3, a step on a small text learns from three times as many.
        span: Mean number of tokens of a span.
        length: Tokens in a row before spans are left out, of documents end to end.
        batch_size: Rows in a step.
        steps: Training steps.
        lr: Peak learning rate of AdamW, after a warm-up over a tenth of training.
        weight_decay: Decoupled weight decay of AdamW, times the learning rate.
        temperature: Temperature of the fillings; 0 takes the most likely token.
        top_k: Fillings are drawn from this many of the most likely tokens; 0 for all.
        top_p: Fillings are drawn from the fewest tokens that have this probability together.
    """
    read = text_rows(data, vocabulary, length)
    sentinels = sentinel_ids(read.tokenizer)
    model = EncoderDecoder(net, read.size)
    tx = clipped(1.0, adamw(warmup_cosine(lr, steps), weight_decay, b2=0.98))

    def corrupt(key, rows):
        return corrupt_spans(key, rows, sentinels, END, share, span)

    def init(key, batch):
        pairs = corrupt(key, batch["tokens"][:2])
        return TrainState.create(tx, {"model": model.init(key, *pairs)})

    def predict(params, key, rows, train=False):
        k1, k2 = jax.random.split(key)
        inputs, targets = corrupt(k1, rows)
        logits = model.apply(params["model"], inputs, targets, train, rngs={"dropout": k2})
        return logits, targets

    def loss(params, state, batch, key):
        logits, targets = predict(params, key, batch["tokens"], train=True)
        value = masked_lm_loss(logits, jnp.maximum(targets, 0), targets >= 0)
        return value, (state.extra, {"loss": value})

    def encode(state, rows):
        return model.apply(state.params["model"], rows, method="pooled")

    def predict_held_out(state, key, rows):
        return predict(state.params, key, rows)

    def fill(state, key, rows):
        inputs, targets = corrupt(key, rows)
        params, most = state.params["model"], targets.shape[1]
        answers = decode(model, params, key, inputs, most, temperature, top_k, top_p)
        return inputs, answers, targets

    return Experiment(
        init=init,
        step=minimize(tx, loss),
        data=read.feed(batch_size),
        num_steps=steps,
        encode=encode,
        files=language_model_files(model, read.tokenizer),
        evals={
            "test": span_nll(predict_held_out, read, special=[END, *sentinels]),
            "text": fillings(fill, read, sentinels),
        },
    )


if __name__ == "__main__":
    main(t5)
