"""Small settings of every experiment, of embedded data, with which tests train it."""

from collections.abc import Mapping
from dataclasses import replace
import importlib
import inspect
import pathlib
from typing import Any

from ssljax import Experiment
from ssljax.data import PlainImages
from ssljax.data.image_sets import DEFAULT
from ssljax.data.views import MultiCrop
from ssljax.models import has_field, with_fields
from ssljax.models.convnet import ConvNet
from ssljax.models.mlp import MLP
from ssljax.models.transformer import Transformer
from ssljax.models.unet import TimeUNet
from ssljax.models.vit import ViT

SMALL = {
    "encoder": ConvNet(widths=(8, 16)),
    "batch_size": 32,
    "widths": (8, 16),
    "width": 8,
    "vit": ViT(patch=2, width=96, depth=4, heads=3),
    "crops": MultiCrop(),
    "embedding": 10,
    "critic_steps": 2,
    "adversarial": 0.5,
    "net": Transformer(2, 2, 16, dropout=0.1),
    "text": Transformer(2, 2, 16, dropout=0.1),
    "unet": TimeUNet(widths=(8, 16), heads=2, groups=4),
    "sampling_steps": 4,
    "importance": 500,
    "length": 16,
    "vocabulary": 512,
    "predictor": MLP((16, 128), norm=True),
    "queue": 64,
    "prototypes": 8,
}


def make(
    file: pathlib.Path, num_steps: int, settings: Mapping[str, Any] = SMALL, **changes: Any
) -> Experiment:
    """The experiment of a file, with those of `settings` and `changes` that it has."""
    function, arguments = small(file, settings | changes)
    return replace(function(**arguments), num_steps=num_steps)


def make_in(file: pathlib.Path, dtype: str) -> Experiment | None:
    """The experiment of a file, computed in `dtype`; None where it has no such flag."""
    function, arguments = small(file, SMALL)
    bound = inspect.signature(function).bind(**arguments)
    bound.apply_defaults()
    if not has_field(bound.arguments, "dtype"):
        return None if dtype != "float32" else function(**arguments)
    return function(**with_fields(bound.arguments, dtype=dtype))


def small(file: pathlib.Path, settings: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The function of a file, and its arguments."""
    function = getattr(importlib.import_module(f"experiments.{file.stem}"), file.stem)
    known = inspect.signature(function).parameters
    if "data" in known and isinstance(images := known["data"].default, PlainImages):
        name = "digits" if images.data == DEFAULT else images.data  # Smaller, for time.
        images = replace(images, data=name, image_size=settings.get("image_size", 0))
        settings = {"data": images} | settings
    return function, {k: v for k, v in settings.items() if k in known}
