"""SimCSE, unsupervised (Gao et al., 2021, https://arxiv.org/abs/2104.08821): a text agrees with itself.

launch/local.sh experiments/simcse.py                                   # half pages of Python's manual, embedded
launch/local.sh experiments/simcse.py --pretrained runs/bert
launch/local.sh experiments/simcse.py --data imdb_reviews --pretrained runs/BERT-ON-IMDB --length 128
"""

from typing import Annotated

import jax
import jax.numpy as jnp
import optax
import tyro

from ssljax import Experiment, main, minimize, TrainState
from ssljax.data.documents import EMBEDDED, labelled_documents
from ssljax.data.feed import Rows
from ssljax.data.token_rows import labelled_rows
from ssljax.evals.knn import knn
from ssljax.evals.probe import linear_probe
from ssljax.evals.alignment_uniformity import alignment_uniformity
from ssljax.evals.text_floor import text_floors
from ssljax.evals.texts import nearest_texts
from ssljax.losses.infonce import info_nce_loss
from ssljax.models.mlp import MLP
from ssljax.models.transformer import Transformer
from ssljax.optim import adamw, warmup_cosine
from ssljax.pretrained import pretrained_or_new


def simcse(
    data: str = EMBEDDED,
    pretrained: str = "",
    vocabulary: int = 2048,
    net: Annotated[Transformer, tyro.conf.arg(name="")] = Transformer(
        layers=4, heads=4, width=128, dropout=0.1
    ),
    temperature: float = 0.05,
    length: int = 64,
    batch_size: int = 64,
    steps: int = 100,
    lr: float = 3e-4,
    weight_decay: float = 0.0,
) -> Experiment:
    """SimCSE without labels: a text's two encodings, each with its own dropout, agree against all other texts.

    Args:
        data: python (half pages of its manual, embedded), or a text set with classes, which only the evaluation sees.
        pretrained: The folder of a run of bert or electra to begin with, as in the paper; the net, but for its dropout,
            and its tokens are then that one's, of several seeds the first's; --lr 0 --steps 1 only probes it. BERT on the
            embedded manual has read the test half pages too, without labels.
        vocabulary: WordPiece tokens, learned on the training text.
        length: Tokens of a text that are read.
        lr: Its peak, after a warm-up over a tenth of training.
    """
    docs = {split: labelled_documents(data, split) for split in ("train", "test")}
    old = pretrained_or_new(pretrained, net, docs["train"], vocabulary, length)
    train, test = (labelled_rows(old.tokenizer, d, length) for d in docs.values())
    model, head = old.model, MLP((old.model.net.width, old.model.net.width), activation="tanh")
    tx = optax.chain(optax.clip_by_global_norm(1.0), adamw(warmup_cosine(lr, steps), weight_decay))

    def init(key, batch):
        k1, k2 = jax.random.split(key)
        return TrainState.create(
            tx,
            {
                "model": model.init(k1, jnp.maximum(batch["tokens"][:2], 0)),
                "head": head.init(k2, jnp.zeros((1, model.net.width))),
            },
        )

    def embed(params, rows, train=False, key=None):
        return model.apply(
            params["model"], rows, train, rngs={"dropout": key} if train else {}, method="pooled"
        )

    def loss(params, state, batch, key):
        z = embed(
            params, jnp.concatenate([batch["tokens"]] * 2), train=True, key=key
        )  # Each its own dropout.
        value = info_nce_loss(*jnp.split(head.apply(params["head"], z), 2), tau=temperature)
        return value, (state.extra, {"loss": value})

    encode = lambda state, rows: embed(
        state.params, rows
    )  # The head is of training alone (section 3.1).
    again = lambda state, key, rows: embed(state.params, rows, True, key)
    titles = [
        f"{test.class_names[c]}: {' '.join(t.split())[:48]}"
        for t, c in zip(docs["test"].text, test.labels)
    ]
    return Experiment(
        init=init,
        step=minimize(tx, loss),
        data=Rows({"tokens": train.image}, batch_size),
        num_steps=steps,
        warm_start=old.warm_start,
        files=old.files,
        evals={
            "knn": knn(encode, train, test, floor=False),
            "probe": linear_probe(encode, train, test, floor=False),
            "spread": alignment_uniformity(again, test),
            "text": nearest_texts(encode, test, titles),
            **text_floors(docs["train"], docs["test"]),
        },
    )


if __name__ == "__main__":
    main(simcse)
