"""Weights of a run as files for other programs, with a card that says what they are.

    python -m ssljax.export runs/simclr --to safetensors -o simclr
    python -m ssljax.export runs/simclr --to timm -o simclr-timm
    python -m ssljax.export runs/gpt --to hf -o gpt-hf

`FOLDER/card.json` has the architecture, the preprocessing, the numbers of the run beside those of
the untrained net and of their floors, the data and its licence where it is known, the command and
the commit, and under "load" the lines of Python that load the weights.

| --to | nets | what is written |
|---|---|---|
| safetensors | all | `model.safetensors`: our names with slashes, all but the optimizer's |
| timm | ResNet, ViT | timm's names, and config.json for `timm.create_model("local-dir:FOLDER")` |
| torchvision | ResNet, ViT | torchvision's names |
| hf | GPT, BERT, T5, ResNet, ViT | transformers' names, for `AutoModel.from_pretrained("FOLDER")` |

All arrays are float32. Outputs differ from ours by rounding alone, which tests/peers measures.

Not expressible, and refused: in timm and torchvision a ResNet whose first stage has not 64 channels
and, in transformers, one with the stem for small images (in timm and torchvision two lines put it
in, which "load" has); in torchvision and transformers a ViT without a class token; language models
that mix the parts of GPT-2, BERT, Llama, EuroBERT and T5; nets of other classes, such as ConvNet.

There is no export to ONNX. Of jax2onnx 0.13.0, the one kept library that needs no TensorFlow,
onnxruntime 1.32.0 refused the ResNet-18 that it wrote, it raised a TypeError at ResNet-50's
pooling, and a ViT's outputs agreed to 2e-6, but with a class token only for one batch size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
import json
import math
import os
import pathlib
import shutil
import tempfile
from typing import Annotated, Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tyro

from ssljax import flags, record
from ssljax.backends import start_backends
from ssljax.checkpoint import flatten
from ssljax.data import augment
from ssljax.data.image_sets import MIDDLE
from ssljax.data.tokenizers import PAD_AND_STOP
from ssljax.errors import InputError
from ssljax.fingerprint import forms_of
from ssljax.layouts import Arrays, bert, BERT_HEAD, gpt2, llama, resnet, t5, to_theirs, VIT, vit
from ssljax.loaded import load, Loaded
from ssljax.models.attention import BUCKETS, FARTHEST
from ssljax.models.encoder import Normalised
from ssljax.models.resnet import ResNet
from ssljax.models.transformer import norm_of
from ssljax.models.vit import sincos_positions, ViT
from ssljax.pretrained import (
    encoder_of,
    pretrained,
    PretrainedEncoder,
    RunEncoder,
    TRAIN_AGAIN,
)
from ssljax.ranges import CountOrZero
from ssljax.record import read_json
from ssljax.summary import summary
from ssljax.weights import CARD, write_weights

Form = Literal["safetensors", "timm", "torchvision", "hf"]
LICENCES = {
    "doodles": "CC BY 4.0 (Quick, Draw!, Google)",
    "python": "PSF License Version 2 (Python's manual)",
}


@dataclass(frozen=True)
class Command:
    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """Folder of the run."""
    to: Form
    """Whose names and shapes the weights are given."""
    out: Annotated[str, tyro.conf.arg(aliases=["-o"], metavar="FOLDER")]
    """Folder to write: a new or an empty one."""
    lane: CountOrZero = 0
    """Index of the seed in the run, from 0."""


Command.__doc__ = __doc__


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    flags.run_command(Command, _run, args)


def _run(asked: Command) -> None:
    start_backends()
    print(export(asked.run, asked.to, asked.out, asked.lane))


class Exported(NamedTuple):
    """What is written of a run."""

    arrays: Arrays
    card: dict[str, Any]
    load: list[str]
    """Python that loads it, of which {folder} stands for the folder."""
    files: dict[str, str]
    """Further texts, by file name."""


def export(workdir: str | pathlib.Path, to: Form, out: str | pathlib.Path, lane: int = 0) -> str:
    """Writes the weights of a run to the folder `out`, and returns a line that says what they are.

    InputError where there is no such run, where its net has no such form, and where `out` holds
    something.
    """
    target = pathlib.Path(out).expanduser()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{out} is there already: give a new or an empty folder.")
    run = load(workdir, lane)
    forms = {"safetensors": _ours, "timm": _timm, "torchvision": _torchvision, "hf": _transformers}
    found = forms[to](run, lane)
    folder = os.path.abspath(target)
    card = _facts(run, lane) | found.card | {"load": [x.format(folder=folder) for x in found.load]}
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=target.parent) as scratch:
        part = pathlib.Path(scratch) / target.name
        part.mkdir()
        # In the header of a file of ours, the card is what --pretrained reads.
        arrays = _with_counters(found.arrays)
        write_weights(part / "model.safetensors", arrays, card if to == "safetensors" else {})
        files = found.files | {CARD: json.dumps(card, indent=1) + "\n"}
        for name, text in files.items():
            (part / name).write_text(text, encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)  # It is empty.
        part.replace(target)
    numbers = sum(x.size for x in found.arrays.values())
    how = "\n".join(f"  {line}" for line in card["load"])
    return f"{out}: {len(found.arrays)} arrays of {numbers:,} numbers. To load them:\n{how}"


def _with_counters(arrays: Arrays) -> Arrays:
    """With the count of batches that PyTorch keeps for each BatchNorm and doesn't use."""
    means = [k for k in arrays if k.endswith(".running_mean")]
    counters = {k.replace("running_mean", "num_batches_tracked"): np.zeros((), int) for k in means}
    return arrays | counters


