"""Smallest real experiment: an autoencoder on the digits; also a program that tests can kill."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
import time
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ssljax import Experiment, InputError, main, minimize, sharding, TrainState
from ssljax.data import augment, feed, images
from ssljax.models.mlp import MLP
from ssljax.origin import Origin


def tiny(
    width: int = 16,
    batch_size: int = 32,
    num_steps: int = 40,
    lr: float = 1e-2,
    noise: float = 0.1,
    nan_at: int = -1,
    delay: float = 0.0,
    norm: bool = True,
) -> Experiment:
    """Denoising autoencoder with BatchNorm, dropout-like noise, and the faults a test asks for."""
    net = MLP((width, 64), norm=norm)
    tx = optax.adam(lr)
    train = images("digits", "train")

    def init(key, batch):
        variables = net.init(key, augment.to_float(batch["image"]))
        return TrainState.create(tx, variables["params"], stats=variables.get("batch_stats", {}))

    def loss(params, state, batch, key):
        x = augment.to_float(batch["image"])
        noisy = x + noise * jax.random.normal(key, x.shape)
        y, new = net.apply(
            {"params": params, "batch_stats": state.extra["stats"]},
            noisy,
            train=True,
            mutable=["batch_stats"],
        )
        value = jnp.mean((y - x.reshape(len(x), -1)) ** 2)
        value = jnp.where(state.step == nan_at, jnp.log(-jnp.abs(value)), value)
        if delay:
            jax.debug.callback(lambda: time.sleep(delay))
        return value, ({"stats": new.get("batch_stats", {})}, {"loss": value, "twice": 2 * value})

    def evaluate(state):
        x = augment.to_float(jnp.asarray(images("digits", "test").image))
        y = net.apply({"params": state.params, "batch_stats": state.extra["stats"]}, x)
        return {"error": jnp.mean((y - x.reshape(len(x), -1)) ** 2)}

    if lr <= 0:
        raise InputError(f"lr must be positive, not {lr}.")
    return Experiment(
        init=init,
        step=minimize(tx, loss),
        data=feed(train, batch_size),
        num_steps=num_steps,
        evals={"test": evaluate},
        partition=partial(sharding.fsdp, min_size=1),
    )


def made_with(exp: Experiment, computes: Mapping[str, Any], **more: Any) -> Experiment:
    """`exp` as of a function of these arguments, whose origin has `more`."""
    return replace(exp, origin=Origin(computes, **more))


if __name__ == "__main__":
    main(tiny)
