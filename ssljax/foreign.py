"""Nets of torchvision, timm and transformers as ours: which net some arrays are of."""

from collections.abc import Callable, Mapping
import functools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ssljax.checkpoint import flatten
from ssljax.errors import InputError
from ssljax.layouts import (
    Arrays,
    bert,
    BERT_HEAD,
    gpt2,
    llama,
    Match,
    resnet,
    t5,
    to_ours,
    VIT,
    vit,
)
from ssljax.models.attention import BUCKETS, FARTHEST
from ssljax.models.encoder import build, Normalised
from ssljax.models.encoder_decoder import EncoderDecoder
from ssljax.models.resnet import ResNet, STAGES
from ssljax.models.transformer import LanguageModel, Transformer
from ssljax.models.vit import ViT

Config = Mapping[str, Any]
AGAIN = "get it again"
# Heads of ViTs of these widths, in their papers and so in timm and transformers.
HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}


class Foreign(NamedTuple):
    """Weights of another library as ours."""

    net: Any
    """An encoder, a `LanguageModel` or an `EncoderDecoder`."""
    variables: Arrays
    """By path, as in params/stem/kernel."""
    left_out: list[str]
    """Arrays that are not among them."""
    layout: str
    """What the weights were found to be."""


def read_encoder(arrays: Arrays, config: Config, where: str) -> Foreign:
    """An encoder of images in [0, 1], from a ResNet or ViT of torchvision, timm or transformers.

    `config` is the content of config.json, where there is one; what it says of images' means and
    standard deviations becomes part of the net. InputError where the arrays are of something else,
    or of a net that ours can't stand for.
    """
    anchors: dict[str, Callable] = {"layer1.0.conv1.weight": _torch_resnet}
    anchors["encoder.stages.0.layers.0.layer.0.convolution.weight"] = _transformers_resnet
    for library, names in VIT.items():
        anchor = f"{names.block.format(0)}{names.norm1}.weight"
        anchors[anchor] = functools.partial(_vit, library=library)
    for anchor, read in anchors.items():
        if (prefix := _prefix(arrays, anchor)) is not None:
            found = read(arrays, config, where, prefix)
            mean_std = _statistics(config, where)
            if not mean_std:
                return found
            inside = {"{}/net/{}".format(*k.split("/", 1)): x for k, x in found.variables.items()}
            return found._replace(net=Normalised(found.net, *mean_std), variables=inside)
    raise InputError(
        f"{where} holds neither a ResNet nor a ViT of torchvision, timm or transformers (its first "
        f"arrays are {', '.join(sorted(arrays)[:3])}): give one of these, or a run."
    )


def _prefix(arrays: Arrays, anchor: str) -> str | None:
    """What stands before the names of a net, such as backbone.; None where it isn't there."""
    found = [k.removesuffix(anchor) for k in arrays if k.endswith(anchor)]
    found = [prefix for prefix in found if not prefix or prefix.endswith(".")]
    return min(found, key=len, default=None)


def _torch_resnet(arrays: Arrays, config: Config, where: str, prefix: str) -> Foreign:
    names = "conv1.weight", "layer{}.{}.conv{}.weight", 1
    return _resnet(arrays, where, prefix, names, "torchvision and timm")


def _transformers_resnet(arrays: Arrays, config: Config, where: str, prefix: str) -> Foreign:
    convolution = "encoder.stages.{}.layers.{}.layer.{}.convolution.weight"
    names = "embedder.embedder.convolution.weight", convolution, 0
    return _resnet(arrays, where, prefix, names, "transformers")


def _resnet(
    arrays: Arrays, where: str, prefix: str, names: tuple[str, str, int], library: str
) -> Foreign:
    """`names` are those of the stem and of a block's layer, and the number of the first of them."""
    stem, layer, first = prefix + names[0], prefix + names[1], names[2]
    blocks = lambda stage: sum(
        layer.format(stage + first, i, first) in arrays for i in range(len(arrays))
    )
    counts = tuple(blocks(stage) for stage in range(4))
    bottleneck = layer.format(first, 0, first + 2) in arrays
    kinds: dict[Any, Any] = {(n, d == 50): d for d, n in STAGES.items()}
    depth = kinds.get((counts, bottleneck))
    if depth is None:
        raise InputError(
            f"{where} holds a ResNet of {', '.join(map(str, counts))} blocks, which is none of "
            f"ResNet-{', '.join(map(str, STAGES))}: give one of these."
        )
    if stem not in arrays or arrays[stem].shape[-1] not in (3, 7):
        raise InputError(
            f"{where} holds a ResNet whose first layer is no convolution of 7x7 or 3x3, {stem}: "
            "give one with such a layer."
        )
    width, channels, _, size = arrays[stem].shape
    net = ResNet(depth, "imagenet" if size == 7 else "cifar", width)
    layout = resnet(net, transformers=library == "transformers")
    ours, left = to_ours(layout, arrays, _shapes(net, 32, channels), where, prefix)
    return Foreign(net, ours, left, f"ResNet-{depth} as in {library}, {net.stem} stem")


