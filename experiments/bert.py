"""BERT's masked language model (Devlin et al., 2018, https://arxiv.org/abs/1810.04805).

launch/local.sh experiments/bert.py                      # Python's manual, embedded
launch/local.sh experiments/bert.py --data imdb_reviews --vocabulary 8192 --width 256 \\
    --length 128 --steps 20000
launch/local.sh experiments/bert.py --data imdb_reviews --whole-words   # the authors' later models
launch/local.sh experiments/bert.py --data imdb_reviews --norm layer --positions learned \\
    --unit gelu --blocks post-norm --segments 2          # the network as published
launch/local.sh experiments/bert.py --data zh.txt --tokens bpe     # text of thousands of characters
# BERT-base in the paper's second phase, in bfloat16; planned in launch/plans.md
launch/local.sh experiments/bert.py --data wikipedia --vocabulary 30522 --layers 12 \\
    --heads 12 --width 768 --norm layer --positions learned --unit gelu --blocks post-norm \\
    --segments 2 --length 512 --batch-size 256 --steps 1000000 --lr 1e-4 --dropout 0.1 \\
    --dtype bfloat16
# BERT-large in the paper's second phase, in bfloat16; planned in launch/plans.md
launch/local.sh experiments/bert.py --data wikipedia --vocabulary 30522 --layers 24 \\
    --heads 16 --width 1024 --norm layer --positions learned --unit gelu --blocks post-norm \\
    --segments 2 --length 512 --batch-size 256 --steps 1000000 --lr 1e-4 --dropout 0.1 \\
    --dtype bfloat16
"""

from typing import Annotated

import jax
import tyro

from ssljax import Experiment, main, minimize, TrainState
from ssljax.data.documents import EMBEDDED
from ssljax.data.token_rows import SPECIAL, token_rows, TokenKind, word_starts
from ssljax.evals.masked_language import masked_accuracy
from ssljax.losses.language import mask_tokens, masked_lm_loss
from ssljax.models.transformer import LanguageModel, Transformer
from ssljax.optim import adamw, clipped, warmup_cosine
from ssljax.pretrained import language_model_files
from ssljax.ranges import checked, Count, NotNegative, Positive, Range


@checked
def bert(
    data: str = EMBEDDED,
    tokens: TokenKind = "wordpiece",
    vocabulary: Count = 2048,
    net: Annotated[Transformer, tyro.conf.arg(name="")] = Transformer(layers=4, heads=4, width=128),
    share: Annotated[float, Range(above=0, below=1)] = 0.15,
    whole_words: bool = False,
    length: Annotated[int, Range(least=2)] = 64,
    batch_size: Count = 32,
    steps: Count = 1000,
    lr: Positive = 1e-3,
    weight_decay: NotNegative = 0.01,
) -> Experiment:
    """BERT's masked language model, without the prediction of the next sentence (as RoBERTa).

    Args:
        data: python (its manual, embedded), a text file (the last tenth is held out), a .jsonl or
            .parquet file of texts, a folder of such files, or a TFDS set of texts.
        tokens: WordPiece in lower case, or byte pairs (bpe), which any script can be written in.
        vocabulary: Number of tokens, learned on the training text.
        net: The Transformer.
        share: Fraction of a row's tokens to predict: 80 % of them are masked, 10 % replaced by a
            random token, and 10 % left as they are.
        whole_words: Mask all tokens of a word or none.
        length: Tokens in a row, of documents end to end.
        batch_size: Rows in a step.
        steps: Training steps.
        lr: Peak learning rate of AdamW, after a warm-up over a tenth of training.
        weight_decay: Decoupled weight decay of AdamW, times the learning rate.
    """
    read = token_rows(data, tokens, vocabulary, length)
    starts = word_starts(read.tokenizer, read.train, share) if whole_words else None
    model = LanguageModel(net, read.size, causal=False)
    schedule = warmup_cosine(lr, steps)
    tx = clipped(1.0, adamw(schedule, weight_decay, b2=0.98))

    def init(key, batch):
        return TrainState.create(tx, {"model": model.init(key, batch["tokens"][:2])})

    def predict(params, key, rows, train=False):
        k1, k2 = jax.random.split(key)
        masked = mask_tokens(k1, rows, read.size, read.mask, SPECIAL, share, starts)
        arguments = masked.tokens, masked.at, train
        rngs = {"dropout": k2}
        return model.apply(params["model"], *arguments, rngs=rngs, method="logits_at"), masked

    def loss(params, state, batch, key):
        logits, masked = predict(params, key, batch["tokens"], train=True)
        value = masked_lm_loss(logits, masked.targets, masked.weight)
        return value, (state.extra, {"loss": value})

    def predict_held_out(state, key, rows):
        return predict(state.params, key, rows)

    def encode(state, rows):
        return model.apply(state.params["model"], rows, method="pooled")

    return Experiment(
        init=init,
        step=minimize(tx, loss),
        data=read.feed(batch_size),
        num_steps=steps,
        encode=encode,
        evals={"test": masked_accuracy(predict_held_out, read)},
        files=language_model_files(model, read.tokenizer),
    )


if __name__ == "__main__":
    main(bert)
