"""BERT's masked language model (Devlin et al., 2018, https://arxiv.org/abs/1810.04805): what was hidden.

launch/local.sh experiments/bert.py                                     # Python's manual, embedded
launch/local.sh experiments/bert.py --data imdb_reviews --vocabulary 8192 --width 256 --length 128 --steps 20000
launch/local.sh experiments/bert.py --data imdb_reviews --whole-words   # the authors' later models
"""

from typing import Annotated

import jax
import optax
import tyro

from ssljax import Experiment, main, minimize, TrainState
from ssljax.data.documents import EMBEDDED
from ssljax.data.feed import Rows
from ssljax.data.token_rows import SPECIAL, token_rows
from ssljax.evals.masked_language import masked_accuracy
from ssljax.losses.language import mask_tokens, masked_lm_loss, word_starts
from ssljax.models.transformer import LanguageModel, Transformer
from ssljax.optim import adamw, warmup_cosine


def bert(
    data: str = EMBEDDED,
    vocabulary: int = 2048,
    net: Annotated[Transformer, tyro.conf.arg(name="")] = Transformer(layers=4, heads=4, width=128),
    share: float = 0.15,
    whole_words: bool = False,
    length: int = 64,
    batch_size: int = 32,
    steps: int = 1000,
    lr: float = 1e-3,
    weight_decay: float = 0.01,
) -> Experiment:
    """BERT's masked language model, without the prediction of the next sentence (as RoBERTa), on WordPiece tokens.

    Args:
        data: python (its manual, embedded), a text file (the last tenth is held out), a folder, or a TFDS set of texts.
        vocabulary: WordPiece tokens, learned on the training text.
        share: Of the tokens of a row, those to be told: 80 % are masked, 10 % replaced, 10 % left.
        whole_words: Mask all of a word's tokens or none.
        length: Tokens in a row, of documents end to end.
        lr: Its peak, after a warm-up over a tenth of training.
    """
    read = token_rows(data, vocabulary, length)
    starts = (
        word_starts([read.tokenizer.id_to_token(i) for i in range(read.size)])
        if whole_words
        else None
    )
    model = LanguageModel(net, read.size, causal=False)
    tx = optax.chain(
        optax.clip_by_global_norm(1.0), adamw(warmup_cosine(lr, steps), weight_decay, b2=0.98)
    )

    def init(key, batch):
        return TrainState.create(tx, {"model": model.init(key, batch["tokens"][:2])})

    def predict(params, key, tokens, train=False):
        k1, k2 = jax.random.split(key)
        masked = mask_tokens(k1, tokens, read.size, read.mask, SPECIAL, share, starts)
        rngs = {"dropout": k2}
        return model.apply(
            params["model"], masked.tokens, masked.at, train, rngs=rngs, method="logits_at"
        ), masked

    def loss(params, state, batch, key):
        logits, masked = predict(params, key, batch["tokens"], train=True)
        value = masked_lm_loss(logits, masked.targets, masked.weight)
        return value, (state.extra, {"loss": value})

    tell = masked_accuracy(lambda state, *a: predict(state.params, *a), read)
    return Experiment(
        init=init,
        step=minimize(tx, loss),
        data=Rows({"tokens": read.train}, batch_size),
        num_steps=steps,
        evals={"test": tell},
        files={"tokenizer.json": read.tokenizer.to_str()},
    )


if __name__ == "__main__":
    main(bert)
