"""Ranges of arguments: what is refused, by which flag, from Python as from the command line."""

from dataclasses import dataclass
import json
from typing import Annotated, Literal

import jax.numpy as jnp
import numpy as np
import pytest
import tyro

from experiments.simclr import simclr
from ssljax import Run, train
from ssljax.data import Images, PlainImages
from ssljax.errors import InputError
from ssljax.models.convnet import ConvNet
from ssljax.models.mlp import MLP
from ssljax.ranges import (
    as_flag,
    checked,
    Count,
    CountOrZero,
    Counts,
    Fraction,
    FractionBelowOne,
    NotNegative,
    Number,
    Positive,
    PositiveFraction,
)
from tests.tiny import tiny


@tyro.conf.configure(tyro.conf.OmitArgPrefixes)
@dataclass(frozen=True)
class Crops:
    crop: PositiveFraction = 0.2
    blur: Fraction | tuple[Fraction, ...] = 0.0
    jitter: NotNegative | tuple[NotNegative, NotNegative] = 0.4


@dataclass(frozen=True)
class Head:
    widths: Counts = (4,)
    last_bias: bool = True


@checked
def method(
    temperature: Positive = 0.1,
    epochs: Count = 5,
    image_size: CountOrZero = 0,
    warmup: FractionBelowOne = 0.1,
    shift: Number = 0.0,
    final: NotNegative | None = None,
    crops: Crops = Crops(),
    head: Head = Head(),
    net: Annotated[Head, tyro.conf.arg(name="")] = Head(),
    kind: Literal["a", "b"] = "a",
):
    return temperature


NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ({"temperature": 0}, "--temperature must be above 0, not 0"),
        ({"temperature": NAN}, "--temperature must be above 0, not nan"),
        ({"temperature": INFINITY}, "--temperature must be above 0, not inf"),
        ({"epochs": 0}, "--epochs must be at least 1, not 0"),
        ({"epochs": 2**31}, "--epochs must be at most 2147483647, not 2147483648"),
        ({"image_size": -1}, "--image-size must be at least 0, not -1"),
        ({"warmup": 1.0}, "--warmup must be at least 0 and below 1, not 1.0"),
        ({"shift": INFINITY}, "--shift must be finite, not inf"),
        ({"final": -0.1}, "--final must be at least 0, not -0.1"),
        ({"crops": Crops(crop=0.0)}, "--crop must be above 0 and at most 1, not 0.0"),
        ({"crops": Crops(blur=2.0)}, "--blur must be at least 0 and at most 1, not 2.0"),
        ({"crops": Crops(blur=(0.1, 2.0))}, "--blur must be at least 0 and at most 1, not 2.0"),
        ({"crops": Crops(jitter=(0.1, -2.0))}, "--jitter must be at least 0, not -2.0"),
        ({"head": Head(widths=(8, 0))}, "--head.widths must be at least 1, not 0"),
        ({"head": Head(widths=())}, "--head.widths must be one number or more, not empty"),
        ({"net": Head(widths=(-1,))}, "--widths must be at least 1, not -1"),
    ],
)
def test_value_out_of_range_is_refused_by_its_flag(arguments, sentence):
    with pytest.raises(InputError) as e:
        method(**arguments)
    assert str(e.value) == f"{sentence}."


def test_values_in_range_pass():
    assert method(0.5, final=None, crops=Crops(blur=(0.1, 1.0)), head=Head((3, 2))) == 0.5


def test_flax_modules_are_checked():
    @checked
    def experiment(head: MLP = MLP()):
        return head

    assert experiment() == MLP()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            {"optimizer": "adamx"},
            "--optimizer must be one of adamw, sgd, lars, lars-outer, not",
        ),
        ({"epochs": 1.5}, "--epochs must be a whole number, not 1.5"),
        ({"epochs": "1"}, "--epochs must be a whole number, not '1'"),
        ({"epochs": True}, "--epochs must be a whole number, not True"),
        ({"epochs": None}, "--epochs must be a whole number, not None"),
        ({"temperature": "0.1"}, "--temperature must be a number, not '0.1'"),
        ({"view": 3}, "--view must be of class Views, not 3"),
        ({"encoder": "resnet"}, "--encoder must be of class ConvNet or of class ResNet or of"),
        ({"encoder": ConvNet((4,), dtype="float17")}, "--encoder.dtype must be one of float32, bf"),
        ({"head": MLP(8)}, "--head.widths must be a list, not 8"),
        ({"head": MLP((8, 0.5))}, "--head.widths must be a whole number, not"),
        ({"data": ["digits"]}, "--data must be of class Images, not"),
    ],
)
def test_another_type_is_refused_by_its_flag(arguments, sentence):
    with pytest.raises(InputError) as e:
        simclr(**{"data": Images("digits"), **arguments})
    assert str(e.value).startswith(sentence), e.value


def test_a_name_stands_for_its_data_and_arrays_for_lists():
    exp = simclr("digits", head=MLP(np.array([8, 4])), temperature=jnp.float32(0.5))
    assert exp.origin.computes["data"] == "digits" and exp.origin.computes["temperature"] == 0.5
    assert exp.origin.computes["head"]["widths"] == [8, 4]
    with pytest.raises(InputError, match="--run.seed must be a whole number, not 1.5"):
        train(tiny(), Run(seed=1.5))


def test_paths_and_numbers_of_numpy_are_taken_as_flags_give_them(tmp_path):
    """In arguments, in their fields and in lists."""

    @checked
    def made(images: PlainImages, pretrained: str, widths: tuple, net: MLP, lr: Positive):
        return images, pretrained, widths, net, lr

    images = PlainImages(tmp_path / "set", image_size=np.int64(8))
    found, pretrained, widths, net, lr = made(
        images, tmp_path, (np.int32(3), 4), net=MLP((np.int64(5),)), lr=np.float64(0.5)
    )
    assert found == PlainImages(str(tmp_path / "set"), image_size=8) and type(found.data) is str
    assert type(found.image_size) is int and pretrained == str(tmp_path)
    assert widths == (3, 4) and type(widths[0]) is int
    assert type(net.widths[0]) is int and type(lr) is float
    with pytest.raises(InputError, match="--lr must be above 0, not -1"):
        made(images, tmp_path, (), net, lr=np.float32(-1))
    short = (0.2, (0.1, 1e-3))
    assert as_flag((jnp.float32(0.2), np.array([0.1, 1e-3], np.float32))) == short
    x = np.random.default_rng(0).normal(size=100).astype(np.float32)
    assert np.array_equal(np.float32(as_flag(x)), x)
    same = (MLP((4, 5)), [1, "a"], images, None, len)
    assert all(as_flag(x) is x for x in (same[0], same[1], same[3], same[4]))


def test_a_run_of_numbers_of_numpy_is_recorded(tmp_path):
    exp = tiny(num_steps=np.int64(2), batch_size=np.int32(16))
    run = Run(workdir=tmp_path / "run", seed=np.int64(3))
    train(exp, run)
    train(exp, run)
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert (record["num_steps"], record["batch_size"]) == (2, 16)
    with pytest.raises(InputError, match="number of steps must be whole, not 2.5"):
        train(tiny(num_steps=2.5))
