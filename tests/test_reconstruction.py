"""What the experiments of the reconstruction family are made of: evaluators against loops over a set."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.data import images
from ssljax.errors import InputError
from ssljax.evals.average import average, linear_floor


def test_an_average_is_over_each_image_once(devices):
    test = images("digits", "test")
    measure = lambda state, key, x, y: {"right": jnp.float32(y == 3), "bright": x.mean((1, 2, 3)) * state}
    want = {"right": np.mean(test.labels == 3), "bright": 2 * test.image.mean()}
    for size in (7, 100, 360, 1000):  # None of the first two divides 360: the last batch repeats images.
        assert average(measure, test, batch_size=size)(jnp.float32(2)) == pytest.approx(want, rel=1e-5)
    some = average(measure, test, n=11, batch_size=4)(jnp.float32(1))
    assert round(some["right"] * 11) == pytest.approx(some["right"] * 11)  # A count of 11, not of 12.
    noise = average(lambda state, key, x, y: {"u": jax.random.uniform(key, (len(x),))}, test)
    assert noise(jnp.float32(0)) == noise(jnp.float32(0))  # The same masks at each evaluation.
    with pytest.raises(InputError, match=r"a number for each|number for each of"):
        average(lambda state, key, x, y: {"bad": x}, test)(jnp.float32(0))


def test_the_linear_floor_is_an_svds():
    train, test = images("digits", "train"), images("digits", "test")
    x, y = (s.image.reshape(len(s), -1) / 255.0 for s in (train, test))
    v = np.linalg.svd(x - x.mean(0), full_matrices=False)[2][:7]
    rest = (y - x.mean(0)) - (y - x.mean(0)) @ v.T @ v
    floor = linear_floor(train, test, 7)(None)
    assert floor["pca"] == pytest.approx((rest**2).sum(1).mean(), rel=1e-4)
    assert floor["mean"] == pytest.approx(((y - x.mean(0)) ** 2).sum(1).mean(), rel=1e-4)
