"""GPT (Radford et al., 2018; in the form of Touvron et al., 2023, https://arxiv.org/abs/2302.13971): what comes next.

launch/local.sh experiments/gpt.py --run.eval-every 500            # Python's manual, embedded; samples as it learns
launch/local.sh experiments/gpt.py --data input.txt --norm layer --positions learned --unit gelu       # nanoGPT's
launch/local.sh experiments/gpt.py --data input.txt --tokens bpe --layers 6 --heads 6 --width 384 --dropout 0.2
"""

from typing import Annotated, Literal

import jax.numpy as jnp
import optax
import tyro

from ssljax import Experiment, main, minimize, TrainState
from ssljax.data.documents import EMBEDDED
from ssljax.data.token_feeds import tokenized, Windows
from ssljax.evals.perplexity import perplexity
from ssljax.evals.texts import samples
from ssljax.losses.language import next_token_loss, token_nll
from ssljax.models.transformer import generate, LanguageModel, Transformer
from ssljax.optim import adamw, warmup_cosine


def gpt(
    data: str = EMBEDDED,
    tokens: Literal["characters", "bpe"] = "characters",
    vocabulary: int = 4096,
    net: Annotated[Transformer, tyro.conf.arg(name="")] = Transformer(layers=4, heads=4, width=128),
    length: int = 64,
    batch_size: int = 12,
    steps: int = 2000,
    lr: float = 1e-3,
    warmup: float = 0.05,
    weight_decay: float = 0.1,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Experiment:
    """GPT: a causal Transformer predicts each token from those before it; by default in nanoGPT's setting for a CPU.

    Args:
        data: python (its manual, embedded), a text file (the last tenth is held out), a folder, or a TFDS set of texts.
        tokens: What the text is cut into; bpe: byte pairs, learned on the training text.
        vocabulary: How many byte pairs.
        length: Tokens in sight, at most.
        lr: Its peak; it ends at a tenth.
        warmup: The fraction of training over which it rises.
        temperature: Of the samples; so are top_k and top_p, the share of likely tokens to draw from.
        top_k: The likeliest tokens to draw from; 0 for all.
    """
    read = tokenized(data, tokens, vocabulary)
    model = LanguageModel(net, read.size)
    schedule = warmup_cosine(lr, steps, warmup, lr / 10)
    tx = optax.chain(optax.clip_by_global_norm(1.0), adamw(schedule, weight_decay, b2=0.99))

    def init(key, batch):
        return TrainState.create(tx, {"model": model.init(key, batch["tokens"][:2, :-1])})

    def loss(params, state, batch, key):
        logits = model.apply(
            params["model"], batch["tokens"][:, :-1], train=True, rngs={"dropout": key}
        )
        value = next_token_loss(logits, batch["tokens"])
        return value, (state.extra, {"loss": value})

    def score(state, windows):
        return token_nll(model.apply(state.params["model"], windows[:, :-1]), windows[:, 1:])

    def draw(state, key):  # Goes on from the first held-out tokens.
        prompt = read.test[None, : min(8, length // 2)].repeat(3, axis=0)
        new = generate(
            model, state.params["model"], key, prompt, 400, length, temperature, top_k, top_p
        )
        return jnp.concatenate([prompt, new], axis=1)

    decode = lambda row: read.tokenizer.decode(row, skip_special_tokens=False)
    held_out = lambda stride: perplexity(score, read, length, stride)
    return Experiment(
        init=init,
        step=minimize(tx, loss),
        data=Windows(read.train, batch_size, length),
        num_steps=steps,
        files={"tokenizer.json": read.tokenizer.to_str()},
        evals={
            "test": held_out(max(1, length // 2)),
            "test_windows": held_out(length),
            "text": samples(draw, decode),
        },
    )


if __name__ == "__main__":
    main(gpt)
