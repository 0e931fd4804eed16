"""Masked image modelling and positions against lightly, timm, transformers and PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.losses.masked_image import (
    block_masks,
    masked_patch_loss,
    patch_statistics,
    random_mask,
)
from ssljax.models.vit import patchify, resampled, sincos_positions
from tests.peers.torch_side import agree_with_gradients, tensor


def masked_example() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predictions (n, patches, d), images and which patches are hidden."""
    rng = np.random.default_rng(0)
    x = rng.random((6, 16, 16, 3)).astype(np.float32)
    y = rng.normal(size=(6, 16, 48)).astype(np.float32)
    return y, x, rng.random((6, 16)) < 0.75


def test_patches(row):
    """Patches of images

    lightly's `patchify`.
    """
    utils = row.peer("lightly.models.utils")
    x = masked_example()[1]
    theirs = utils.patchify(tensor(x).permute(0, 3, 1, 2), 4)
    row.agree(patchify(jnp.asarray(x), 4), theirs, 1e-6)


def test_mae(row):
    """MAE's loss on normalised patches, value and gradient

    lightly's `patchify` and `normalize_mean_var`, squared errors averaged over hidden patches.
    """
    utils = row.peer("lightly.models.utils")
    y, x, hidden = masked_example()
    target = utils.patchify(tensor(x).permute(0, 3, 1, 2), 4)
    target = utils.normalize_mean_var(target)
    theirs = lambda y: (y - target).square()[tensor(hidden)].mean()

    def ours(y):
        patches = patchify(jnp.asarray(x), 4)
        mean, deviation = patch_statistics(patches)
        return masked_patch_loss(y, (patches - mean) / deviation, jnp.asarray(hidden))

    agree_with_gradients(row, 1e-5, ours, theirs, y)


def test_simmim(row):
    """SimMIM's loss, value and gradient

    PyTorch's `l1_loss` on the hidden patches.
    """
    functional = row.peer("torch.nn.functional")
    y, x, hidden = masked_example()
    target = np.asarray(patchify(jnp.asarray(x), 4))
    theirs = lambda y: functional.l1_loss(y[tensor(hidden)], tensor(target)[tensor(hidden)])
    ours = lambda y: masked_patch_loss(y, target, jnp.asarray(hidden), power=1)
    agree_with_gradients(row, 1e-5, ours, theirs, y)


def seen_patches(row, side: int, share: float) -> tuple[int, int]:
    """How many of side² patches ours and lightly's mask leave visible."""
    utils = row.peer("lightly.models.utils")
    n = side**2
    ours = random_mask(jax.random.key(0), 2, n, share)[0].shape[1]
    theirs = utils.random_token_mask((2, n), share, mask_class_token=True)[0].shape[1]
    return ours, theirs


def test_random_mask(row):
    """Number of patches that are seen

    ⌊L(1 - s)⌋ in lightly and MAE's code, of a product in floating point that may lie just below an
    integer: of 100 patches 9 are seen at s = 0.9. Ours is 10 there. Converted: where L(1 - s) is no
    integer, and at s = 0.75.
    """
    counts = [
        seen_patches(row, side, share)
        for side in range(4, 17)
        for share in (0.6, 0.75, 0.9)
        if share == 0.75 or round(100 * side**2 * (1 - share)) % 100
    ]
    row.agree(*np.array(counts).T, 0)
    row.differ(*seen_patches(row, 10, 0.9), 0.1)


def block_sizes(**options) -> np.ndarray:
    """Heights and widths of 8,000 blocks of a 14 x 14 grid, (8000, 2)."""
    masks = np.asarray(block_masks(jax.random.key(0), 2000, (14, 14), 4, **options))
    masks = masks.reshape(-1, 14, 14)
    return np.stack([masks.any(2).sum(1), masks.any(1).sum(1)], axis=1)


def shares(sizes: np.ndarray) -> np.ndarray:
    """How often each height and width occur together, (15, 15)."""
    return np.histogram2d(*sizes.T, bins=(np.arange(16) - 0.5,) * 2)[0] / len(sizes)


def test_ijepa_blocks(row):
    """I-JEPA's target blocks: how often each height and width occur together

    The paper draws area and aspect independently, as ours does by default; the authors' code (and
    lightly's `IJEPAMaskCollator`) takes both from the same number (`correlated=True` here). By
    chance, over 8,000 blocks.
    """
    collate = row.peer("lightly.data.ijepa_collate")
    torch = row.peer("torch")
    del row.peers["torch"]
    collator = collate.IJEPAMaskCollator()
    generator = torch.Generator().manual_seed(0)
    theirs = [collator._sample_block_size(generator, (0.15, 0.2), (0.75, 1.5)) for _ in range(8000)]
    theirs = shares(np.array(theirs))
    row.agree(shares(block_sizes(correlated=True)), theirs, 5e-2)
    row.differ(shares(block_sizes()), theirs, 0.3)


def test_sincos_timm(row):
    """Sine-cosine positions, timm's order

    `build_sincos2d_pos_embed` has all sines before all cosines, ours the row before the column: a
    permutation of channels, which no net notices. Converted: permuted.
    """
    module = row.peer("timm.layers.pos_embed_sincos")
    ours = np.asarray(sincos_positions(6, 9, 64))
    theirs = module.build_sincos2d_pos_embed([6, 9], 64).numpy()
    permuted = ours.reshape(-1, 2, 2, 16).swapaxes(1, 2).reshape(-1, 64)
    row.agree(permuted, theirs, 1e-5)
    row.differ(ours, theirs, 0.5)


def test_sincos_mae(row):
    """Sine-cosine positions, MAE's order

    MAE's code (lightly has a copy) gives its first half of the channels to the column, ours and
    transformers' to the row: a permutation of channels, which no net notices. Converted: permuted.
    """
    utils = row.peer("lightly.models.utils")
    ours = np.asarray(sincos_positions(7, 7, 64))
    theirs = utils.get_2d_sine_cosine_positional_embedding(64, 7, cls_token=False)
    row.agree(np.roll(ours, 32, axis=1), theirs, 1e-5)
    row.differ(ours, theirs, 0.5)


def test_sincos_transformers(row):
    """Sine-cosine positions

    transformers' `build_2d_sinusoidal_position_embedding`.
    """
    module = row.peer("transformers.models.vit_mae.modeling_vit_mae")
    theirs = module.build_2d_sinusoidal_position_embedding(6, 9, 64).numpy()
    row.agree(sincos_positions(6, 9, 64), theirs, 1e-5)


@pytest.mark.parametrize(
    "sizes", [(14, 16), (8, 5), (7, 14), (6, 9)], ids=lambda s: f"{s[0]}-{s[1]}"
)
def test_resampled_positions(row, sizes):
    """Learned positions on another grid

    timm's `resample_abs_pos_embed`, with its antialiasing.
    """
    pos_embed = row.peer("timm.layers.pos_embed")
    old, new = sizes
    table = np.random.default_rng(0).normal(size=(old, old, 8)).astype(np.float32)
    theirs = pos_embed.resample_abs_pos_embed(
        tensor(table.reshape(1, -1, 8)).float(), [new, new], [old, old], num_prefix_tokens=0
    )
    row.agree(resampled(jnp.asarray(table), new, new).reshape(1, -1, 8), theirs, 1e-5)
