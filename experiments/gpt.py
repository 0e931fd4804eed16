"""GPT (Radford et al., 2018; form of Touvron et al., 2023, https://arxiv.org/abs/2302.13971).

A causal Transformer learns to predict the next token.

launch/local.sh experiments/gpt.py --run.eval-every 500      # Python's manual, with samples
launch/local.sh experiments/gpt.py --data input.txt --norm layer --positions learned \\
    --unit gelu                                              # nanoGPT's; GPT-2's is gelu-tanh
launch/local.sh experiments/gpt.py --data input.txt --tokens bpe --layers 6 --heads 6 \\
    --width 384 --dropout 0.2
# GPT-2 of 124M as nanoGPT trains it, in bfloat16, with a batch of 512 for its 480;
# planned in launch/plans.md
launch/local.sh experiments/gpt.py --data openwebtext --tokens bpe --vocabulary 50257 \\
    --layers 12 --heads 12 --width 768 --norm layer --positions learned --unit gelu-tanh \\
    --length 1024 --reach 1024 --batch-size 512 --steps 600000 --lr 6e-4 --warmup 0.0033 \\
    --dtype bfloat16
# GPT-2 of 1.5B, in bfloat16, with recomputed blocks, the batch in 8 parts, and parameters split
# over 8 devices; planned in launch/plans.md
launch/local.sh experiments/gpt.py --data openwebtext --tokens bpe --vocabulary 50257 \\
    --layers 48 --heads 25 --width 1600 --norm layer --positions learned --unit gelu-tanh \\
    --length 1024 --reach 1024 --batch-size 512 --steps 600000 --lr 2e-4 --warmup 0.0033 \\
    --dtype bfloat16 --remat blocks --run.accumulate 8 --run.fsdp 8
"""

from typing import Annotated, Literal

import jax.numpy as jnp
import tyro

from ssljax import Experiment, main, minimize, TrainState
from ssljax.data.documents import EMBEDDED
from ssljax.data.token_feeds import tokenized, Windows
from ssljax.evals.perplexity import perplexity
from ssljax.evals.texts import text_samples
from ssljax.losses.language import next_token_loss, token_nll
from ssljax.models.transformer import generate, LanguageModel, Transformer
from ssljax.optim import adamw, clipped, warmup_cosine
from ssljax.pretrained import language_model_files
from ssljax.ranges import (
    checked,
    Count,
    CountOrZero,
    FractionBelowOne,
    NotNegative,
    Positive,
    PositiveFraction,
    Range,
)


@checked
def gpt(
    data: str = EMBEDDED,
    tokens: Literal["characters", "bpe"] = "characters",
    vocabulary: Count = 4096,
    net: Annotated[Transformer, tyro.conf.arg(name="")] = Transformer(layers=4, heads=4, width=128),
    length: Annotated[int, Range(least=2)] = 64,
    batch_size: Count = 12,
    steps: Count = 2000,
    lr: Positive = 1e-3,
    warmup: FractionBelowOne = 0.05,
    weight_decay: NotNegative = 0.1,
    temperature: NotNegative = 0.8,
    top_k: CountOrZero = 0,
    top_p: PositiveFraction = 1.0,
) -> Experiment:
    """GPT: a causal Transformer predicts each token from the tokens before it.

    The default is nanoGPT's setting for a CPU.

    Args:
        data: python (its manual, embedded), a text file (the last tenth is held out), a .jsonl or
            .parquet file of texts, a folder of such files, or a TFDS set of texts.
        tokens: Characters, or byte pairs (bpe) learned on the training text.
        vocabulary: Number of tokens of bpe.
        net: The Transformer.
        length: Tokens of a training window, and the most that the model sees.
        batch_size: Windows in a step.
        steps: Training steps.
        lr: Peak learning rate of AdamW; a cosine ends at a tenth of it.
        warmup: Fraction of training over which the learning rate rises to its peak.
        weight_decay: Decoupled weight decay of AdamW, times the learning rate.
        temperature: Temperature of the samples; 0 takes the most likely token.
        top_k: Samples are drawn from this many of the most likely tokens; 0 for all.
        top_p: Samples are drawn from the fewest tokens that have this probability together.
    """
    read = tokenized(data, tokens, vocabulary)
    model = LanguageModel(net, read.size)
    shown = min(8, length // 2)  # Held-out tokens that samples continue.
    schedule = warmup_cosine(lr, steps, warmup, lr / 10)
    tx = clipped(1.0, adamw(schedule, weight_decay, b2=0.99))

    def init(key, batch):
        return TrainState.create(tx, {"model": model.init(key, batch["tokens"][:2, :-1])})

    def loss(params, state, batch, key):
        rngs = {"dropout": key}
        logits = model.apply(params["model"], batch["tokens"][:, :-1], train=True, rngs=rngs)
        value = next_token_loss(logits, batch["tokens"])
        return value, (state.extra, {"loss": value})

    def score(state, windows):
        return token_nll(model.apply(state.params["model"], windows[:, :-1]), windows[:, 1:])

    def sample(state, key, n, prompt, tokens=400):
        """Continuations (n, p + tokens) of a prompt (p,), of which the model sees the end."""
        given = jnp.broadcast_to(prompt, (n, len(prompt)))
        params, seen = state.params["model"], given[:, 1 - length :]
        new = generate(model, params, key, seen, tokens, length, temperature, top_k, top_p)
        return jnp.concatenate([given, new], axis=1)

    def draw(state, key):
        return sample(state, key, 3, read.test[:shown])

    def encode(state, rows):
        return model.apply(state.params["model"], rows[:, :length], method="pooled")

    def decode(row):
        return read.tokenizer.decode(row, skip_special_tokens=False)

    return Experiment(
        init=init,
        step=minimize(tx, loss),
        data=Windows(read.train, batch_size, length),
        num_steps=steps,
        encode=encode,
        files=language_model_files(model, read.tokenizer),
        sample=sample,
        evals={
            "test": perplexity(score, read, length, stride=length // 2),
            "test_windows": perplexity(score, read, length, stride=length),
            "text": text_samples(draw, decode, prompt=shown),
        },
    )


if __name__ == "__main__":
    main(gpt)