def _vit(arrays: Arrays, config: Config, where: str, prefix: str, library: str) -> Foreign:
    names = VIT[library]
    patches, positions = f"{prefix}{names.patches}.weight", f"{prefix}{names.positions}"
    for name in (patches, positions):
        if name not in arrays or arrays[name].ndim != {patches: 4, positions: 3}[name]:
            raise InputError(f"{where} has no array {name} such as a ViT of {library} has.")
    width, channels, patch, other = arrays[patches].shape
    rows, token = arrays[positions].shape[1], prefix + names.token in arrays
    # The patches of a square image are a square number; where one is too many, it is the token's.
    of_token = int(token and math.isqrt(rows) ** 2 != rows)
    side = math.isqrt(rows - of_token)
    if side * side != rows - of_token or patch != other:
        raise InputError(
            f"{where} has positions of {arrays[positions].shape} and patches of "
            f"{arrays[patches].shape}, in {positions} and {patches}: ours are of square images."
        )
    given = config.get("model_args") or {}
    heads = given.get("num_heads") or config.get("num_attention_heads") or HEADS.get(width)
    if type(heads) is not int or heads < 1 or width % heads:
        raise InputError(
            f"{where} holds a ViT of width {width} and doesn't say how many heads it has: put its "
            "config.json beside it."
        )
    if token and given.get("global_pool", config.get("global_pool")) == "avg":
        raise InputError(
            f"{where} holds a ViT with a class token whose features are the mean of its patches, "
            "and ours have one or the other: give a ViT that has its token as features."
        )
    block = f"{prefix}{names.block}{names.norm1}.weight"
    depth = sum(block.format(i) in arrays for i in range(len(arrays)))
    net = ViT(patch, width, depth, heads, "token" if token else "mean", "learned")
    layout = vit(net, names, channels, (side, side), rows)
    ours, left = to_ours(layout, arrays, _shapes(net, side * patch, channels), where, prefix)
    if of_token:  # Ours adds no position to the token: it is added to its value.
        first = np.asarray(arrays[positions], np.float32)[0, 0]
        ours["params/token"] = ours["params/token"] + first
    return Foreign(net, ours, left, f"ViT of {heads} heads as in {library}")


def _statistics(config: Config, where: str) -> tuple[tuple[float, ...], ...] | None:
    """Mean and standard deviation that images are normalised by; None for none."""
    said = config.get("pretrained_cfg") or config
    found = [
        next((said[k] for k in names if k in said), None)
        for names in (("mean", "image_mean"), ("std", "image_std"))
    ]
    if found == [None, None] or found == [[0.0] * 3, [1.0] * 3] or found == [[0.0], [1.0]]:
        return None
    numbers = [v for values in found for v in (values if isinstance(values, list) else [None])]
    if not all(type(v) in (int, float) for v in numbers):
        raise InputError(f"The config.json of {where} has no numbers as mean and std: {AGAIN}.")
    return tuple(tuple(map(float, values)) for values in found if values)


