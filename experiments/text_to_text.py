"""Text to text: an encoder and decoder on pairs, from T5's denoising or from scratch.

Raffel et al., 2020, https://arxiv.org/abs/1910.10683, section 2.4.

launch/local.sh experiments/text_to_text.py              # lists of words, to be reversed
launch/local.sh experiments/text_to_text.py --data pairs.tsv --length 128 --target-length 128
launch/local.sh experiments/text_to_text.py --data imdb_reviews --pretrained runs/T5-ON-IMDB \\
    --length 256 --target-length 4 --fraction 0.1

Lists of words: 99.8 % of those held out are reversed exactly (untrained net 0), one seed; at most
15 minutes of training on two cores, which others used too.
"""

from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from ssljax import Experiment, InputError, main, minimize, TrainState
from ssljax.data.feed import Rows
from ssljax.data.text_pairs import pair_splits, text_pairs
from ssljax.evals.answers import exact_answers, shown_answers
from ssljax.evals.text_floor import text_floors
from ssljax.losses.language import masked_lm_loss, token_nll
from ssljax.models.encoder_decoder import beam_search, decode
from ssljax.models.transformer import Transformer
from ssljax.optim import adamw, clipped, warmup_cosine
from ssljax.pretrained import pretrained_pairs
from ssljax.ranges import checked, Count, NotNegative, PositiveFraction, Range


@checked
def text_to_text(
    data: str = "reverse",
    pretrained: str = "",
    scratch: bool = False,
    fraction: PositiveFraction = 1.0,
    vocabulary: Count = 2048,
    net: Annotated[Transformer, tyro.conf.arg(name="")] = Transformer(
        layers=2, heads=4, width=128, positions="relative", unit="geglu", dropout=0.1
    ),
    length: Annotated[int, Range(least=2)] = 24,
    target_length: Annotated[int, Range(least=2)] = 24,
    batch_size: Count = 64,
    steps: Count = 800,
    lr: NotNegative = 2e-3,
    weight_decay: NotNegative = 0.01,
    beams: Count = 1,
    penalty: NotNegative = 0.6,
) -> Experiment:
    """A decoder learns to write the target of each input; all weights are trained.

    Args:
        data: reverse or sort (generated lists of words), a .tsv of inputs and targets with a tab
            between, or a .jsonl with the fields input and target (of both a tenth is held out), a
            folder of such files named train and test, or a text set with classes (a TFDS set, or a
            folder of class folders), whose targets are the classes' names.
        pretrained: Folder of a run of t5 or text_to_text to start from (of several seeds, the
            first), or of an export. Its network, except for dropout, and its tokens replace the
            flags here. Empty to start from scratch.
        scratch: Use the network and the tokens of the pretrained run with new weights: the floor
            of fine-tuning.
        fraction: Fraction of the training pairs that is used, the same for all seeds.
        vocabulary: Number of byte pairs, learned on all training pairs; 100 sentinels are added.
        net: The form of the encoder and of the decoder.
        length: Tokens of an input that are read, its end counted.
        target_length: Tokens of a target, its end counted, and the most that are written.
        batch_size: Pairs in a step.
        steps: Training steps.
        lr: Peak learning rate of AdamW, after a warm-up over a tenth of training.
        weight_decay: Decoupled weight decay of AdamW, times the learning rate.
        beams: Answers kept at each token of a beam search; 1 takes the most likely token.
        penalty: Exponent of the length by which a beam search divides log p; 0 for log p itself.
    """
    pairs = {split: text_pairs(data, split) for split in ("train", "test")}
    old = pretrained_pairs(pretrained, net, pairs["train"].texts, vocabulary, length)
    old = old._replace(params=None) if scratch else old
    train, test = pair_splits(old.tokenizer, pairs, length, target_length)
    if not (n := round(fraction * len(train[0]))):
        raise InputError(f"--fraction {fraction} leaves none of the {len(train[0])} pairs.")
    at = np.sort(np.random.default_rng(0).permutation(len(train[0]))[:n])
    model, some = old.model, pairs["train"].select(at)
    tx = clipped(1.0, adamw(warmup_cosine(lr, steps), weight_decay))

    def init(key, batch):
        first = (batch[k][:2] for k in ("tokens", "target"))
        return TrainState.create(tx, {"model": model.init(key, *first)})

    def loss(params, state, batch, key):
        inputs, targets, rngs = batch["tokens"], batch["target"], {"dropout": key}
        logits = model.apply(params["model"], inputs, targets, train=True, rngs=rngs)
        value = masked_lm_loss(logits, jnp.maximum(targets, 0), targets >= 0)
        return value, (state.extra, {"loss": value})

    def encode(state, rows):
        return model.apply(state.params["model"], rows, method="pooled")

    def score(state, inputs, targets):
        logits = model.apply(state.params["model"], inputs, targets)
        return token_nll(logits, jnp.maximum(targets, 0))

    def answer(state, inputs):
        params = state.params["model"]
        if beams > 1:
            return beam_search(model, params, inputs, target_length, beams, penalty)[0]
        return decode(model, params, jax.random.key(0), inputs, target_length)

    floors = {} if some.labels is None else text_floors(some.inputs, pairs["test"].inputs)
    return Experiment(
        init=init,
        step=minimize(tx, loss),
        num_steps=steps,
        encode=encode,
        warm_start=old.warm_start,
        data=Rows({"tokens": train[0][at], "target": train[1][at]}, batch_size),
        files=old.files,
        evals={
            "test": exact_answers(answer, score, test, {"train": some, "test": pairs["test"]}),
            "text": shown_answers(answer, test[0], pairs["test"], old.tokenizer.decode),
            **floors,  # These read whole texts.
        },
    )


if __name__ == "__main__":
    main(text_to_text)
