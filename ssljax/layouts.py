"""Weights under the names and in the shapes of torchvision, timm and transformers.

A layout is a list of `Match`: which arrays of another library hold what an array of ours holds. It
serves both ways, `to_theirs` and `to_ours`. Tests compare the outputs of both sides.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import math
import re
from typing import NamedTuple

import numpy as np

from ssljax.errors import InputError
from ssljax.models.resnet import ResNet, STAGES
from ssljax.models.transformer import Transformer
from ssljax.models.vit import ViT

Arrays = dict[str, np.ndarray]


class Match(NamedTuple):
    """An array of ours, by its path in a net's variables, and those of another library."""

    ours: str
    theirs: tuple[str, ...]
    give: Callable[[np.ndarray], Sequence[np.ndarray]]
    """Ours to theirs."""
    take: Callable[..., np.ndarray]
    """Theirs to ours."""


def to_theirs(layout: Iterable[Match], ours: Mapping[str, np.ndarray]) -> Arrays:
    """The arrays of another library, by its names."""
    found: Arrays = {}
    for match in layout:
        arrays = match.give(np.asarray(ours[match.ours], np.float32))
        found |= {k: np.asarray(x, order="C") for k, x in zip(match.theirs, arrays, strict=True)}
    return found


def to_ours(
    layout: Sequence[Match],
    theirs: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
    where: str,
    prefix: str = "",
) -> tuple[Arrays, list[str]]:
    """Our arrays, of `shapes`, from those of another library under `prefix`, and what is left out.

    InputError that names an array that is missing, has another shape, or has no place in our net,
    except for those of heads.
    """
    found, used = {}, set()
    for match in layout:
        names = [prefix + name for name in match.theirs]
        missing = [name for name in names if name not in theirs]
        if missing:
            raise InputError(
                f"{where} has no array {missing[0]}, which our {match.ours} needs: it is of a net "
                "that this one can't stand for."
            )
        wanted = match.give(np.broadcast_to(np.float32(0), shapes[match.ours]))
        for name, like in zip(names, wanted):
            if theirs[name].shape != like.shape:
                raise InputError(
                    f"The array {name} in {where} is of shape {theirs[name].shape}, and our "
                    f"{match.ours} needs {like.shape}: it is of a net that this one can't stand "
                    "for."
                )
        arrays = (np.asarray(theirs[name], np.float32) for name in names)
        found[match.ours] = np.asarray(match.take(*arrays), order="C")
        used.update(names)
    inside = [k for k in theirs if k.startswith(prefix) and k not in used]
    if others := [k for k in inside if not LEFT_OUT.match(k.removeprefix(prefix))]:
        more = f" and {len(others) - 1} more" * (len(others) > 1)
        raise InputError(
            f"{where} has arrays that our net has no place for, {others[0]}{more}: without them it "
            "would compute something else."
        )
    return found, [k for k in theirs if k not in used]


# Heads, and what PyTorch counts or could compute again.
LEFT_OUT = re.compile(
    r"(fc|head|heads|head_dist|classifier|pooler|lm_head|cls|score|head_drop)\.|"
    r".*(num_batches_tracked|inv_freq|position_ids|token_type_ids|attn\.(masked_)?bias)$"
)


def _same(ours: str, theirs: str) -> Match:
    return Match(ours, (theirs,), lambda x: [x], lambda x: x)


def _turned(ours: str, theirs: str) -> Match:
    """A matrix whose rows are outputs there and inputs here."""
    return Match(ours, (theirs,), lambda x: [x.T], lambda x: x.T)


def _conv(ours: str, theirs: str) -> Match:
    """A kernel (h, w, in, out) here and (out, in, h, w) there."""
    return Match(
        ours, (theirs,), lambda x: [x.transpose(3, 2, 0, 1)], lambda x: x.transpose(2, 3, 1, 0)
    )


def _dense(ours: str, theirs: str) -> list[Match]:
    return [
        _turned(f"{ours}/kernel", f"{theirs}.weight"),
        _same(f"{ours}/bias", f"{theirs}.bias"),
    ]


