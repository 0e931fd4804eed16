"""Losses: arrays in, a scalar out, over the global batch; each names its paper and equation."""