def _facts(run: Loaded, lane: int) -> dict[str, Any]:
    """The part of a card that any run has."""
    made, launch = run.record, run.record["launches"][-1]
    data = made["computes"].get("data", "")
    rows = summary(run.workdir).rows
    return {
        "ssljax": launch["versions"].get("ssljax", ""),
        "experiment": made.get("experiment") or launch["command"][0],
        "computes": made["computes"],
        "read": {name: forms_of(parts) for name, parts in (made.get("read") or {}).items()},
        "command": launch["command"],
        "commit": launch["commit"],
        "date": launch["time"],
        "step": int(run.state["step"]),
        "lane": lane,
        "data": data,
        "licence_of_data": LICENCES.get(str(data).partition(":")[0]),
        "metrics": [
            {
                "name": row.name,
                "better": row.better,
                "trained": list(row.trained),
                "untrained": row.untrained and list(row.untrained),
                "floor": row.floor and list(row.floor),
                "floor_name": row.floor_name or None,
            }
            for row in rows
        ],
    }


def _ours(run: Loaded, lane: int) -> Exported:
    state = {k: run.state.get(k) for k in ("params", "extra")}
    arrays = {k: np.asarray(x) for k, x in flatten(state).items()}
    kept, files = run.record.get("kept"), {}
    card: dict[str, Any] = {"kept": kept}
    if (run.workdir / "net.json").exists():
        old = pretrained(run.workdir, _kind(run))
        files = dict(old.files)
        card |= {"model": {"net": json.loads(files["net.json"]), "reach": old.reach}}
        card |= {"architecture": card["model"]["net"]}
    else:
        for name in run.record.get("files") or {}:
            files[name] = (run.workdir / name).read_text(encoding="utf-8")
        if "kept" not in run.record:
            raise InputError(
                f"{run.workdir} is of an older version: resume it once, then try again."
            )
        card |= {"architecture": kept["net"] if kept else run.record["computes"]}
        if kept:
            old = encoder_of(run.workdir, lane)
            card |= {"preprocessing": _preprocessing(run, old)}
    load = [
        "from safetensors.numpy import load_file",
        'arrays = load_file("{folder}/model.safetensors")  # or --pretrained {folder}',
    ]
    return Exported(arrays, card, load, files)


class Images(NamedTuple):
    """An encoder of images as others are to have it."""

    net: Any
    arrays: Arrays
    """By path, as in params/stem/kernel."""
    channels: int
    sides: tuple[int, int] | None
    """Height and width of what the net sees; None where it isn't known."""
    card: dict[str, Any]

    @property
    def part(self) -> float:
        """What is seen of an image's shorter side, in its middle."""
        return (self.card["preprocessing"] or {}).get("part_of_shorter_side", 1.0)

    @property
    def mean(self) -> list[float]:
        """What is subtracted from images in [0, 1]."""
        return (self.card["preprocessing"] or {}).get("mean") or [0.0] * self.channels

    @property
    def std(self) -> list[float]:
        """What images are then divided by."""
        return (self.card["preprocessing"] or {}).get("std") or [1.0] * self.channels


