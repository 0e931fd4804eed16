"""Data: sets of images and texts, their order, and how batches of them reach the devices."""

from ssljax.data.feed import feed, Rows, steps_of
from ssljax.data.image_sets import images

__all__ = ["Rows", "feed", "images", "steps_of"]
