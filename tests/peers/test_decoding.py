"""Image files against torchvision's loading and transforms, on the files themselves."""

import numpy as np
from PIL import Image
import pytest
from sklearn.datasets import load_sample_images

from ssljax.data.decode import Decoder

PHOTOS = [Image.fromarray(x) for x in load_sample_images().images]  # 640x427.


def both(row, tmp_path, size: int, form: str, scale: int = 1, **how) -> tuple:
    """Ours and torchvision's `Resize(size / 0.875)` and `CenterCrop(size)`."""
    transforms = row.peer("torchvision.transforms")
    theirs = transforms.Compose(
        [transforms.Resize(round(size / 0.875)), transforms.CenterCrop(size)]
    )
    found = []
    for i, photo in enumerate((*PHOTOS, PHOTOS[0].rotate(90, expand=True))):
        photo = photo.resize([scale * x for x in photo.size], Image.Resampling.BICUBIC)
        path = tmp_path / f"{i}.{form}"
        photo.save(path, **how)
        with Image.open(path) as picture:  # As `pil_loader` of torchvision's ImageFolder.
            found.append((Decoder(size, part=0.875)(path), theirs(picture.convert("RGB"))))
    return tuple(np.stack([np.asarray(x) for x in xs]) for xs in zip(*found))


@pytest.mark.parametrize("form", ["png", "jpg"])
@pytest.mark.parametrize("size", [112, 224])
def test_resize_and_center_crop(row, tmp_path, form, size):
    """Photographs read as `Resize(256)` and `CenterCrop(224)` read them

    torchvision's transforms of Pillow images, at 224 and 112 pixels.
    """
    row.agree(*both(row, tmp_path, size, form), 1 / 255)


@pytest.mark.parametrize("size", [64, 112, 224])
def test_resize_and_center_crop_of_large_jpegs(row, tmp_path, size):
    """Large JPEGs, decoded at a fraction of their size: mean difference

    torchvision decodes all pixels; ours a half, a quarter or an eighth, if that is still twice as
    many as are asked for. At most 15 of 255 where an edge is, in photographs of 1920x1281.
    """
    ours, theirs = both(row, tmp_path, size, "jpg", 3, quality=92)
    error = np.abs(ours.astype(int) - theirs)
    assert 0 < error.max() <= 15
    row.agree(error.mean(keepdims=True) / 255, np.zeros((1, 1, 1, 1)), 0.7 / 255)