def _encoder(run: Loaded, lane: int, to: str, check: Callable[[Any], Any]) -> Images:
    """The encoder of a run that is a ResNet or a ViT, and that `check` doesn't refuse."""
    old = encoder_of(run.workdir, lane)
    arrays = flatten({"params": old.params, "batch_stats": old.stats})
    net = old.net
    if isinstance(net, Normalised):
        net = net.net
        arrays = {k.replace("/net/", "/", 1): x for k, x in arrays.items()}
    if not isinstance(net, (ResNet, ViT)):
        kind = run.record["experiment"] if isinstance(net, RunEncoder) else type(net).__name__
        raise InputError(
            f"The encoder of {run.workdir} is that of {kind}, which {to} has no net for, only for "
            "ResNet and ViT: take --to safetensors."
        )
    check(net)
    preprocessing = _preprocessing(run, old)
    sides = tuple(preprocessing["net_input"][:2]) if preprocessing else None
    if isinstance(net, ResNet):
        channels = arrays["params/stem/kernel"].shape[2]
    else:
        channels = arrays["params/embed/kernel"].shape[0] // net.patch**2
        if "params/places/table" in arrays:
            sides = tuple(net.patch * n for n in arrays["params/places/table"].shape[:2])
    card = {"architecture": record.plain(old.net), "preprocessing": preprocessing}
    return Images(net, arrays, channels, sides, card)


