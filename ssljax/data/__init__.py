"""Data: sets of images, their order, and how batches of them reach the devices."""

from ssljax.data.feed import feed
from ssljax.data.sources import images

__all__ = ["feed", "images"]