def read_language_model(arrays: Arrays, config: Config, where: str, size: int) -> Foreign:
    """A `LanguageModel` from a GPT-2, BERT, Llama or EuroBERT of transformers.

    `size` is the number of tokens of its tokenizer; further rows of its table are left out.
    InputError where it is none of these, or one that ours can't stand for.
    """
    kind = config.get("model_type")
    if kind not in LANGUAGE:
        raise InputError(
            f"{where} needs a config.json whose model_type is {', '.join(LANGUAGE)}, not {kind}: "
            "give a folder with one of these, or a run."
        )
    anchor, table, read = LANGUAGE[kind]
    prefix = _prefix(arrays, anchor)
    if prefix is None or prefix + table not in arrays:
        raise InputError(f"{where} has no array {table}, which a model of {kind} needs.")
    if (rows := len(arrays[prefix + table])) < size:
        raise InputError(
            f"{where} has {rows} tokens in {prefix + table} and {size} in its tokenizer.json: get "
            "both again, from one place."
        )
    try:
        net, layout, causal = read(config)
    except InputError as e:
        raise InputError(f"{where} can't be read as one of our nets: {e}") from None
    except (KeyError, TypeError, ValueError) as e:
        raise InputError(f"The config.json of {where} can't be used ({e!r}): {AGAIN}.") from e
    model = LanguageModel(net, rows, causal)
    made = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
    shapes = {k: x.shape for k, x in flatten(made).items()}
    ours, left = to_ours(layout, arrays, shapes, where, prefix)
    if model.transforms:
        head, names = {}, [m.theirs[0] for m in BERT_HEAD]
        if all(name in arrays for name in names):
            head, _ = to_ours(BERT_HEAD, {k: arrays[k] for k in names}, shapes, where)
            left = [name for name in left if name not in names]
        ours |= _new_head(shapes) | head
    for name in ("params/embed/embedding", "params/bias"):
        if name in ours:
            ours[name] = ours[name][:size]
    return Foreign(model.clone(vocabulary=size), ours, left, f"{kind} as in transformers")


def _new_head(shapes: Mapping[str, tuple[int, ...]]) -> Arrays:
    """BERT's head where a file has none: fine-tuning doesn't use it."""
    found = {m.ours: np.zeros(shapes[m.ours], np.float32) for m in BERT_HEAD}
    found["params/transform/kernel"] += np.eye(
        shapes["params/transform/kernel"][0], dtype=np.float32
    )
    found["params/transform_norm/scale"] += 1
    return found


UNITS = {"gelu": "gelu", "gelu_new": "gelu-tanh", "gelu_pytorch_tanh": "gelu-tanh"}


def _unit(name: str) -> str:
    if name not in UNITS:
        raise InputError(f"its feed-forward units are {name}, and ours are {', '.join(UNITS)}.")
    return UNITS[name]


def _epsilon(said: float, usual: float) -> float:
    return 0.0 if said == usual else float(said)


def _built(**fields: Any) -> Transformer:
    """A net of these fields; ValueError where one is of another type."""
    return build(Transformer, fields)


def _read_gpt2(config: Config) -> tuple[Transformer, list[Match], bool]:
    net = _built(
        layers=config["n_layer"],
        heads=config["n_head"],
        width=config["n_embd"],
        norm="layer",
        positions="learned",
        unit=_unit(config.get("activation_function", "gelu_new")),
        reach=config["n_positions"],
        dropout=float(config.get("resid_pdrop", 0.1)),
        epsilon=_epsilon(config.get("layer_norm_epsilon", 1e-5), 1e-5),
    )
    return net, gpt2(net), True


def _read_bert(config: Config) -> tuple[Transformer, list[Match], bool]:
    net = _built(
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        width=config["hidden_size"],
        norm="layer",
        positions="learned",
        unit=_unit(config.get("hidden_act", "gelu")),
        reach=config["max_position_embeddings"],
        dropout=float(config.get("hidden_dropout_prob", 0.1)),
        blocks="post-norm",
        segments=config.get("type_vocab_size", 2),
        epsilon=_epsilon(config.get("layer_norm_eps", 1e-12), 1e-12),
    )
    return net, bert(net), False


def _read_llama(config: Config) -> tuple[Transformer, list[Match], bool]:
    heads, euro = config["num_attention_heads"], config["model_type"] == "eurobert"
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = rope.get("rope_theta", config.get("rope_theta", 250_000.0 if euro else 10_000.0))
    plain = rope.get("rope_type", "default") == "default" and theta == 10_000.0
    if not plain or config.get("num_key_value_heads") not in (None, heads):
        raise InputError(
            f"it has rotations of base {theta:g} ({rope.get('rope_type', 'default')}) and "
            f"{config.get('num_key_value_heads')} heads of keys for {heads} of queries, and ours "
            "have base 10000 and as many of both."
        )
    net = _built(
        layers=config["num_hidden_layers"],
        heads=heads,
        width=config["hidden_size"],
        epsilon=_epsilon(config.get("rms_norm_eps", 1e-5 if euro else 1e-6), 1e-6),
    )
    return net, llama(net), not euro


