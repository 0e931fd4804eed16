"""CLIP (Radford et al., 2021, https://arxiv.org/abs/2103.00020): pictures and captions that belong
together agree; with --loss sigmoid, SigLIP (Zhai et al., 2023, https://arxiv.org/abs/2303.15343).

    launch/local.sh experiments/clip.py                   # doodles and the names of their things
    launch/local.sh experiments/clip.py --data cifar10 --template "a photo of a {}" --epochs 30
    launch/local.sh experiments/clip.py --data ~/pictures.tsv --image-size 96 --view-size 64
    # CLIP's setting of ViT-B/32, with AdamW's usual betas; planned in launch/plans.md
    launch/local.sh experiments/clip.py --data pairs.tsv --image-size 256 --view-size 224 \
        --epochs 32 --batch-size 32768 --lr 5e-4 --warmup 0.005 --weight-decay 0.2 --crop 0.9 \
        --flip 0 --interpolation bicubic --embedding 512 --tokens bpe --vocabulary 49408 \
        --length 77 --text.layers 12 --text.heads 8 --text.width 512 --text.norm layer \
        --text.positions learned --text.unit gelu encoder:vit --encoder.patch 32 \
        --encoder.width 768 --encoder.depth 12 --encoder.heads 12 --encoder.pool token \
        --encoder.positions learned --dtype bfloat16 --run.accumulate 4
    # SigLIP's setting of ViT-B/16, with AdamW's usual betas; planned in launch/plans.md
    launch/local.sh experiments/clip.py --data pairs.tsv --image-size 256 --view-size 224 \
        --loss sigmoid --epochs 10 --batch-size 32768 --lr 1e-3 --warmup 0.02 --weight-decay 1e-4 \
        --crop 0.9 --flip 0 --interpolation bicubic --embedding 768 --vocabulary 32000 \
        --length 64 --text.layers 12 --text.heads 12 --text.width 768 --text.norm layer \
        --text.positions learned --text.unit gelu encoder:vit --encoder.patch 16 \
        --encoder.width 768 --encoder.depth 12 --encoder.heads 12 --encoder.positions learned \
        --dtype bfloat16 --run.accumulate 8

Doodles, three seeds: zero-shot 41.7 ± 1.3 % among 100 names (chance 1.0), kNN 48.4 ± 1.7
(untrained net 17.7, pixels 25.3), linear probe 54.1 ± 1.4; the names are the classes, so that
SimCLR's kNN of 42.0, without labels, is no rival. The sigmoid by the same settings: zero-shot
36.2 ± 3.2 %.

Deviations: a caption is the mean of its tokens' features, which all see each other (CLIP's is that
of the end, of a causal net; SigLIP's of the last token), and tokens are learned on the training
captions. Captions that occur twice in a batch are negatives of each other, as in the papers.
"""

import math
from typing import Annotated, Literal

import jax
import jax.numpy as jnp

from ssljax import Experiment, Kept, main, minimize, TrainState
from ssljax.accumulation import by_parts
from ssljax.data import few, steps_of
from ssljax.data.captions import caption_rows, pair_feed, Pairs
from ssljax.data.token_rows import TokenKind
from ssljax.data.views import Views
from ssljax.evals.captions import nearest_pictures, retrieval, zero_shot
from ssljax.evals.representation import representation
from ssljax.losses.infonce import clip_loss, siglip_loss
from ssljax.models.convnet import ConvNet
from ssljax.models.encoder import Chain, Encoder
from ssljax.models.mlp import MLP
from ssljax.models.transformer import LanguageModel, Transformer
from ssljax.optim import Optimizer, optimizer_of, warmup_cosine
from ssljax.ranges import checked, Count, FractionBelowOne, NotNegative, Positive, Range


