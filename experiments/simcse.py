"""SimCSE, unsupervised (Gao et al., 2021, https://arxiv.org/abs/2104.08821).

Two encodings of a text, each with its own dropout, agree with each other against all other texts.

launch/local.sh experiments/simcse.py                    # half pages of Python's manual, embedded
launch/local.sh experiments/simcse.py --pretrained runs/bert
launch/local.sh experiments/simcse.py --data imdb_reviews --pretrained runs/BERT-ON-IMDB \\
    --length 128

From scratch features spread and name no kind of page better: probe 52.8 ± 12.6 % (untrained net
51.1, words 98.3), three seeds. Start from a language model, as the paper does.
"""

from typing import Annotated

import jax
import jax.numpy as jnp
import tyro

from ssljax import Experiment, main, minimize, TrainState
from ssljax.accumulation import by_parts
from ssljax.data.documents import EMBEDDED, labelled_documents
from ssljax.data.feed import Rows
from ssljax.data.token_rows import labelled_splits, TokenKind
from ssljax.evals.alignment_uniformity import alignment_uniformity
from ssljax.evals.knn import knn
from ssljax.evals.probe import linear_probe
from ssljax.evals.text_floor import text_floors
from ssljax.evals.texts import nearest_texts
from ssljax.losses.infonce import info_nce_loss
from ssljax.models.mlp import MLP
from ssljax.models.transformer import Transformer
from ssljax.optim import adamw, clipped, warmup_cosine
from ssljax.pretrained import pretrained_or_new
from ssljax.ranges import checked, Count, NotNegative, Positive, Range


@checked
def simcse(
    data: str = EMBEDDED,
    pretrained: str = "",
    tokens: TokenKind = "wordpiece",
    vocabulary: Count = 2048,
    net: Annotated[Transformer, tyro.conf.arg(name="")] = Transformer(
        layers=4, heads=4, width=128, dropout=0.1
    ),
    temperature: Positive = 0.05,
    length: Annotated[int, Range(least=3)] = 64,
    batch_size: Annotated[int, Range(least=2)] = 64,
    steps: Count = 100,
    lr: NotNegative = 3e-4,
    weight_decay: NotNegative = 0.0,
) -> Experiment:
    """SimCSE without labels, from a pretrained language model or from scratch.

    Args:
        data: python (half pages of its manual, embedded), or a text set with classes, which only
            the evaluators use.
        pretrained: Folder of a run of bert or electra to start from, as in the paper (of several
            seeds, the first), of an export, or of a BERT or EuroBERT of transformers; or
            hf-hub:OWNER/NAME. Its network, except for dropout, and its tokens replace the flags
            here. --lr 0 --steps 1 only evaluates it. A run on the embedded manual has seen the
            test half pages, without labels. Empty to start from scratch.
        tokens: WordPiece in lower case, or byte pairs (bpe), which any script can be written in.
        vocabulary: Number of tokens, learned on the training texts.
        net: The Transformer.
        temperature: Temperature of the softmax (tau in the paper).
        length: Tokens of a text that are read.
        batch_size: Texts in a step.
        steps: Training steps.
        lr: Peak learning rate of AdamW, after a warm-up over a tenth of training.
        weight_decay: Decoupled weight decay of AdamW, times the learning rate.
    """
    docs = {split: labelled_documents(data, split) for split in ("train", "test")}
    old = pretrained_or_new(pretrained, net, docs["train"], tokens, vocabulary, length)
    train, test = labelled_splits(old.tokenizer, docs, length)
    model, width = old.model, old.model.net.width
    head = MLP((width, width), activation="tanh", dtype=model.net.dtype)
    tx = clipped(1.0, adamw(warmup_cosine(lr, steps), weight_decay))

    def init(key, batch):
        k1, k2 = jax.random.split(key)
        m = model.init(k1, jnp.maximum(batch["tokens"][:2], 0))
        return TrainState.create(tx, {"model": m, "head": head.init(k2, jnp.zeros((1, width)))})

    def embed(params, rows, train=False, key=None):
        rngs = {"dropout": key} if train else {}
        return model.apply(params["model"], rows, train, rngs=rngs, method="pooled")

    def loss(params, state, batch, key):
        twice = jnp.repeat(batch["tokens"], 2, axis=0)  # Each copy gets its own dropout.
        project = lambda p, x, key: (head.apply(p["head"], embed(p, x, True, key)), {})
        z, _ = by_parts(project, params, twice, key)
        value = info_nce_loss(z[0::2], z[1::2], tau=temperature)
        return value, (state.extra, {"loss": value})

    def encode(state, rows):
        return embed(state.params, rows)  # The head is only used in training (section 3.1).

    def encode_with_dropout(state, key, rows):
        return embed(state.params, rows, train=True, key=key)

    titles = [
        f"{test.class_names[c]}: {' '.join(t.split())[:48]}"
        for t, c in zip(docs["test"].text, test.labels)
    ]
    return Experiment(
        init=init,
        step=minimize(tx, loss),
        data=Rows({"tokens": train.image}, batch_size),
        num_steps=steps,
        encode=encode,
        warm_start=old.warm_start,
        files=old.files,
        evals={
            "knn": knn(encode, train, test, floor=False),
            "probe": linear_probe(encode, train, test, floor=False),
            "spread": alignment_uniformity(encode_with_dropout, test),
            "text": nearest_texts(encode, test, titles),
            **text_floors(docs["train"], docs["test"]),
        },
    )


if __name__ == "__main__":
    main(simcse)
