"""ELECTRA (Clark et al., 2020, https://arxiv.org/abs/2003.10555): which tokens were replaced?

launch/local.sh experiments/electra.py                   # Python's manual, embedded
launch/local.sh experiments/electra.py --data imdb_reviews --vocabulary 8192 --width 256 \\
    --length 128 --steps 20000
"""

from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
import tyro

from ssljax import Experiment, main, minimize, TrainState
from ssljax.data.documents import EMBEDDED
from ssljax.data.token_rows import SPECIAL, token_rows, TokenKind
from ssljax.evals.masked_language import masked_accuracy, replaced_auroc
from ssljax.losses.language import (
    mask_tokens,
    masked_lm_loss,
    replace_tokens,
    replaced_detection_loss,
)
from ssljax.models.transformer import LanguageModel, Transformer
from ssljax.optim import adamw, clipped, warmup_cosine
from ssljax.pretrained import language_model_files
from ssljax.ranges import checked, Count, NotNegative, Positive, Range


@checked
def electra(
    data: str = EMBEDDED,
    tokens: TokenKind = "wordpiece",
    vocabulary: Count = 2048,
    net: Annotated[Transformer, tyro.conf.arg(name="")] = Transformer(layers=4, heads=4, width=128),
    part: Count = 2,
    share: Annotated[float, Range(above=0, below=1)] = 0.15,
    weight: NotNegative = 50.0,
    length: Annotated[int, Range(least=2)] = 64,
    batch_size: Count = 32,
    steps: Count = 1000,
    lr: Positive = 1e-3,
    weight_decay: NotNegative = 0.01,
) -> Experiment:
    """ELECTRA: a small generator fills in masked tokens; a discriminator finds the wrong ones.

    The discriminator is kept.

    Args:
        data: python (its manual, embedded), a text file (the last tenth is held out), a .jsonl or
            .parquet file of texts, a folder of such files, or a TFDS set of texts.
        tokens: WordPiece in lower case, or byte pairs (bpe), which any script can be written in.
        vocabulary: Number of tokens, learned on the training text.
        net: The discriminator.
        part: Width and heads of the discriminator, divided by those of the generator (2 to 4 in
            the paper).
        share: Fraction of a row's tokens that are masked: all of them, unlike BERT's (section 2).
        weight: Weight of the discriminator's loss (lambda in the paper).
        length: Tokens in a row, of documents end to end.
        batch_size: Rows in a step.
        steps: Training steps.
        lr: Peak learning rate of AdamW, after a warm-up over a tenth of training.
        weight_decay: Decoupled weight decay of AdamW, times the learning rate.
    """
    read = token_rows(data, tokens, vocabulary, length)
    model, head = LanguageModel(net, read.size, causal=False), nn.Dense(1)
    small = net.clone(width=net.width // part, heads=max(1, net.heads // part))
    generator = LanguageModel(small, read.size, causal=False, size=net.width)
    schedule = warmup_cosine(lr, steps)
    tx = clipped(1.0, adamw(schedule, weight_decay, b2=0.98))

    def init(key, batch):
        m = model.init(key, batch["tokens"][:2])
        g = generator.init(key, batch["tokens"][:2])["params"]
        del g["embed"]  # The generator uses the discriminator's embedding (section 3.2).
        h = head.init(key, jnp.zeros((1, net.width)))
        return TrainState.create(tx, {"model": m, "generator": g, "head": h})

    def generate(params, key, rows, train=False):
        k1, k2 = jax.random.split(key)
        embed = params["model"]["params"]["embed"]
        g = {"params": {**params["generator"], "embed": embed}}
        masked = mask_tokens(k1, rows, read.size, read.mask, SPECIAL, share, masked=1.0)
        arguments = masked.tokens, masked.at, train
        return generator.apply(g, *arguments, rngs={"dropout": k2}, method="logits_at"), masked

    def discriminate(params, key, rows, train=False):
        k1, k2, k3 = jax.random.split(key, 3)
        logits, masked = generate(params, k1, rows, train)
        new, replaced = replace_tokens(k2, logits, masked)
        rngs = {"dropout": k3}
        h = model.apply(params["model"], new, train=train, rngs=rngs, method="hidden")
        return head.apply(params["head"], h)[:, :, 0], replaced, logits, masked

    def loss(params, state, batch, key):
        z, replaced, logits, masked = discriminate(params, key, batch["tokens"], train=True)
        g = masked_lm_loss(logits, masked.targets, masked.weight)
        d = replaced_detection_loss(z, replaced)
        value = g + weight * d
        return value, (state.extra, {"loss": value, "generator": g, "discriminator": d})

    def fill_in(state, key, rows):
        return generate(state.params, key, rows)

    def find_replaced(state, key, rows):
        return discriminate(state.params, key, rows)[:2]

    def encode(state, rows):
        return model.apply(state.params["model"], rows, method="pooled")

    return Experiment(
        init=init,
        step=minimize(tx, loss),
        data=read.feed(batch_size),
        num_steps=steps,
        encode=encode,
        evals={
            "replaced": replaced_auroc(find_replaced, read.test),
            "generator": masked_accuracy(fill_in, read),
        },
        files=language_model_files(model, read.tokenizer),
    )


if __name__ == "__main__":
    main(electra)
