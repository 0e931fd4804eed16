"""Encoders to choose from, and chains of an encoder and heads."""

from collections.abc import Mapping, Sequence
import types
from typing import Annotated, Any, get_args, get_origin, get_type_hints, Literal, TypeVar, Union

import flax.linen as nn
from jax import Array
import jax.numpy as jnp
import tyro

from ssljax.accumulation import by_parts
from ssljax.errors import InputError
from ssljax.models.convnet import ConvNet
from ssljax.models.mlp import MLP
from ssljax.models.resnet import ResNet
from ssljax.models.vit import ViT
from ssljax.ranges import check_value

Tree = Any
M = TypeVar("M", bound=nn.Module)
# Nets of images (n, h, w, c) to features (n, d).
Encoder = ConvNet | ResNet | Annotated[ViT, tyro.conf.subcommand("vit")]


class Normalised(nn.Module):
    """A net of images in [0, 1] whose channels are normalised first, as many published nets have
    them."""

    net: nn.Module
    """The net of normalised images."""
    mean: tuple[float, ...]
    """What is subtracted from each channel."""
    std: tuple[float, ...]
    """What each channel is then divided by."""

    def __call__(self, x: Array, train: bool = False) -> Array:
        return self.net((x - jnp.asarray(self.mean)) / jnp.asarray(self.std), train)


KNOWN = {kind.__name__: kind for kind in (ConvNet, ResNet, ViT, Normalised)}


def is_known(net: nn.Module) -> bool:
    """Whether `rebuild` makes a net like this one from its record."""
    return KNOWN.get(type(net).__name__) is type(net)


def rebuild(form: Mapping[str, Any]) -> nn.Module:
    """The encoder of a run's record, {"class": "ConvNet", "widths": [...], ...}.

    KeyError for an unknown class.
    """
    return build(KNOWN[form["class"]], form)


def build(kind: type[M], form: Mapping[str, Any]) -> M:
    """A net of the fields in a record; ValueError where one is unknown or of another type."""
    fields = {k: _value(v) for k, v in form.items() if k != "class"}
    hints = get_type_hints(kind, include_extras=True)
    for name, value in fields.items():
        if name not in hints or not _is(value, hints[name]):
            raise ValueError(f"{name} is {value!r}")
    net = kind(**fields)
    check_value("net", net, kind)
    return net


def _value(form: Any) -> Any:
    """A field from its form in JSON."""
    if isinstance(form, list):
        return tuple(form)
    if isinstance(form, dict):
        if form.get("class") not in KNOWN:
            raise ValueError(f"there is no class {form.get('class')}")
        return rebuild(form)
    return form


def _is(value: Any, hint: Any) -> bool:
    """Whether a value from JSON is of a type."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _is(value, args[0])
    if origin in (Union, types.UnionType):
        return any(_is(value, option) for option in args)
    if origin is Literal:
        return any(value == option and type(value) is type(option) for option in args)
    if origin is tuple:
        kinds = args[:1] * len(value) if args[1:] == (...,) and isinstance(value, tuple) else args
        return (
            isinstance(value, tuple)
            and len(value) == len(kinds)
            and all(_is(one, kind) for one, kind in zip(value, kinds, strict=True))
        )
    if hint is float:
        return type(value) in (int, float)
    return type(value) is hint if hint in (int, bool, str) else True


def check_predictor(head: MLP, predictor: MLP) -> None:
    """InputError unless a predictor ends with the width of the head, whose output it predicts."""
    if head.widths[-1] != predictor.widths[-1]:
        raise InputError(
            f"--predictor.widths must end with {head.widths[-1]}, as --head.widths does, not with "
            f"{predictor.widths[-1]}."
        )


class Chain:
    """Nets one after another: `Chain(encoder=f, head=g)` is g(f(x)).

    Parameters and batch statistics are dictionaries by these names, which may have further entries.
    """

    def __init__(self, **nets: nn.Module):
        self.nets = nets

    def init(self, keys: Sequence[Array], x: Array) -> tuple[dict[str, Tree], dict[str, Tree]]:
        """Parameters and batch statistics, from a key for each net."""
        params, stats = {}, {}
        for key, (name, net) in zip(keys, self.nets.items(), strict=True):
            x, made = net.init_with_output(key, x)
            params[name], stats[name] = made["params"], made.get("batch_stats", {})
        return params, stats

    def __call__(
        self, params: Tree, stats: Tree, x: Array, train: bool
    ) -> tuple[Array, dict[str, Tree]]:
        """The output, and the batch statistics, updated if `train`."""
        of = lambda params, x, _: self._all(params, stats, x, train)
        return by_parts(of, params, x) if train else of(params, x, None)

    def _all(
        self, params: Tree, stats: Tree, x: Array, train: bool
    ) -> tuple[Array, dict[str, Tree]]:
        new = {}
        for name, net in self.nets.items():
            variables = {"params": params[name], "batch_stats": stats[name]}
            x, changed = net.apply(variables, x, train, mutable=["batch_stats"])
            new[name] = changed.get("batch_stats", {})
        return x, new

    def each(
        self, params: Tree, stats: Tree, parts: Sequence[Array]
    ) -> tuple[list[Array], dict[str, Tree]]:
        """The outputs in training of several batches, of any sizes, and the final batch statistics.

        Each batch is normalised by its own statistics.
        """
        out = []
        for x in parts:
            y, stats = self(params, stats, x, train=True)
            out.append(y)
        return out, stats

    def crops(
        self, params: Tree, stats: Tree, parts: Sequence[Array]
    ) -> tuple[Array, dict[str, Tree]]:
        """The outputs in training, (n, views, d), of views of n images, and the batch statistics.

        Each part has views of one size, (n, some, height, width, channels), and the views of an
        image are in the order of the parts. The first net is applied to each part, the others to
        all views at once, as in the code of SwAV and DINO.
        """
        (name, net), *others = self.nets.items()
        n = len(parts[0])
        flat = [x.reshape(-1, *x.shape[2:]) for x in parts]
        y, first = Chain(**{name: net}).each(params, stats, flat)
        # Joined image by image, so that devices that share the images exchange nothing.
        y = jnp.concatenate([one.reshape(n, -1, one.shape[-1]) for one in y], axis=1)
        y, rest = Chain(**dict(others))(params, stats, y.reshape(-1, y.shape[-1]), train=True)
        return y.reshape(n, -1, y.shape[-1]), first | rest
