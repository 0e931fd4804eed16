"""Cost of a step's random views next to its network: milliseconds, each compiled alone.

    .venv/bin/python tests/benchmarks/augmentation.py [--data cifar10] [--view-size 24]

The network is the default of the joint-embedding experiments, forward and backward on two views of
each image, and a ViT for the masks. A share is augmentation / (augmentation + network).
"""

import argparse
from dataclasses import replace
import time

import jax
import jax.numpy as jnp
import numpy as np

from ssljax.data import images
from ssljax.data.views import MultiCrop, Views
from ssljax.losses.infonce import nt_xent_loss
from ssljax.losses.masked_image import block_masks
from ssljax.models.convnet import ConvNet
from ssljax.models.encoder import Chain
from ssljax.models.mlp import MLP
from ssljax.models.vit import ViT


def alternating(fs, rounds):
    """Median seconds of each of `fs`, {name: (function, arguments)}, called in turns."""
    fs = {name: (jax.jit(f), args) for name, (f, args) in fs.items()}
    seconds = {name: [] for name in fs}
    for _ in range(rounds):
        for name, (f, args) in fs.items():
            jax.block_until_ready(f(*args))  # Compiles at first, then warms the caches.
            start = time.perf_counter()
            jax.block_until_ready(f(*args))
            seconds[name].append(time.perf_counter() - start)
    return {name: float(np.median(s)) for name, s in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--view-size", type=int, default=0)
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 64, 128, 256])
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    train, key = images(args.data, "train"), jax.random.key(0)
    x = jnp.asarray(train.read(np.arange(args.batch_size))["image"])
    view = Views(view_size=args.view_size)
    crops = MultiCrop(view)
    net = Chain(encoder=ConvNet(tuple(args.widths)), head=MLP(widths=(256, 128), norm=True))
    two, many = view.several(key, {"image": x}, 2), crops(key, {"image": x})
    params, stats = net.init((key, key), two[:2])
    vit = ViT(patch=max(2, two.shape[1] // 8), depth=4, width=128, heads=4)
    weights, grid = (
        vit.init(key, two[:2])["params"],
        (two.shape[1] // vit.patch, two.shape[2] // vit.patch),
    )

    def agree(params, x):
        z, _ = net(params, stats, x, train=True)
        return nt_xent_loss(z[0::2], z[1::2], 0.1)

    def agree_crops(params, xs):
        z, _ = net.crops(params, stats, xs)
        return jnp.sum(z**2)

    seconds = alternating(
        {
            "two views": (lambda k, x: view.several(k, {"image": x}, 2), (key, x)),
            "... blurred and solarised too": (
                lambda k, x: replace(view, blur=0.5, solarize=0.2).several(k, {"image": x}, 2),
                (key, x),
            ),
            "two large views and two small": (crops, (key, x)),
            "a view and I-JEPA's masks": (
                lambda k, x: (view(k, {"image": x}), block_masks(k, len(x), grid, 4)),
                (key, x),
            ),
            "network, two views": (jax.grad(agree), (params, two)),
            "network, multi-crop": (jax.grad(agree_crops), (params, many)),
            "ViT, one view": (
                jax.grad(lambda p, x: jnp.sum(vit.apply({"params": p}, x) ** 2)),
                (weights, two[: len(x)]),
            ),
        },
        args.rounds,
    )
    print(
        f"{args.data}, {args.batch_size} images, views of {two.shape[1]}x{two.shape[2]}, "
        f"{jax.devices()[0].device_kind}"
    )
    for views, against in (
        ("two views", "network, two views"),
        ("... blurred and solarised too", "network, two views"),
        ("two large views and two small", "network, multi-crop"),
        ("a view and I-JEPA's masks", "ViT, one view"),
    ):
        a, n = seconds[views], seconds[against]
        print(
            f"{views:<32} {1e3 * a:7.2f} ms   {against:<20} {1e3 * n:7.2f} ms   "
            f"share {a / (a + n):.1%}"
        )


if __name__ == "__main__":
    main()