@checked
def clip(
    data: Pairs = Pairs(),
    view: Views = Views(crop=0.5, jitter=0.0, gray=0.0),
    encoder: Encoder = ConvNet(),
    text: Transformer = Transformer(layers=2, heads=4, width=128),
    embedding: Count = 128,
    loss: Literal["softmax", "sigmoid"] = "softmax",
    tokens: TokenKind = "wordpiece",
    vocabulary: Count = 1000,
    length: Annotated[int, Range(least=3)] = 16,
    epochs: Count = 12,
    batch_size: Count = 128,
    optimizer: Optimizer = "adamw",
    lr: Positive = 2e-3,
    warmup: FractionBelowOne = 0.1,
    weight_decay: NotNegative = 1e-4,
) -> Experiment:
    """CLIP: a picture and its caption agree, in contrast to all others of the batch.

    Args:
        data: Pictures and captions.
        view: Random view of a picture.
        encoder: Encoder of pictures, whose features are evaluated.
        text: Transformer of captions; its mean feature is taken.
        embedding: Dimensions of the space that both are projected to.
        loss: Softmax over the batch's captions and pictures (CLIP), or a sigmoid of each pair
            (SigLIP).
        tokens: WordPiece in lower case, or byte pairs (bpe), which any script can be written in.
        vocabulary: Number of tokens at most, learned on the training captions.
        length: Tokens of a caption that are read.
        epochs: Passes over the training pairs.
        batch_size: Pairs in a step.
        optimizer: Optimizer; lars-outer is LARS with the learning rate outside the momentum.
        lr: Peak learning rate.
        warmup: Fraction of training over which the learning rate rises to its peak.
        weight_decay: Weight decay.
    """
    sets = data.pairs(whole=True)
    tokenizer, rows = caption_rows(sets, tokens, vocabulary, length)
    num_steps = steps_of(epochs, sets.train, batch_size)
    tx = optimizer_of(optimizer, warmup_cosine(lr, num_steps, warmup), weight_decay)
    project = MLP(widths=(embedding,), last_bias=False)
    image, features = Chain(encoder=encoder, head=project), Chain(encoder=encoder)
    words = LanguageModel(text, tokenizer.get_vocab_size(), causal=False)

    def init(key, batch):
        k1, k2, *keys = jax.random.split(key, 5)
        params, stats = image.init(keys[:2], view(k1, few(batch)))
        y, made = words.init_with_output(k2, batch["tokens"][:2], method="pooled")
        params |= {"text": made["params"], "text_head": project.init(keys[2], y)["params"]}
        scale = {"softmax": 1 / 0.07, "sigmoid": 10.0}[loss]
        params |= {"scale": jnp.log(scale), "bias": jnp.float32(-10.0)}
        return TrainState.create(tx, params, **stats)

    def embed_text(params, rows, train=False, key=None):
        rngs = {"dropout": key} if train else {}
        y = words.apply({"params": params["text"]}, rows, train, rngs=rngs, method="pooled")
        return project.apply({"params": params["text_head"]}, y)

    def objective(params, state, batch, key):
        k1, k2 = jax.random.split(key)
        z, stats = image(params, state.extra, view(k1, batch), train=True)
        of = lambda p, x, key: (embed_text(p, x, True, key), {})
        t, _ = by_parts(of, params, batch["tokens"], k2)
        scale = jnp.exp(jnp.minimum(params["scale"], math.log(100)))
        if loss == "softmax":
            value = clip_loss(z, t, 1 / scale)
        else:
            value = siglip_loss(z, t, scale, params["bias"])
        return value, (stats, {"loss": value, "scale": scale})

    def encode(state, x):
        return features(state.params, state.extra, view.whole(x), train=False)[0]

    def embed(state, x):
        """Of pictures (n, h, w, c) uint8, or of captions in tokens (n, length), in one space."""
        if x.ndim == 2:
            return embed_text(state.params, x)
        return image(state.params, state.extra, view.whole(x), train=False)[0]

    shot = zero_shot(embed, sets.images.queries, rows["prompts"]) if sets.prompts else None
    return Experiment(
        init=init,
        step=minimize(tx, objective),
        data=pair_feed(sets.train, rows["train"], batch_size),
        num_steps=num_steps,
        encode=encode,
        embed=embed,
        kept=lambda state: Kept(encoder, state.params["encoder"], state.extra["encoder"]),
        files={"tokenizer.json": tokenizer.to_str()},
        evals={
            **({"zero_shot": shot} if shot else {}),
            "retrieval": retrieval(embed, sets.test, rows["test"]),
            "words": nearest_pictures(embed, sets.test, rows["test"]),
            **representation(encode, sets.images, view.either),
        },
    )


if __name__ == "__main__":
    main(clip)
