"""Fine-tuning on classes (Devlin et al., 2018, https://arxiv.org/abs/1810.04805, section 4), or from scratch.

launch/local.sh experiments/finetune_text.py                            # from scratch, on Python's manual, embedded
launch/local.sh experiments/finetune_text.py --pretrained runs/bert --fraction 0.1        # --scratch: the floor
launch/local.sh experiments/finetune_text.py --data imdb_reviews --pretrained runs/BERT-ON-IMDB --length 512
"""

from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from ssljax import Experiment, InputError, main, minimize, TrainState
from ssljax.data.documents import Documents, EMBEDDED, labelled_documents
from ssljax.data.feed import Rows
from ssljax.data.token_rows import labelled_rows
from ssljax.evals.accuracy import accuracy
from ssljax.evals.text_floor import text_floors
from ssljax.models.transformer import Transformer
from ssljax.optim import adamw, warmup_cosine
from ssljax.pretrained import pretrained_or_new


def finetune_text(
    data: str = EMBEDDED,
    pretrained: str = "",
    scratch: bool = False,
    fraction: float = 1.0,
    vocabulary: int = 2048,
    net: Annotated[Transformer, tyro.conf.arg(name="")] = Transformer(
        layers=4, heads=4, width=128, dropout=0.1
    ),
    length: int = 64,
    batch_size: int = 32,
    steps: int = 200,
    lr: float = 3e-4,
    weight_decay: float = 0.01,
) -> Experiment:
    """A linear layer on the mean of a Transformer's last tokens, all of it trained on labels.

    Args:
        data: python (half pages of its manual, by topic, embedded), a TFDS set of labelled texts, or a folder of
            class folders.
        pretrained: The folder of a run of bert, electra, gpt or simcse to begin with; the net, but for its dropout, and
            its tokens are then that one's, of several seeds the first's. Pretraining on the embedded manual has read the
            test half pages too, without labels. Empty to train the net given from scratch.
        scratch: Take that run's net and tokens, but new weights: what fine-tuning must beat.
        fraction: Of the training texts, drawn once for all: what labels are used.
        vocabulary: WordPiece tokens, learned on all training texts, where nothing is pretrained.
        length: Tokens of a text that are read.
        lr: Its peak, after a warm-up over a tenth of training.
    """
    docs = {split: labelled_documents(data, split) for split in ("train", "test")}
    old = pretrained_or_new(pretrained, net, docs["train"], vocabulary, length)
    old = old._replace(params=None) if scratch else old
    train, test = (labelled_rows(old.tokenizer, d, length) for d in docs.values())
    if not 0 < fraction <= 1 or not (n := round(fraction * len(train))):
        raise InputError(
            f"--fraction must be above 0 and at most 1, and leave one of {len(train)} texts, not {fraction}."
        )
    at = np.sort(np.random.default_rng(0).permutation(len(train))[:n])
    model, head = old.model, nn.Dense(train.num_classes)
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

    def logits(params, rows, train=False, key=None):
        h = model.apply(
            params["model"], rows, train, rngs={"dropout": key} if train else {}, method="pooled"
        )
        return head.apply(params["head"], h)

    def loss(params, state, batch, key):
        z = logits(params, batch["tokens"], train=True, key=key)
        value = optax.softmax_cross_entropy_with_integer_labels(z, batch["label"]).mean()
        return value, (
            state.extra,
            {"loss": value, "accuracy": 100 * jnp.mean(z.argmax(-1) == batch["label"])},
        )

    some = Documents([docs["train"].text[i] for i in at], train.labels[at], train.class_names)
    return Experiment(
        init=init,
        step=minimize(tx, loss),
        num_steps=steps,
        warm_start=old.warm_start,
        data=Rows({"tokens": train.image[at], "label": train.labels[at]}, batch_size),
        files=old.files,
        evals={
            "test": accuracy(lambda state, rows: logits(state.params, rows), test),
            **text_floors(some, docs["test"]),
        },
    )  # These read whole texts.


if __name__ == "__main__":
    main(finetune_text)
