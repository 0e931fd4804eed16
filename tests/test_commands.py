"""Commands in docstrings and the README: all are parsed; those on images or sounds are lowered.

Data sets are constants of the right shape, which tests flags and shapes at the papers' sizes.
"""

import functools
import importlib
import re
import shlex

import jax
import numpy as np
import pytest

from ssljax import cli, sharding
from ssljax.data import audio, tfds
from ssljax.data.sources import Arrays
from tests.conftest import ROOT

SHAPES = {
    "mnist": (60_000, 28, 28, 1),
    "fashion_mnist": (60_000, 28, 28, 1),
    "cifar10": (50_000, 32, 32, 3),
    "FOLDER": (10_000, 224, 224, 3),
    "imagenet2012": (10_000, 224, 224, 3),
    "train-clean-100": (10_000,),
}
OTHER_RUNS = [
    "--classifier",
    "--features",
    "--labels",
    "--pretrained",
]  # Whose folders would have to be there.


def commands(text):
    """(experiment, flags) of each command in a text, its comment left out."""
    for name, flags in re.findall(
        r"launch/local\.sh experiments/(\w+)\.py((?:\\\n|[^\n`])*)", text
    ):
        flags = re.sub(r"\\+\n", " ", flags)
        yield name, tuple(shlex.split(flags, comments=True))


def test_commands_with_continuation_lines_and_comments():
    text = (
        "    launch/local.sh experiments/a.py --b 1 \\\\\n      --c   # see d\n"
        "    launch/local.sh experiments/e.py\n"
    )
    assert list(commands(text)) == [("a", ("--b", "1", "--c")), ("e", ())]


TEXTS = [p.read_text().split('"""')[1] for p in sorted((ROOT / "experiments").glob("*.py"))]
ALL = list(
    dict.fromkeys(
        c
        for text in [*TEXTS, (ROOT / "README.md").read_text()]
        for c in commands(text)
        if "--help" not in c[1]
    )
)
JOINT = [
    "barlow",
    "byol",
    "dino",
    "lejepa",
    "moco",
    "mocov3",
    "nnclr",
    "simclr",
    "simsiam",
    "supcon",
    "swav",
    "vicreg",
]
IMAGENET = (
    "--data",
    "imagenet2012",
    "--image-size",
    "224",
    "encoder:res-net",
    "--encoder.depth",
    "50",
    "--encoder.stem",
    "imagenet",
    "--encoder.dtype",
    "bfloat16",
)
KEY = jax.random.key(0)


@pytest.fixture
def constants(monkeypatch):
    """Sets of the right shape that take no memory: pixels are the number of their channel."""

    def stand_in(zero, n, *shape, photographs=False):
        return Arrays(
            np.broadcast_to(np.arange(shape[-1] or 1).astype(zero.dtype), (n, *shape)),
            np.arange(n, dtype=np.int32) % 10,
            list("0123456789"),
            np.full(n, 4 / 3, np.float32) if photographs else None,
        )

    def tfds_images(name, split, size, named, whole, **how):
        photographs = whole and name == "imagenet2012"
        return stand_in(np.uint8(0), *SHAPES[name], photographs=photographs), ""

    monkeypatch.setattr(tfds, "tfds_images", tfds_images)
    monkeypatch.setattr(
        audio,
        "recordings",
        lambda data, split, length, rate, **_: stand_in(np.int16(0), 10_000, length),
    )


def called(monkeypatch, command, build):
    """What `cli.main` would train, or only the arguments, by name, of the experiment's function."""
    name, flags = command
    found = []
    function = getattr(importlib.import_module(f"experiments.{name}"), name)
    make = function if build else functools.wraps(function)(lambda **arguments: arguments)
    monkeypatch.setattr(cli, "train", lambda made, *_, **__: found.append(made))
    monkeypatch.setattr(
        sharding, "split_cpu", lambda n: None
    )  # The tests' eight devices are there already.
    cli.main(make, flags)
    return found[0]


def name_of(command):
    return " ".join([command[0], *command[1]])[:100]


@pytest.mark.parametrize("command", ALL, ids=name_of)
def test_flags_are_known(command, monkeypatch):
    flags = dict(zip(command[1], command[1][1:]))
    arguments = called(monkeypatch, command, build=False)
    data = arguments.get("data")
    data = getattr(data, "data", data)
    assert data == flags.get("--data", data)


LOWERED = [
    *(c for c in ALL if set(c[1]) & set(SHAPES) and not set(c[1]) & set(OTHER_RUNS)),
    *((name, IMAGENET) for name in JOINT),
]


@pytest.mark.parametrize("command", LOWERED, ids=name_of)
def test_steps_lower_for_gpus_at_full_size(command, costly, monkeypatch, constants, tmp_path):
    costly(LOWERED.index(command), of=6)
    monkeypatch.chdir(tmp_path)
    exp = called(monkeypatch, command, build=True)
    first = next(exp.data.feed(0, 0, sharding.make_mesh(devices=jax.devices()[:1])))
    batch = jax.eval_shape(exp.data.batch, exp.data.resident(), first)
    state = jax.eval_shape(exp.init, KEY, batch)
    traced = jax.jit(exp.step).trace(state, batch, KEY)
    assert traced.lower(lowering_platforms=("cuda",)).as_text()
    after, metrics = traced.out_info
    shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    assert shapes(after) == shapes(state)
    assert all(m.shape == () for m in metrics.values())
