"""BERT's masked language model (Devlin et al., 2018, https://arxiv.org/abs/1810.04805): what was hidden.

    launch/local.sh experiments/bert.py                                     # Python's manual, embedded
    launch/local.sh experiments/bert.py --data imdb_reviews --vocabulary 8192 --width 256 --length 128 --steps 20000
    launch/local.sh experiments/bert.py --data imdb_reviews --whole-words   # the authors' later models
"""

from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from ssljax import Experiment, TrainState, main, minimize
from ssljax.data import text
from ssljax.data.feed import Rows
from ssljax.evals.masked import masked_accuracy
from ssljax.losses.language import mask_tokens, masked_lm, word_starts
from ssljax.models.transformer import LanguageModel, Transformer
from ssljax.optim import adamw, warmup_cosine

SPECIAL = len(text.BERT)  # The first tokens, which are neither masked nor drawn.


def bert(
    data: str = text.EMBEDDED, vocabulary: int = 2048,
    net: Annotated[Transformer, tyro.conf.arg(name="")] = Transformer(layers=4, heads=4, width=128),
    share: float = 0.15, whole_words: bool = False,
    length: int = 64, batch_size: int = 32, steps: int = 1000, lr: float = 1e-3, weight_decay: float = 0.01,
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
    train, test = (text.documents(data, split) for split in ("train", "test"))
    tokenizer = text.wordpiece(train, vocabulary)
    size, (cls, sep, mask) = tokenizer.get_vocab_size(), map(tokenizer.token_to_id, ("[CLS]", "[SEP]", "[MASK]"))
    rows = lambda docs: np.insert(text.pack(*text.encode(tokenizer, docs), length - 1, sep), 0, cls, axis=1)
    x, y = rows(train), rows(test)
    starts = word_starts([tokenizer.id_to_token(i) for i in range(size)]) if whole_words else None
    model = LanguageModel(net, size, causal=False)
    tx = optax.chain(optax.clip_by_global_norm(1.0), adamw(warmup_cosine(lr, steps), weight_decay, b2=0.98))

    def init(key, batch):
        return TrainState.create(tx, {"model": model.init(key, batch["tokens"][:2])})

    def predict(params, key, tokens, train=False):  # Logits only where they are asked: the vocabulary is wide.
        k1, k2 = jax.random.split(key)
        masked = mask_tokens(k1, tokens, size, mask, SPECIAL, share, starts)
        h = model.apply(params["model"], masked.tokens, train=train, rngs={"dropout": k2}, method="hidden")
        asked = jnp.take_along_axis(h, masked.at[:, :, None], axis=1)
        return model.apply(params["model"], asked, method="logits"), masked

    def loss(params, state, batch, key):
        logits, masked = predict(params, key, batch["tokens"], train=True)
        value = masked_lm(logits, masked.targets, masked.weight)
        return value, (state.extra, {"loss": value})

    tell = masked_accuracy(lambda state, key, rows: predict(state.params, key, rows), y, x, SPECIAL, tokenizer.decode)
    return Experiment(init=init, step=minimize(tx, loss), data=Rows({"tokens": x}, batch_size), num_steps=steps,
                      evals={"test": tell}, files={"tokenizer.json": tokenizer.to_str()})


if __name__ == "__main__":
    main(bert)