def _preprocessing(run: Loaded, old: PretrainedEncoder) -> dict[str, Any] | None:
    """What is done to uint8 images before the net sees them, found by looking at what it is given.

    None where the run's experiment can't be made again, or does something else than to resize and
    to normalise.
    """
    try:
        exp, batch, state = run.encoding, run.batch, run.train_state
    except InputError as e:
        print(f"Note: the card has no preprocessing, for {str(e)[0].lower()}{str(e)[1:]}")
        return None
    net, seen, encode = old.net, [], exp.encode
    if encode is None:
        return None
    form = record.plain(net)

    def look(function: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        y = function(*args, **kwargs)
        if record.plain(context.module) == form and args and np.ndim(args[0]) == 4:
            seen.append((args[0], y))
        return y

    @jax.jit
    def encoded(state: Any, images: Any) -> tuple[Any, list[tuple[Any, Any]]]:
        with nn.intercept_methods(look):
            z = encode(state, images)
        return z, seen[-1:]  # The last is the outermost call.

    shape = batch["image"].shape[1:]
    noise = np.random.default_rng(0).integers(0, 256, shape)
    images = np.stack([np.zeros(shape), np.full(shape, 255), noise]).astype(np.uint8)
    z, found = encoded(state, images)
    if not found:
        return None
    x, y = found[0]
    black, white = np.asarray(x[0]), np.asarray(x[1])
    low, high = black.mean((0, 1)), white.mean((0, 1))
    std = 1 / (high - low)
    mean = -low * std
    given = record.flat(run.record["computes"]).items()
    how: Any = next((v for k, v in given if k.endswith(".interpolation")), "bilinear")
    expected = augment.to_float(jnp.asarray(images))
    if x.shape[1:3] != shape[:2]:
        expected = augment.resize_square(expected, x.shape[1], how)
    same = np.allclose((expected - mean) / std, x, atol=1e-5)
    if not same:
        print("Note: the card has no preprocessing, for it is more than to resize and normalise.")
        return None
    if isinstance(net, Normalised):
        mean, std = np.array(net.mean), np.array(net.std)
    return {
        "image": list(shape),
        "part_of_shorter_side": MIDDLE if "aspect" in batch else 1.0,
        "net_input": list(x.shape[1:]),
        "interpolation": how if x.shape[1:3] != shape[:2] else None,
        "scale": 1 / 255,
        "mean": [round(float(v), 6) + 0.0 for v in mean],  # No -0.
        "std": [round(float(v), 6) for v in std],
        "features_are_outputs": y.shape == z.shape and bool(np.allclose(y, z, atol=1e-5)),
    }


def _has_64_channels(net: Any) -> None:
    if isinstance(net, ResNet) and net.width != 64:
        raise InputError(
            "The ResNets of timm and torchvision have 64 channels in their first stage, and this "
            f"one has {net.width}: take --to hf, or safetensors."
        )


def _has_token(net: Any) -> None:
    if isinstance(net, ViT) and net.pool != "token":
        raise InputError(
            "The ViTs of torchvision and transformers have a class token, and the features of this "
            "one are the mean of its patches: take --to timm."
        )


def _has_large_stem(net: Any) -> None:
    if isinstance(net, ResNet) and net.stem == "cifar":
        raise InputError(
            "The ResNets of transformers have the stem of ImageNet, and this one that for small "
            "images: take --to timm."
        )


SMALL_STEM = [
    "net.conv1 = torch.nn.Conv2d({channels}, 64, 3, 1, 1, bias=False)",
    "net.maxpool = torch.nn.Identity()",
]


def _timm(run: Loaded, lane: int) -> Exported:
    found = _encoder(run, lane, "timm", _has_64_channels)
    net, arrays, to = found.net, found.arrays, "timm"
    options: dict[str, Any] = {"in_chans": found.channels, "num_classes": 0}
    weights = 'net.load_state_dict(load_file("{folder}/model.safetensors"))'
    if isinstance(net, ResNet):
        name = f"resnet{net.depth}"
        theirs = to_theirs(resnet(net), arrays)
        stem = [x.replace("{channels}", str(found.channels)) for x in SMALL_STEM]
    else:
        arrays, sides = _with_table(found, to)
        token, grid = net.pool == "token", tuple(s // net.patch for s in sides)
        name, stem = "vit_base_patch16_224", []
        options |= {"img_size": list(sides), "patch_size": net.patch, "embed_dim": net.width}
        options |= {"depth": net.depth, "num_heads": net.heads, "class_token": token}
        options |= {"global_pool": "token" if token else "avg"}
        options |= {"no_embed_class": True, "fc_norm": False}
        theirs = to_theirs(vit(net, VIT["timm"], found.channels, grid, grid[0] * grid[1]), arrays)
    config = {
        "architecture": name,
        "num_classes": 0,
        "num_features": net.width * ({50: 32}.get(net.depth, 8) if isinstance(net, ResNet) else 1),
        "global_pool": options.get("global_pool", "avg"),
        "model_args": options,
        "pretrained_cfg": {
            "input_size": [found.channels, *(found.sides or (224, 224))],
            "fixed_input_size": isinstance(net, ViT),
            "interpolation": "bilinear",
            "crop_pct": _crop_pct((found.sides or (224, 224))[0], found.part),
            "mean": found.mean,
            "std": found.std,
            "num_classes": 0,
            "first_conv": None,  # timm would fit weights of 3 channels to another number.
            "classifier": "fc" if isinstance(net, ResNet) else "head",
        },
    }
    if isinstance(net, ResNet) and net.stem == "cifar":
        load = [
            "import timm, torch; from safetensors.torch import load_file",
            f'net = timm.create_model("{name}", num_classes=0)',
            *stem,
            weights,
        ]
        return Exported(theirs, found.card, load, _config(found))
    load = ["import timm", 'net = timm.create_model("local-dir:{folder}", pretrained=True)']
    files = {"config.json": json.dumps(config, indent=1) + "\n"}
    return Exported(theirs, found.card, load, files)


def _crop_pct(side: int, part: float) -> float:
    """`part`, or what timm resizes by as we do: it rounds side / crop_pct down."""
    short = round(side / part)
    return part if math.floor(side / part) == short else round(side / (short + 0.5), 6)


def _with_table(found: Images, to: str) -> tuple[Arrays, tuple[int, int]]:
    """A ViT's arrays with a table of its positions, and the sides of its images."""
    net, arrays = found.net, dict(found.arrays)
    if found.sides is None:
        raise InputError(
            f"{to} needs the size of the images of a ViT with fixed positions, which only the data "
            "of the run tells: put that back."
        )
    if "params/places/table" not in arrays:
        h, w = (s // net.patch for s in found.sides)
        table = np.asarray(sincos_positions(h, w, net.width))
        arrays["params/places/table"] = table.reshape(h, w, net.width)
    return arrays, found.sides


def _torchvision(run: Loaded, lane: int) -> Exported:
    found = _encoder(run, lane, "torchvision", lambda net: (_has_64_channels(net), _has_token(net)))
    net, to = found.net, "torchvision"
    load = [
        "import torch, torchvision; from safetensors.torch import load_file",
        'net.load_state_dict(load_file("{folder}/model.safetensors"))',
    ]
    if isinstance(net, ResNet):
        made = [f"net = torchvision.models.resnet{net.depth}()", "net.fc = torch.nn.Identity()"]
        stem = [x.replace("{channels}", str(found.channels)) for x in SMALL_STEM]
        if net.stem == "imagenet":
            stem = [stem[0].replace("64, 3, 1, 1", "64, 7, 2, 3")] * (found.channels != 3)
        theirs = to_theirs(resnet(net), found.arrays)
        return Exported(theirs, found.card, [load[0], *made, *stem, load[1]], _config(found))
    arrays, sides = _with_table(found, to)
    if sides[0] != sides[1] or found.channels != 3:
        raise InputError(
            f"The ViTs of {to} are of square images in colour, and this one is of "
            f"{sides[0]}x{sides[1]} with {found.channels} channels: take --to timm."
        )
    grid = tuple(s // net.patch for s in sides)
    theirs = to_theirs(vit(net, VIT[to], found.channels, grid, grid[0] * grid[1] + 1), arrays)
    made = [
        f"net = torchvision.models.VisionTransformer({sides[0]}, {net.patch}, {net.depth}, "
        f"{net.heads}, {net.width}, {4 * net.width})",
        "net.heads = torch.nn.Identity()",
    ]
    files = _config(found, num_heads=net.heads)
    return Exported(theirs, found.card, [load[0], *made, load[1]], files)


def _config(found: Images, **arguments: Any) -> dict[str, str]:
    """A config.json of what the arrays don't say, for --pretrained."""
    said = {"model_args": arguments, "pretrained_cfg": {"mean": found.mean, "std": found.std}}
    return {"config.json": json.dumps(said, indent=1) + "\n"}


def _transformers(run: Loaded, lane: int) -> Exported:
    if (run.workdir / "net.json").exists():
        return (_t5 if _kind(run) == "EncoderDecoder" else _language_model)(run)
    found = _encoder(run, lane, "hf", lambda net: (_has_large_stem(net), _has_token(net)))
    net, to = found.net, "transformers"
    config: dict[str, Any] = {"num_channels": found.channels, "dtype": "float32"}
    if isinstance(net, ResNet):
        basic = net.depth != 50
        widths = [net.width * 2**i * (1 if basic else 4) for i in range(4)]
        config |= {"model_type": "resnet", "architectures": ["ResNetModel"]}
        config |= {"embedding_size": net.width, "hidden_sizes": widths, "hidden_act": "relu"}
        config |= {"depths": {18: [2] * 4, 34: [3, 4, 6, 3], 50: [3, 4, 6, 3]}[net.depth]}
        config |= {"layer_type": "basic" if basic else "bottleneck"}
        theirs = to_theirs(resnet(net, transformers=True), found.arrays)
        features = "net(x).pooler_output[:, :, 0, 0]"
    else:
        arrays, sides = _with_table(found, to)
        grid = tuple(s // net.patch for s in sides)
        layout = vit(net, VIT[to], found.channels, grid, grid[0] * grid[1] + 1)
        theirs = to_theirs(layout, arrays)
        side = sides[0] if sides[0] == sides[1] else list(sides)
        config |= {"model_type": "vit", "architectures": ["ViTModel"], "image_size": side}
        config |= {"patch_size": net.patch, "hidden_size": net.width, "hidden_act": "gelu"}
        config |= {"num_hidden_layers": net.depth, "num_attention_heads": net.heads}
        config |= {"intermediate_size": 4 * net.width, "layer_norm_eps": 1e-6, "qkv_bias": True}
        config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        features = "net(x).last_hidden_state[:, 0]"
    processor = {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}
    processor |= {"image_mean": found.mean, "image_std": found.std, "resample": 2}  # Bilinear.
    if found.sides:
        both = dict(zip(("height", "width"), found.sides))
        processor |= {"image_processor_type": "ViTImageProcessor", "do_resize": True, "size": both}
        if both["height"] == both["width"]:  # Of photographs the middle, as our evaluators do.
            short = round(both["height"] / found.part)
            processor |= {"image_processor_type": "BitImageProcessor", "do_center_crop": True}
            processor |= {"size": {"shortest_edge": short}, "crop_size": both}
            processor |= {"do_convert_rgb": found.channels == 3}
    load = [
        "from transformers import AutoModel",
        'net = AutoModel.from_pretrained("{folder}")',
        f"# features of x: {features}",
    ]
    # What --pretrained reads of a config.json.
    config |= {"image_mean": found.mean, "image_std": found.std}
    files = {"config.json": config, "preprocessor_config.json": processor}
    return Exported(
        theirs, found.card, load, {k: json.dumps(v, indent=1) for k, v in files.items()}
    )


def _language_model(run: Loaded) -> Exported:
    old = pretrained(run.workdir)
    model, net = old.model, old.model.net
    arrays = flatten(run.state["params"]["model"])
    layer = net.norm == "layer" and net.positions == "learned" and "glu" not in net.unit
    layer = layer and not (net.head_width or net.hidden)
    rms = net.norm == "rms" and net.positions == "rotary" and net.unit == "swiglu"
    rms = rms and not net.head_width
    size, rows = model.vocabulary, int(run.record["computes"].get("length", net.reach))
    id_of = old.tokenizer.token_to_id
    config: dict[str, Any] = {"vocab_size": size, "dtype": "float32", "tie_word_embeddings": True}
    if layer and model.causal and net.blocks == "pre-norm" and not net.segments:
        config |= {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}
        config |= {"n_positions": net.reach, "n_embd": net.width, "n_layer": net.layers}
        config |= {"n_head": net.heads, "layer_norm_epsilon": _epsilon(net)}
        config |= {"activation_function": "gelu_new" if net.unit == "gelu-tanh" else "gelu"}
        config |= {"resid_pdrop": net.dropout, "embd_pdrop": net.dropout, "attn_pdrop": 0.0}
        theirs, prefix = to_theirs(gpt2(net), arrays), "transformer."
    elif layer and not model.causal and net.blocks == "post-norm":
        config |= {"model_type": "bert", "architectures": ["BertForMaskedLM"]}
        config |= {"max_position_embeddings": net.reach, "hidden_size": net.width}
        config |= {"num_hidden_layers": net.layers, "num_attention_heads": net.heads}
        config |= {"intermediate_size": 4 * net.width, "layer_norm_eps": _epsilon(net)}
        config |= {"hidden_act": "gelu_new" if net.unit == "gelu-tanh" else "gelu"}
        config |= {"type_vocab_size": max(1, net.segments), "hidden_dropout_prob": net.dropout}
        config |= {"attention_probs_dropout_prob": 0.0}
        if not net.segments:  # BERT adds the first segment's vector to all tokens.
            arrays["params/net/segments"] = np.zeros((1, net.width), np.float32)
        theirs, prefix = to_theirs(bert(net), arrays), "bert."
    elif rms and net.blocks == "pre-norm" and not net.segments:
        kind, name = ("llama", "LlamaForCausalLM") if model.causal else EUROBERT
        config |= {"model_type": kind, "architectures": [name], "hidden_size": net.width}
        config |= {"num_hidden_layers": net.layers, "num_attention_heads": net.heads}
        config |= {"num_key_value_heads": net.heads, "hidden_act": "silu"}
        config |= {"intermediate_size": arrays["params/net/up1/kernel"].shape[1]}
        config |= {"rms_norm_eps": _epsilon(net), "max_position_embeddings": rows}
        config |= {"rope_parameters": {"rope_theta": 10_000.0, "rope_type": "default"}}
        config |= {"rope_theta": 10_000.0, "attention_bias": False, "mlp_bias": False}
        theirs, prefix = to_theirs(llama(net), arrays), "model."
    else:
        kind = "causal" if model.causal else "masked"
        raise InputError(
            f"transformers has no {kind} model with --norm {net.norm}, --positions "
            f"{net.positions}, --unit {net.unit}, --blocks {net.blocks}, --segments "
            f"{net.segments}, --head-width {net.head_width} and --hidden {net.hidden}: GPT-2, "
            "BERT, Llama and EuroBERT are expressible; take --to safetensors."
        )
    theirs = {prefix + k: x for k, x in theirs.items()}
    if model.transforms:
        theirs |= to_theirs(BERT_HEAD, arrays)
    tokens = {k: f"[{k.removesuffix('_token').upper()}]" for k in SPECIAL}
    tokens = {k: token for k, token in tokens.items() if id_of(token) is not None}
    ids = {"pad": "[PAD]", "bos": "[CLS]", "eos": "[SEP]"}
    if id_of("<|endoftext|>") is not None:
        ids |= {"bos": "<|endoftext|>", "eos": "<|endoftext|>"}
        tokens |= {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    config |= {f"{k}_token_id": id_of(token) for k, token in ids.items()}
    if config["model_type"] == "eurobert":
        config |= {"mask_token_id": id_of("[MASK]")}
    return _with_tokenizer(theirs, config, tokens, rows, old, "AutoModel")


def _with_tokenizer(
    theirs: Arrays, config: dict, tokens: dict[str, str], rows: int, old: Any, loader: str
) -> Exported:
    """What transformers reads by its class `loader`: a text net's arrays, and its tokenizer."""
    tokenizer = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": rows} | tokens
    card = {
        "architecture": json.loads(old.files["net.json"]),
        "preprocessing": {"tokenizer": "tokenizer.json", "length": rows},
    }
    load = [
        f"from transformers import {loader}, AutoTokenizer",
        f'net = {loader}.from_pretrained("{{folder}}")',
        'tokenizer = AutoTokenizer.from_pretrained("{folder}")',
    ]
    files = {
        "config.json": json.dumps(config, indent=1),
        "tokenizer.json": old.tokenizer.to_str(),
        "tokenizer_config.json": json.dumps(tokenizer, indent=1),
    }
    return Exported(theirs, card, load, files)


def _kind(run: Loaded) -> Any:
    """The class that a run's net.json names."""
    return read_json(run.workdir / "net.json", TRAIN_AGAIN).get("class")


def _t5(run: Loaded) -> Exported:
    old = pretrained(run.workdir, "EncoderDecoder")
    model, net = old.model, old.model.net
    form = net.norm, net.positions, net.unit, net.blocks, net.segments
    if form != ("rms", "relative", "geglu", "pre-norm", 0):
        raise InputError(
            f"transformers has no encoder and decoder with --norm {net.norm}, --positions "
            f"{net.positions}, --unit {net.unit}, --blocks {net.blocks} and --segments "
            f"{net.segments}: T5 is expressible, with rms, relative, geglu, pre-norm and 0; take "
            "--to safetensors."
        )
    arrays = flatten(run.state["params"]["model"])
    config = {
        "model_type": "t5",
        "architectures": ["T5ForConditionalGeneration"],
        "vocab_size": model.vocabulary,
        "d_model": net.width,
        "d_kv": net.head_width or net.width // net.heads,
        "d_ff": arrays["params/encoder/up1/kernel"].shape[1],
        "num_layers": net.layers,
        "num_decoder_layers": net.layers,
        "num_heads": net.heads,
        "relative_attention_num_buckets": BUCKETS,
        "relative_attention_max_distance": FARTHEST,
        "dropout_rate": net.dropout,
        "layer_norm_epsilon": _epsilon(net),
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
        "dtype": "float32",
    }
    rows = int(run.record["computes"]["length"])
    tokens = {"pad_token": PAD_AND_STOP[0], "eos_token": PAD_AND_STOP[1]}
    theirs = to_theirs(t5(net), arrays)
    return _with_tokenizer(theirs, config, tokens, rows, old, "AutoModelForSeq2SeqLM")


EUROBERT = "eurobert", "EuroBertForMaskedLM"
SPECIAL = "pad_token", "unk_token", "cls_token", "sep_token", "mask_token"


def _epsilon(net: Any) -> float:
    return float(norm_of(net.clone(parent=None)).epsilon)


if __name__ == "__main__":
    main()