def _conv1d(ours: str, theirs: str) -> list[Match]:
    """GPT-2's linear layers, whose matrices lie as ours do."""
    return [_same(f"{ours}/kernel", f"{theirs}.weight"), _same(f"{ours}/bias", f"{theirs}.bias")]


def _norm(ours: str, theirs: str, bias: bool = True) -> list[Match]:
    found = [_same(f"{ours}/scale", f"{theirs}.weight")]
    return found + [_same(f"{ours}/bias", f"{theirs}.bias")] * bias


def _batch_norm(ours: str, theirs: str) -> list[Match]:
    kept = {"mean": "running_mean", "var": "running_var"}
    return _norm(f"params/{ours}", theirs) + [
        _same(f"batch_stats/{ours}/{mine}", f"{theirs}.{other}") for mine, other in kept.items()
    ]


def _qkv(ours: str, theirs: Sequence[str], bias: bool = True) -> list[Match]:
    """One layer here and three there."""
    found = []
    for mine, other in {"kernel": "weight", "bias": "bias"}.items():
        if mine == "kernel" or bias:
            found.append(
                Match(
                    f"{ours}/{mine}",
                    tuple(f"{name}.{other}" for name in theirs),
                    lambda x: [part.T for part in np.split(x, 3, axis=-1)],
                    lambda *parts: np.concatenate([part.T for part in parts], axis=-1),
                )
            )
    return found


def resnet(net: ResNet, transformers: bool = False) -> list[Match]:
    """A ResNet under torchvision's names, which are timm's too, or under those of transformers."""
    stem = ("embedder.embedder.convolution", "embedder.embedder.normalization")
    stem = stem if transformers else ("conv1", "bn1")
    found = [_conv("params/stem/kernel", f"{stem[0]}.weight"), *_batch_norm("stem_norm", stem[1])]
    layers = 3 if net.depth == 50 else 2
    for stage, blocks in enumerate(STAGES[net.depth], 1):
        for block in range(1, blocks + 1):
            name = f"stage{stage}_block{block}"
            there = f"layer{stage}.{block - 1}"
            if transformers:
                there = f"encoder.stages.{stage - 1}.layers.{block - 1}"
            for j in range(1, layers + 1):
                names = f"{there}.conv{j}", f"{there}.bn{j}"
                if transformers:
                    names = [
                        f"{there}.layer.{j - 1}.{part}" for part in ("convolution", "normalization")
                    ]
                found.append(_conv(f"params/{name}_conv{j}/kernel", f"{names[0]}.weight"))
                found += _batch_norm(f"{name}_norm{j}", names[1])
            if block == 1 and (stage > 1 or net.depth == 50):
                names = f"{there}.downsample.0", f"{there}.downsample.1"
                if transformers:
                    names = f"{there}.shortcut.convolution", f"{there}.shortcut.normalization"
                found.append(_conv(f"params/{name}_shortcut/kernel", f"{names[0]}.weight"))
                found += _batch_norm(f"{name}_shortcut_norm", names[1])
    return found


class ViTNames(NamedTuple):
    """How a library calls the parts of a ViT; blocks and their parts by their index."""

    patches: str
    positions: str
    token: str
    norm: str
    block: str
    norm1: str
    norm2: str
    qkv: tuple[str, ...]
    """Weights and biases of one layer, or the names of three layers."""
    out: str
    up: str
    down: str


VIT = {
    "timm": ViTNames(
        *("patch_embed.proj", "pos_embed", "cls_token", "norm", "blocks.{}."),
        *("norm1", "norm2", ("attn.qkv.weight", "attn.qkv.bias")),
        *("attn.proj", "mlp.fc1", "mlp.fc2"),
    ),
    "torchvision": ViTNames(
        *("conv_proj", "encoder.pos_embedding", "class_token", "encoder.ln"),
        *("encoder.layers.encoder_layer_{}.", "ln_1", "ln_2"),
        ("self_attention.in_proj_weight", "self_attention.in_proj_bias"),
        *("self_attention.out_proj", "mlp.0", "mlp.3"),
    ),
    "transformers": ViTNames(
        *("embeddings.patch_embeddings.projection", "embeddings.position_embeddings"),
        *("embeddings.cls_token", "layernorm", "encoder.layer.{}."),
        *("layernorm_before", "layernorm_after"),
        tuple(f"attention.attention.{x}" for x in ("query", "key", "value")),
        *("attention.output.dense", "intermediate.dense", "output.dense"),
    ),
}


