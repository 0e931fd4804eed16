"""ELECTRA (Clark et al., 2020, https://arxiv.org/abs/2003.10555): which tokens are made up?

launch/local.sh experiments/electra.py                                  # Python's manual, embedded
launch/local.sh experiments/electra.py --data imdb_reviews --vocabulary 8192 --width 256 --length 128 --steps 20000
"""

from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import tyro

from ssljax import Experiment, main, minimize, TrainState
from ssljax.data.documents import EMBEDDED
from ssljax.data.feed import Rows
from ssljax.data.token_rows import SPECIAL, token_rows
from ssljax.evals.masked_language import masked_accuracy, replaced_auroc
from ssljax.losses.language import (
    mask_tokens,
    masked_lm_loss,
    replace_tokens,
    replaced_detection_loss,
)
from ssljax.models.transformer import LanguageModel, Transformer
from ssljax.optim import adamw, warmup_cosine


def electra(
    data: str = EMBEDDED,
    vocabulary: int = 2048,
    net: Annotated[Transformer, tyro.conf.arg(name="")] = Transformer(layers=4, heads=4, width=128),
    part: int = 2,
    share: float = 0.15,
    weight: float = 50.0,
    length: int = 64,
    batch_size: int = 32,
    steps: int = 1000,
    lr: float = 1e-3,
    weight_decay: float = 0.01,
) -> Experiment:
    """ELECTRA: a small generator fills in masked tokens; a discriminator, which is kept, finds those that are wrong.

    Args:
        data: python (its manual, embedded), a text file (the last tenth is held out), a folder, or a TFDS set of texts.
        vocabulary: WordPiece tokens, learned on the training text.
        part: The generator's width is this part of the discriminator's (the paper: 2 to 4), and so are its heads.
        share: Of the tokens of a row, those to be masked: all of them, unlike BERT's (section 2).
        weight: Of the discriminator's loss, lambda in the paper.
        length: Tokens in a row, of documents end to end.
        lr: Its peak, after a warm-up over a tenth of training.
    """
    read = token_rows(data, vocabulary, length)
    model, head = LanguageModel(net, read.size, causal=False), nn.Dense(1)
    small = net.clone(width=net.width // part, heads=max(1, net.heads // part))
    generator = LanguageModel(small, read.size, causal=False, size=net.width)
    tx = optax.chain(
        optax.clip_by_global_norm(1.0), adamw(warmup_cosine(lr, steps), weight_decay, b2=0.98)
    )

    def init(key, batch):
        m, g = (
            model.init(key, batch["tokens"][:2]),
            generator.init(key, batch["tokens"][:2])["params"],
        )
        del g["embed"]  # It is the discriminator's (section 3.2).
        return TrainState.create(
            tx, {"model": m, "generator": g, "head": head.init(key, jnp.zeros((1, net.width)))}
        )

    def generate(params, key, tokens, train=False):
        k1, k2 = jax.random.split(key)
        g = {"params": {**params["generator"], "embed": params["model"]["params"]["embed"]}}
        masked = mask_tokens(k1, tokens, read.size, read.mask, SPECIAL, share, masked=1.0)
        return generator.apply(
            g, masked.tokens, masked.at, train, rngs={"dropout": k2}, method="logits_at"
        ), masked

    def discriminate(params, key, tokens, train=False):
        k1, k2, k3 = jax.random.split(key, 3)
        logits, masked = generate(params, k1, tokens, train)
        tokens, replaced = replace_tokens(k2, logits, masked)
        h = model.apply(params["model"], tokens, train=train, rngs={"dropout": k3}, method="hidden")
        return head.apply(params["head"], h)[:, :, 0], replaced, logits, masked

    def loss(params, state, batch, key):
        z, replaced, logits, masked = discriminate(params, key, batch["tokens"], train=True)
        g, d = (
            masked_lm_loss(logits, masked.targets, masked.weight),
            replaced_detection_loss(z, replaced),
        )
        value = g + weight * d
        return value, (state.extra, {"loss": value, "generator": g, "discriminator": d})

    tell = masked_accuracy(lambda state, *a: generate(state.params, *a), read)
    find = replaced_auroc(lambda state, *a: discriminate(state.params, *a)[:2], read.test)
    return Experiment(
        init=init,
        step=minimize(tx, loss),
        data=Rows({"tokens": read.train}, batch_size),
        num_steps=steps,
        evals={"generator": tell, "replaced": find},
        files={"tokenizer.json": read.tokenizer.to_str()},
    )


if __name__ == "__main__":
    main(electra)
