"""Comparisons with other libraries on the same inputs and weights: see README.md."""
