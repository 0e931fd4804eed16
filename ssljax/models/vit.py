"""Vision Transformer, on an image as a sequence of patches.

Dosovitskiy et al., 2020, https://arxiv.org/abs/2010.11929.
"""

import functools
import math
from typing import Any, Literal

import flax.linen as nn
import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

from ssljax.errors import InputError
from ssljax.models import Dtype, recomputed, Remat
from ssljax.models.attention import attend, Projections
from ssljax.models.dense import WIDE
from ssljax.ranges import Count

Tree = Any
BLOCKS = (
    "Blocks_0"  # A parameter's name seeds its initial value, and older checkpoints have this one.
)


class ViT(nn.Module):
    """Images (n, height, width, channels) to features (n, width): pre-norm blocks on patches."""

    patch: Count = 4
    """Side of a patch in pixels; the image's sides must be multiples."""
    width: Count = 192
    """Channels of a token."""
    depth: Count = 6
    """Number of blocks."""
    heads: Count = 3
    """Attention heads; the width must be a multiple."""
    pool: Literal["mean", "token"] = "mean"
    """Features: the mean over the patches' tokens, or a class token."""
    positions: Literal["sincos", "learned"] = "sincos"
    """Fixed sines and cosines, or learned vectors, resampled for images of another size."""
    dtype: Dtype = "float32"
    """Precision of computation; parameters are float32."""
    remat: Remat = "none"
    """Compute blocks a second time for the gradient, which takes less memory and more time:
    whole blocks, or all but their matrix products."""

    def setup(self) -> None:
        self.embed = nn.Dense(self.width, dtype=self.dtype, **WIDE)
        if self.pool == "token":
            self.token = self.param("token", nn.initializers.normal(0.02), (self.width,))
        if self.positions == "learned":
            self.places = LearnedPositions()
        self.blocks = ViTBlocks(self.depth, self.heads, self.dtype, self.remat)

    def __call__(self, x: Array, train: bool = False) -> Array:
        y = self.tokens(x)
        return (y[:, 0] if self.pool == "token" else y.mean(1)).astype(jnp.float32)

    def tokens(
        self,
        x: Array,
        keep: Array | None = None,
        hidden: Array | None = None,
        blank: Array | None = None,
        seen: Array | None = None,
    ) -> Array:
        """Final tokens, (n, patches, width), after the class token if there is one.

        `keep`, (n, k), are the indices of visible patches, by default all, as in MAE. `blank`,
        (width,), replaces the embedded patches where `hidden`, (n, patches), is true, as in SimMIM.
        Patches where `seen`, (n, patches), is false are not attended to, as in I-JEPA.
        """
        h, w = (s // self.patch for s in x.shape[1:3])
        y = self.embed(patchify(x, self.patch).astype(self.dtype))
        if hidden is not None:
            if blank is None:
                raise InputError("Hidden patches need `blank`, which they are replaced by.")
            y = jnp.where(hidden[:, :, None], blank.astype(y.dtype), y)
        place = (
            self.places(h, w, self.width)
            if self.positions == "learned"
            else sincos_positions(h, w, self.width)
        )
        y = y + place.astype(y.dtype)
        if keep is not None:
            y = jnp.take_along_axis(y, keep[:, :, None], axis=1)
        if self.pool == "token":
            y = jnp.concatenate(
                [jnp.broadcast_to(self.token.astype(y.dtype), (len(y), 1, self.width)), y], axis=1
            )
            seen = None if seen is None else jnp.pad(seen, ((0, 0), (1, 0)), constant_values=True)
        return self.blocks(y, seen)


class LearnedPositions(nn.Module):
    """Learned positions of h x w patches, (h w, width), resampled if the table has another size."""

    @nn.compact
    def __call__(self, h: int, w: int, width: int) -> Array:
        if not self.has_variable("params", "table"):
            return self.param("table", nn.initializers.normal(0.02), (h, w, width)).reshape(
                -1, width
            )
        return resampled(self.get_variable("params", "table"), h, w).reshape(-1, width)


def resampled(table: Array, h: int, w: int) -> Array:
    """A table of positions, (height, width, d), as (h, w, d): antialiased bicubic, as in timm."""
    if table.shape[:2] == (h, w):
        return table
    return jax.image.resize(table, (h, w, table.shape[2]), "cubic", antialias=True)


def at_places_of(params: Tree, like: Tree) -> Tree:
    """The parameters of a net with its learned positions, if any, resampled to the size in
    `like`."""

    def fit(path, old, new):
        learned = jax.tree_util.keystr(path).endswith("['places']['table']")
        return resampled(old, *new.shape[:2]) if learned else old

    return jax.tree_util.tree_map_with_path(fit, params, like)


class MAEDecoder(nn.Module):
    """Tokens of the visible patches, (n, seen, d), to pixels of all, (n, patches, patch² channels).

    A learned token stands for each masked patch: He et al., 2021, arXiv:2111.06377, section 3.
    """

    grid: tuple[int, int]
    """Rows and columns of patches."""
    out: int
    """Numbers of a patch's pixels, patch² channels."""
    width: Count = 128
    """Channels of a token."""
    depth: Count = 2
    """Number of blocks."""
    heads: Count = 4
    """Attention heads; the width must be a multiple."""
    dtype: Dtype = "float32"
    """Precision of computation; parameters are float32."""
    remat: Remat = "none"
    """What is computed a second time for the gradient, as in `ViT`."""

    @nn.compact
    def __call__(self, y: Array, place: Array) -> Array:
        """`place`, (n, patches), is the index of each patch among the visible, or seen or more."""
        y = nn.Dense(self.width, dtype=self.dtype, **WIDE)(y)
        blank = self.param("blank", nn.initializers.normal(0.02), (self.width,)).astype(y.dtype)
        y = jnp.concatenate([y, jnp.broadcast_to(blank, (len(y), 1, self.width))], axis=1)
        y = jnp.take_along_axis(y, jnp.minimum(place, y.shape[1] - 1)[:, :, None], axis=1)
        y = y + sincos_positions(*self.grid, self.width).astype(y.dtype)
        y = ViTBlocks(self.depth, self.heads, self.dtype, self.remat, name=BLOCKS)(y)
        return nn.Dense(self.out, dtype=self.dtype, **WIDE)(y).astype(jnp.float32)


class Predictor(nn.Module):
    """I-JEPA's predictor: tokens of visible patches to features of target patches.

    Tokens are (n, patches, d) and features (n, patches, out), of which only the `asked` ones mean
    anything. A learned token stands for each target: Assran et al., 2023, arXiv:2301.08243, section
    3.
    """

    grid: tuple[int, int]
    """Rows and columns of patches."""
    out: int
    """Channels of the predicted features."""
    width: Count = 48
    """Channels of a token."""
    depth: Count = 2
    """Number of blocks."""
    heads: Count = 3
    """Attention heads; the width must be a multiple."""
    dtype: Dtype = "float32"
    """Precision of computation; parameters are float32."""
    remat: Remat = "none"
    """What is computed a second time for the gradient, as in `ViT`."""

    @nn.compact
    def __call__(self, y: Array, seen: Array, asked: Array) -> Array:
        """`seen` and `asked`, (n, patches), are disjoint; patches in neither are not attended
        to."""
        y = nn.Dense(self.width, dtype=self.dtype, **WIDE)(y)
        blank = self.param("blank", nn.initializers.normal(0.02), (self.width,)).astype(y.dtype)
        y = jnp.where(seen[:, :, None], y, blank) + sincos_positions(*self.grid, self.width).astype(
            y.dtype
        )
        y = ViTBlocks(self.depth, self.heads, self.dtype, self.remat, name=BLOCKS)(y, seen | asked)
        return nn.Dense(self.out, dtype=self.dtype, **WIDE)(y).astype(jnp.float32)


class ViTBlocks(nn.Module):
    """Pre-norm Transformer blocks and a final norm on tokens (n, tokens, width).

    Tokens where `seen`, (n, tokens), is false are not attended to. GELU is exact and ε 1e-6, as in
    timm.
    """

    depth: int
    """Number of blocks."""
    heads: int
    """Attention heads; the width must be a multiple."""
    dtype: Dtype = "float32"
    """Precision of computation; parameters are float32."""
    remat: Remat = "none"
    """What is computed a second time for the gradient, as in `ViT`."""

    @nn.compact
    def __call__(self, x: Array, seen: Array | None = None) -> Array:
        n, t, d = x.shape
        mask = None if seen is None else seen[:, None, None]
        if d % self.heads:
            raise InputError(
                f"{self.heads} heads can't share {d} channels evenly: choose a divisor of {d}."
            )
        xavier = nn.initializers.xavier_uniform()
        same = {"dtype": self.dtype, "kernel_init": xavier, **WIDE}
        dense = lambda width, name: nn.Dense(width, name=name, **same)
        heads = lambda width, name: Projections(width, name=name, heads=self.heads, **same)
        norm = lambda name: nn.LayerNorm(1e-6, dtype=self.dtype, name=name)

        def block(_, x, mask, i):
            y = heads(3 * d, f"qkv{i}")(norm(f"norm{i}a")(x)).reshape(n, t, 3, self.heads, -1)
            q, k, v = (y[:, :, j] for j in range(3))
            x = x + dense(d, f"out{i}")(attend(q, k, v, mask=mask).reshape(n * t, d))
            y = nn.gelu(dense(4 * d, f"up{i}")(norm(f"norm{i}b")(x)), approximate=False)
            return x + dense(d, f"down{i}")(y)

        x = x.reshape(n * t, d)  # XLA on a CPU is far slower on three dimensions.
        for i in range(1, self.depth + 1):
            x = recomputed(functools.partial(block, i=i), self, self.remat)(x, mask)
        return norm("norm")(x).reshape(n, t, d)


def patchify(x: Array, patch: int) -> Array:
    """Images (n, height, width, c) to patches (n, patches, patch² c), row by row.

    InputError unless the sides are multiples of `patch`.
    """
    n, h, w, c = x.shape
    if h % patch or w % patch:
        raise InputError(
            f"Patches of {patch} pixels can't tile images of {h}x{w}: choose one that divides both."
        )
    x = x.reshape(n, h // patch, patch, w // patch, patch, c).swapaxes(2, 3)
    return x.reshape(n, -1, patch * patch * c)


def unpatchify(y: Array, shape: tuple[int, ...]) -> Array:
    """Patches (n, patches, patch² c) to images (n, *shape): the inverse of `patchify`."""
    h, w, c = shape
    patch = math.isqrt(y.shape[-1] // c)
    y = y.reshape(-1, h // patch, w // patch, patch, patch, c).swapaxes(2, 3)
    return y.reshape(-1, h, w, c)


def sincos_positions(h: int, w: int, width: int) -> Array:
    """Fixed positions of h x w patches, (h w, width).

    Half of the channels are of the row, half of the column; half of each are sines, half cosines,
    at wavelengths from 2π to 20,000π. MAE's code has the column's channels first, which is a
    permutation of channels: swap the halves to exchange weights. InputError unless 4 divides the
    width.
    """
    if width % 4:
        raise InputError(
            f"Sine and cosine positions in two directions need a width that 4 divides, not {width}."
        )
    omega = 10_000.0 ** -(np.arange(width // 4) / (width // 4))
    rows, columns = (a.reshape(-1, 1) * omega for a in np.mgrid[:h, :w])
    return jnp.asarray(
        np.concatenate([f(a) for a in (rows, columns) for f in (np.sin, np.cos)], axis=1),
        jnp.float32,
    )