def vit(net: ViT, names: ViTNames, channels: int, grid: tuple[int, int], rows: int) -> list[Match]:
    """A ViT under the names of a library.

    `grid` are the rows and columns of patches, and `rows` those of the table of positions there,
    one more than the patches where the class token has a position too.
    """
    p, d, n = net.patch, net.width, grid[0] * grid[1]

    def embed(x: np.ndarray) -> list[np.ndarray]:
        return [x.reshape(p, p, channels, d).transpose(3, 2, 0, 1)]

    found = [
        Match(
            "params/embed/kernel",
            (f"{names.patches}.weight",),
            embed,
            lambda x: x.transpose(2, 3, 1, 0).reshape(-1, d),
        ),
        _same("params/embed/bias", f"{names.patches}.bias"),
        *_norm("params/blocks/norm", names.norm),
    ]
    if net.pool == "token":
        found.append(
            Match(
                "params/token",
                (names.token,),
                lambda x: [x.reshape(1, 1, d)],
                lambda x: x.reshape(d),
            )
        )
    # Without a class token here, or without its position, that of the class token there is 0.
    found.append(
        Match(
            "params/places/table",
            (names.positions,),
            lambda x: [np.pad(x.reshape(1, n, d), ((0, 0), (rows - n, 0), (0, 0)))],
            lambda x: x[0, rows - n :].reshape(*grid, d),
        )
    )
    for i in range(1, net.depth + 1):
        there, here = names.block.format(i - 1), "params/blocks/"
        found += _norm(f"{here}norm{i}a", there + names.norm1)
        found += _norm(f"{here}norm{i}b", there + names.norm2)
        if len(names.qkv) == 3:
            found += _qkv(f"{here}qkv{i}", [there + name for name in names.qkv])
        else:
            weight, bias = (there + name for name in names.qkv)
            found += [_turned(f"{here}qkv{i}/kernel", weight), _same(f"{here}qkv{i}/bias", bias)]
        for mine, other in {"out": names.out, "up": names.up, "down": names.down}.items():
            found += _dense(f"{here}{mine}{i}", there + other)
    return found


def gpt2(net: Transformer) -> list[Match]:
    """A causal model under the names of transformers' GPT-2."""
    found = [
        _same("params/embed/embedding", "wte.weight"),
        _same("params/net/positions", "wpe.weight"),
        *_norm("params/net/norm", "ln_f"),
    ]
    parts = {"qkv": "attn.c_attn", "out": "attn.c_proj", "up": "mlp.c_fc", "down": "mlp.c_proj"}
    for i in range(1, net.layers + 1):
        there, here = f"h.{i - 1}.", "params/net/"
        found += _norm(f"{here}norm{i}a", f"{there}ln_1") + _norm(f"{here}norm{i}b", f"{there}ln_2")
        for mine, other in parts.items():
            found += _conv1d(f"{here}{mine}{i}", there + other)
    return found


def llama(net: Transformer) -> list[Match]:
    """A model under the names of transformers' Llama and EuroBERT."""
    found = [
        _same("params/embed/embedding", "embed_tokens.weight"),
        *_norm("params/net/norm", "norm", bias=False),
    ]
    parts = {"out": "self_attn.o_proj", "gate": "mlp.gate_proj"}
    parts |= {"up": "mlp.up_proj", "down": "mlp.down_proj"}
    for i in range(1, net.layers + 1):
        there, here = f"layers.{i - 1}.", "params/net/"
        found += _norm(f"{here}norm{i}a", f"{there}input_layernorm", bias=False)
        found += _norm(f"{here}norm{i}b", f"{there}post_attention_layernorm", bias=False)
        names = [f"{there}self_attn.{x}_proj" for x in "qkv"]
        found += _qkv(f"{here}qkv{i}", names, bias=False)
        found += [
            _turned(f"{here}{mine}{i}/kernel", f"{there}{other}.weight")
            for mine, other in parts.items()
        ]
    return found