LANGUAGE: dict[str, tuple[str, str, Callable]] = {
    "gpt2": ("h.0.ln_1.weight", "wte.weight", _read_gpt2),
    "bert": (
        "encoder.layer.0.output.LayerNorm.weight",
        "embeddings.word_embeddings.weight",
        _read_bert,
    ),
    "llama": ("layers.0.input_layernorm.weight", "embed_tokens.weight", _read_llama),
    "eurobert": ("layers.0.input_layernorm.weight", "embed_tokens.weight", _read_llama),
}


def read_encoder_decoder(arrays: Arrays, config: Config, where: str, size: int) -> Foreign:
    """An `EncoderDecoder` from a T5 1.1 of transformers, such as FLAN-T5.

    `size` is the number of tokens of its tokenizer; further rows of its table are left out.
    InputError where it is none, or one that ours can't stand for, such as the first version of T5.
    """
    kind = config.get("model_type")
    if kind not in ("t5", "mt5"):
        raise InputError(
            f"{where} needs a config.json whose model_type is t5, not {kind}: give a folder with a "
            "T5 of transformers, or a run."
        )
    if "shared.weight" not in arrays or (rows := len(arrays["shared.weight"])) < size:
        raise InputError(
            f"{where} has no array shared.weight with a row for each of the {size} tokens in its "
            "tokenizer.json: get both again, from one place."
        )
    try:
        net = _read_t5(config)
    except InputError as e:
        raise InputError(f"{where} can't be read as one of our nets: {e}") from None
    except (KeyError, TypeError, ValueError) as e:
        raise InputError(f"The config.json of {where} can't be used ({e!r}): {AGAIN}.") from e
    model, tokens = EncoderDecoder(net, rows), jnp.zeros((1, 2), jnp.int32)
    made = jax.eval_shape(model.init, jax.random.key(0), tokens, tokens)
    shapes = {k: x.shape for k, x in flatten(made).items()}
    tied = [f"{side}.embed_tokens.weight" for side in ("encoder", "decoder")]
    own = {k: x for k, x in arrays.items() if k not in tied}
    own.setdefault("lm_head.weight", own["shared.weight"])  # Where it is tied to the table.
    ours, left = to_ours(t5(net), own, shapes, where)
    # Newer files say it by its own name; older ones by whether the head is tied.
    if config.get("scale_decoder_outputs", config.get("tie_word_embeddings", True)):
        ours["params/head/kernel"] = ours["params/head/kernel"] / np.float32(math.sqrt(net.width))
    ours["params/embed/embedding"] = ours["params/embed/embedding"][:size]
    ours["params/head/kernel"] = ours["params/head/kernel"][:, :size]
    left += [k for k in tied if k in arrays]
    return Foreign(model.clone(vocabulary=size), ours, left, f"{kind} as in transformers")


def _read_t5(config: Config) -> Transformer:
    unit = config.get("feed_forward_proj", "relu")
    buckets = config.get("relative_attention_num_buckets", 32)
    farthest = config.get("relative_attention_max_distance", 128)
    if unit != "gated-gelu":
        raise InputError(
            f"its feed-forward units are {unit}, and ours are gated-gelu, as in T5 1.1 and FLAN-T5."
        )
    if (buckets, farthest) != (BUCKETS, FARTHEST):
        raise InputError(
            f"its distances have {buckets} buckets up to {farthest}, and ours {BUCKETS} up to "
            f"{FARTHEST}."
        )
    layers = config["num_layers"]
    if config.get("num_decoder_layers") not in (None, layers):
        raise InputError(
            f"its encoder has {layers} layers and its decoder {config['num_decoder_layers']}, and "
            "ours have as many."
        )
    width, heads, size = config["d_model"], config["num_heads"], config["d_kv"]
    return _built(
        layers=layers,
        heads=heads,
        width=width,
        positions="relative",
        unit="geglu",
        dropout=float(config.get("dropout_rate", 0.1)),
        epsilon=_epsilon(config.get("layer_norm_epsilon", 1e-6), 1e-6),
        head_width=0 if size * heads == width else size,
        hidden=0 if config["d_ff"] == -(-8 * width // 96) * 32 else config["d_ff"],
    )


def _shapes(net: nn.Module, side: int, channels: int) -> dict[str, tuple[int, ...]]:
    x = jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32)
    return {k: x.shape for k, x in flatten(jax.eval_shape(net.init, jax.random.key(0), x)).items()}
