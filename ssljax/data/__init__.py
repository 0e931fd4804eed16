"""Data: sets of images and texts, their order, and how batches of them reach the devices."""

from ssljax.data.feed import feed, few, Rows, steps_of
from ssljax.data.image_sets import Images, images, PlainImages

__all__ = ["Images", "PlainImages", "Rows", "feed", "few", "images", "steps_of"]