def bert(net: Transformer) -> list[Match]:
    """A masked model under the names of transformers' BERT, with its head outside `BERT`."""
    there, here = "embeddings.", "params/net/"
    found = [
        _same("params/embed/embedding", f"{there}word_embeddings.weight"),
        _same(f"{here}positions", f"{there}position_embeddings.weight"),
        _same(f"{here}segments", f"{there}token_type_embeddings.weight"),
        *_norm(f"{here}embed_norm", f"{there}LayerNorm"),
    ]
    for i in range(1, net.layers + 1):
        there = f"encoder.layer.{i - 1}."
        names = [f"{there}attention.self.{x}" for x in ("query", "key", "value")]
        found += _qkv(f"{here}qkv{i}", names)
        found += _dense(f"{here}out{i}", f"{there}attention.output.dense")
        found += _norm(f"{here}norm{i}a", f"{there}attention.output.LayerNorm")
        found += _dense(f"{here}up{i}", f"{there}intermediate.dense")
        found += _dense(f"{here}down{i}", f"{there}output.dense")
        found += _norm(f"{here}norm{i}b", f"{there}output.LayerNorm")
    return found


def t5(net: Transformer) -> list[Match]:
    """An encoder and decoder under the names of transformers' T5 1.1, with its head.

    T5 has no factor 1 / √d in its attention: it is in the weights of the queries there.
    """
    factor = math.sqrt(net.head_width or net.width // net.heads)
    found = [
        _same("params/embed/embedding", "shared.weight"),
        _turned("params/head/kernel", "lm_head.weight"),
    ]
    for side in ("encoder", "decoder"):
        here, first = f"params/{side}/", f"{side}.block.0.layer.0.SelfAttention."
        found.append(_same(f"{here}distances", f"{first}relative_attention_bias.weight"))
        found += _norm(f"{here}norm", f"{side}.final_layer_norm", bias=False)
        for i in range(1, net.layers + 1):
            there = f"{side}.block.{i - 1}.layer."
            own, across = f"{there}0.SelfAttention.", f"{there}1.EncDecAttention."
            found += _norm(f"{here}norm{i}a", f"{there}0.layer_norm", bias=False)
            found.append(_scaled(f"{here}qkv{i}", [own + x for x in "qkv"], factor))
            found.append(_turned(f"{here}out{i}/kernel", f"{own}o.weight"))
            last = 1
            if side == "decoder":
                found += _norm(f"{here}norm{i}c", f"{there}1.layer_norm", bias=False)
                found.append(_scaled(f"{here}q{i}", [f"{across}q"], factor))
                found.append(_scaled(f"{here}kv{i}", [f"{across}{x}" for x in "kv"], 1.0))
                found.append(_turned(f"{here}cross{i}/kernel", f"{across}o.weight"))
                last = 2
            unit = f"{there}{last}.DenseReluDense."
            found += _norm(f"{here}norm{i}b", f"{there}{last}.layer_norm", bias=False)
            parts = {"gate": "wi_0", "up": "wi_1", "down": "wo"}
            found += [
                _turned(f"{here}{a}{i}/kernel", f"{unit}{b}.weight") for a, b in parts.items()
            ]
    return found


def _scaled(ours: str, theirs: Sequence[str], factor: float) -> Match:
    """The kernel of one layer here and of several there, the first of them `factor` times less."""

    def give(x: np.ndarray) -> list[np.ndarray]:
        first, *rest = (part.T for part in np.split(x, len(theirs), axis=-1))
        return [first / np.float32(factor), *rest]

    def take(first: np.ndarray, *rest: np.ndarray) -> np.ndarray:
        parts = [first * np.float32(factor), *rest]
        return np.concatenate([part.T for part in parts], axis=-1)

    return Match(f"{ours}/kernel", tuple(f"{name}.weight" for name in theirs), give, take)


BERT_HEAD = [
    *_dense("params/transform", "cls.predictions.transform.dense"),
    *_norm("params/transform_norm", "cls.predictions.transform.LayerNorm"),
    _same("params/bias", "cls.predictions.bias"),
]
