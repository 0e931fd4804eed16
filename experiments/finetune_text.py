"""Fine-tuning on classes of text, or training on them from scratch.

Devlin et al., 2018, https://arxiv.org/abs/1810.04805, section 4.

launch/local.sh experiments/finetune_text.py             # from scratch, on Python's manual
launch/local.sh experiments/finetune_text.py --pretrained runs/bert \\
    --fraction 0.1                                       # add --scratch for the floor
launch/local.sh experiments/finetune_text.py --data imdb_reviews \\
    --pretrained runs/BERT-ON-IMDB --length 512
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
from ssljax.data.token_rows import labelled_splits, TokenKind
from ssljax.evals.accuracy import accuracy
from ssljax.evals.text_floor import text_floors
from ssljax.models.transformer import Transformer
from ssljax.optim import adamw, clipped, warmup_cosine
from ssljax.pretrained import pretrained_or_new
from ssljax.ranges import checked, Count, NotNegative, PositiveFraction, Range


@checked
def finetune_text(
    data: str = EMBEDDED,
    pretrained: str = "",
    scratch: bool = False,
    fraction: PositiveFraction = 1.0,
    tokens: TokenKind = "wordpiece",
    vocabulary: Count = 2048,
    net: Annotated[Transformer, tyro.conf.arg(name="")] = Transformer(
        layers=4, heads=4, width=128, dropout=0.1
    ),
    length: Annotated[int, Range(least=3)] = 64,
    batch_size: Count = 32,
    steps: Count = 200,
    lr: NotNegative = 3e-4,
    weight_decay: NotNegative = 0.01,
) -> Experiment:
    """A linear layer on the mean of a Transformer's last tokens; all weights are trained on labels.

    Args:
        data: python (half pages of its manual, by topic, embedded), a TFDS set of labelled texts,
            or a folder of class folders.
        pretrained: Folder of a run of bert, electra, gpt or simcse to start from (of several
            seeds, the first), of an export, or of a GPT-2, BERT, Llama or EuroBERT of
            transformers; or hf-hub:OWNER/NAME. Its network, except for dropout, and its tokens
            replace the flags here. A run on the embedded manual has seen the test half pages,
            without labels. Empty to start from scratch.
        scratch: Use the network and the tokens of the pretrained run with new weights: the floor
            of fine-tuning.
        fraction: Fraction of the training texts whose labels are used, the same for all seeds.
        tokens: WordPiece in lower case, or byte pairs (bpe), which any script can be written in.
        vocabulary: Number of tokens, learned on all training texts.
        net: The Transformer.
        length: Tokens of a text that are read.
        batch_size: Texts in a step.
        steps: Training steps.
        lr: Peak learning rate of AdamW, after a warm-up over a tenth of training.
        weight_decay: Decoupled weight decay of AdamW, times the learning rate.
    """
    docs = {split: labelled_documents(data, split) for split in ("train", "test")}
    old = pretrained_or_new(pretrained, net, docs["train"], tokens, vocabulary, length)
    old = old._replace(params=None) if scratch else old
    train, test = labelled_splits(old.tokenizer, docs, length)
    if not (n := round(fraction * len(train))):
        raise InputError(f"--fraction {fraction} leaves none of the {len(train)} training texts.")
    at = np.sort(np.random.default_rng(0).permutation(len(train))[:n])
    some = Documents([docs["train"].text[i] for i in at], train.labels[at], train.class_names)
    model, head = old.model, nn.Dense(train.num_classes)
    tx = clipped(1.0, adamw(warmup_cosine(lr, steps), weight_decay))

    def init(key, batch):
        k1, k2 = jax.random.split(key)
        m = model.init(k1, jnp.maximum(batch["tokens"][:2], 0))
        h = head.init(k2, jnp.zeros((1, model.net.width)))
        return TrainState.create(tx, {"model": m, "head": h})

    def logits(params, rows, train=False, key=None):
        rngs = {"dropout": key} if train else {}
        h = model.apply(params["model"], rows, train, rngs=rngs, method="pooled")
        return head.apply(params["head"], h)

    def loss(params, state, batch, key):
        z = logits(params, batch["tokens"], train=True, key=key)
        value = optax.softmax_cross_entropy_with_integer_labels(z, batch["label"]).mean()
        right = 100 * jnp.mean(z.argmax(-1) == batch["label"])
        return value, (state.extra, {"loss": value, "accuracy": right})

    def classify(state, rows):
        return logits(state.params, rows)

    def encode(state, rows):
        return model.apply(state.params["model"], rows, method="pooled")

    return Experiment(
        init=init,
        step=minimize(tx, loss),
        num_steps=steps,
        encode=encode,
        warm_start=old.warm_start,
        data=Rows({"tokens": train.image[at], "label": train.labels[at]}, batch_size),
        files=old.files,
        evals={
            "test": accuracy(classify, test),
            **text_floors(some, docs["test"]),  # These read whole texts.
        },
    )


if __name__ == "__main__":
    main(finetune_text)
