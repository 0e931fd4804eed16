"""Gradient accumulation: a batch in parts, one after another, in the memory of one part."""

from collections.abc import Callable, Iterator
import contextlib
from dataclasses import dataclass
import math
from typing import Any

import flax.linen as nn
import jax
from jax import Array
from jax.extend import core
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from ssljax.errors import InputError
from ssljax.sharding import BATCH, batch_parts, platform

Tree = Any


class _ComparesExamples(Exception):
    """A function that needs the whole batch was given a part of it."""


@dataclass
class Accumulation:
    """How a step that is being traced splits its batch, and what tracing has found."""

    parts: int
    how: str = ""  # "gradients" or "representations", once it is known.
    splits: bool = False  # Whether nets split what they are given (`by_parts`).
    whole: bool = True  # Whether the loss sees the whole batch.
    sums: list[Array] | None = None  # Of a part, those that `mean_over_parts` is asked for;
    means: Iterator[Array] | None = None  # and its answers, once they are known.
    normalises: bool = False  # Whether a BatchNorm uses the statistics of a part.

    def __str__(self) -> str:
        said = {
            "gradients": "whose gradients are averaged",
            "representations": "which nets compute twice, and the loss sees together (GradCache)",
        }[self.how]
        norm = "; BatchNorm normalises each part by itself" if self.normalises else ""
        return f"in {self.parts} parts {said}{norm}"


_now: list[Accumulation] = []


def accumulated(step: Callable, parts: int) -> tuple[Callable, Accumulation]:
    """`step` of an experiment with each batch in `parts` parts, and how, once it has been traced.

    Of a loss that is a mean over examples, or over tokens (`mean_over_parts`), the gradients,
    metrics and floats of `extra` of the parts are averaged: a teacher, a centre and batch
    statistics move once a step, as with the whole batch. Each part starts from the state before the
    step and draws with a key of its own, so noise, masks and crops are others than those of the
    whole batch, of the same distribution.
    Perplexities and other metrics that are no means over examples are means over the parts.

    A loss that compares examples (`whole_batch`), or a queue, sees the whole batch: where the net
    is a `Chain`, or is called through `by_parts`, its outputs are computed in parts, and in parts
    once more for their gradients, with the values of the whole batch: GradCache (Gao et al., 2021,
    arXiv:2101.06983).

    A loss that compares all pairs of examples without saying so is found by the size of its
    arrays. One that compares them otherwise, as by their covariance, must call `whole_batch`: else
    its parts are averaged.

    BatchNorm normalises each part by itself in either case, which the whole batch does not.
    InputError, when the step is traced, where there is no such net, the step is not that of
    `minimize` or `alternate`, or the parts are not of one size.
    """
    found = Accumulation(parts)

    def step_in_parts(state: Tree, batch: Tree, key: Array) -> tuple[Tree, Tree]:
        with _accumulating(found):
            out = step(state, batch, key)
            if not found.how:
                needs_batch()
            return out

    return step_in_parts if parts > 1 else step, found


def whole_batch() -> None:
    """Says that the calling function compares examples, and is not to be given a part of a batch.

    It costs nothing outside of gradient accumulation, which then keeps the batch together.
    """
    if _now and not _now[-1].whole:
        raise _ComparesExamples


def rows(batch_size: int) -> int:
    """Examples that a loss is given of a batch: its size, or that of a part (`accumulated`).

    As many latents are to be drawn by a loss that draws without looking at the batch.
    """
    return batch_size if not _now or _now[-1].whole else batch_size // _now[-1].parts


def mean_over_parts(x: Array) -> Array:
    """The mean over the parts of a batch of a number that depends on no parameter: a count.

    A loss that divides a sum by a count which varies, of tokens for instance, divides by this, so
    that the mean of the parts' losses is the loss of the whole batch. Without parts it is `x`. Call
    it in the loss itself, not in a function that JAX transforms there.
    """
    if not _now or _now[-1].whole:
        return x
    found = _now[-1]
    if found.means is not None:
        return next(found.means)
    if found.sums is not None:
        found.sums.append(x)
    return x


def is_asked() -> bool:
    """Whether the step that is being traced is to be accumulated."""
    return bool(_now)


def in_parts(gradient: Callable, loss: Callable) -> Callable:
    """`gradient` of `loss`, (params, batch, key) -> ((value, aux), gradient), in parts."""
    return lambda params, batch, key: _in_parts(gradient, loss, params, batch, key)


def _in_parts(of: Callable, loss: Callable, params: Tree, batch: Tree, key: Array) -> Tree:
    found = _now[-1]
    n, parts = found.parts, jax.tree.map(lambda x: _split(x, found.parts), batch)
    first = jax.tree.map(lambda x: x[0], parts)
    found.whole, found.sums = False, []
    try:
        with nn.intercept_methods(_notice(found)):
            jaxpr, shapes = jax.make_jaxpr(of, return_shape=True)(params, first, key)
        if _grows_with_the_square(found, of, jaxpr, params, first, key):
            raise _ComparesExamples
        means = _means(found, loss, params, parts, key) if found.sums else []
    except _ComparesExamples:
        found.whole = True
        return _cached(found, of, params, batch, key)
    except (TypeError, ValueError) as e:
        if isinstance(e, InputError):
            raise
        raise InputError(
            "--run.accumulate: the loss can't be computed of a part of the batch, perhaps because "
            f"extra has a row for each example: leave it out ({str(e).splitlines()[0][:200]})."
        ) from e
    else:

        def add(total, i_part):
            i, part = i_part
            found.means = iter(means)
            new = of(params, part, jax.random.fold_in(key, i))
            return jax.tree.map(lambda a, b: a + b / n if _is_float(b) else b, total, new), None

        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, _wide(x)), shapes)
        total, _ = jax.lax.scan(add, zeros, (jnp.arange(n), parts), unroll=_unroll(jaxpr, n))
        found.how = "gradients"
        return jax.tree.map(lambda x, like: x.astype(like.dtype), total, shapes)
    finally:
        found.whole, found.sums, found.means = True, None, None


def _grows_with_the_square(found: Accumulation, of: Callable, jaxpr: Any, *args: Tree) -> bool:
    """Whether an array of a loss is four times as large for twice the examples.

    So are the similarities of all pairs, in a loss that doesn't call `whole_batch`.
    """
    params, part, key = args
    twice = lambda x: jax.ShapeDtypeStruct((2 * len(x), *x.shape[1:]), x.dtype)
    kept, found.sums = found.sums, []
    try:
        other = jax.make_jaxpr(of)(params, jax.tree.map(twice, part), key)
    except (AssertionError, TypeError, ValueError):  # It is of as many examples as a part has.
        return False
    finally:
        found.sums = kept
    sizes, larger = list(_sizes(jaxpr)), list(_sizes(other))
    if [name for name, _ in sizes] != [name for name, _ in larger]:
        return False  # A program that depends on the number of examples.
    return any(b >= 4 * a for (_, a), (_, b) in zip(sizes, larger, strict=True) if a)


def _sizes(jaxpr: Any) -> Iterator[tuple[str, int]]:
    """The operations of a program and the sizes of their results, in order."""
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        for inner in core.jaxprs_in_params(eqn.params):
            yield from _sizes(inner)
        for x in eqn.outvars:
            yield eqn.primitive.name, math.prod(getattr(x.aval, "shape", ()))


def _means(found: Accumulation, loss: Callable, params: Tree, parts: Tree, key: Array) -> Tree:
    """What `mean_over_parts` returns, by a pass over the parts that computes nothing else."""

    def sums(_, i_part):
        i, part = i_part
        found.sums = []
        loss(params, part, jax.random.fold_in(key, i))
        return None, found.sums

    every = jax.lax.scan(sums, None, (jnp.arange(found.parts), parts))[1]
    return [x.mean(0) for x in every]


def needs_batch() -> None:
    """InputError where a step is to be accumulated whose gradient is of no batch."""
    if _now:
        raise InputError(
            "--run.accumulate splits the batch of steps made by minimize or alternate, and this "
            "experiment has a step of its own: leave it out."
        )


def by_parts(f: Callable, params: Tree, x: Array, key: Array | None = None) -> Tree:
    """`f(params, x, key)` -> (outputs, statistics) of a net that treats rows of x (n, ...) alone.

    Where a step is accumulated whose loss compares examples, f is computed in parts, with keys of
    their own, and once more for the gradient, so that only the outputs are kept. Statistics are
    averaged over the parts then.
    """
    if not _now or not _now[-1].splits:
        return f(params, x, key)
    found = _now[-1]
    found.how, n = "representations", found.parts
    parts = _split(x, n)
    of = lambda i, part: f(params, part, None if key is None else jax.random.fold_in(key, i))
    with nn.intercept_methods(_notice(found)):
        jaxpr = jax.make_jaxpr(of)(0, parts[0])
    once_more = jax.checkpoint(of)
    ys, stats = jax.lax.scan(
        lambda _, part: (None, once_more(*part)),
        None,
        (jnp.arange(n), parts),
        unroll=_unroll(jaxpr, n),
    )[1]
    y = jax.tree.map(lambda y: y.swapaxes(0, 1).reshape(len(x), *y.shape[2:]), ys)
    return y, jax.tree.map(lambda s: s.mean(0), stats)


def _cached(found: Accumulation, of: Callable, params: Tree, batch: Tree, key: Array) -> Tree:
    found.splits = True
    try:
        out = of(params, batch, key)
    finally:
        found.splits = False
    if found.how != "representations":
        raise InputError(
            "--run.accumulate would change the result: this loss compares the examples of a batch, "
            "and its net is no Chain, whose outputs could be computed in parts: leave it out."
        )
    return out


def _split(x: Array, n: int) -> Array:
    """(batch, ...) as (n, batch / n, ...): part i has every n-th row from i on.

    So each device's rows of a part are among its rows of the batch.
    """
    mesh = jax.sharding.get_abstract_mesh()
    each, rest = divmod(len(x), batch_parts())
    if rest or each % n:
        raise InputError(
            f"--run.accumulate {n} can't split the {each} examples of each device evenly: choose "
            f"a divisor of {each}, or another --batch-size."
        )
    x = x.reshape(len(x) // n, n, *x.shape[1:]).swapaxes(0, 1)
    return x if mesh.empty else jax.lax.with_sharding_constraint(x, P(None, *BATCH))


def _notice(found: Accumulation) -> Callable:
    def notice(run, args, kwargs, context):
        norm = context.module
        if isinstance(norm, nn.BatchNorm) and context.method_name == "__call__":
            given = kwargs.get("use_running_average", args[1] if len(args) > 1 else None)
            found.normalises |= not (norm.use_running_average if given is None else given)
        return run(*args, **kwargs)

    return notice


def _unroll(jaxpr: Any, n: int) -> int:
    """On a CPU, convolutions inside lax.scan run an order of magnitude slower."""
    return n if platform() == "cpu" and "conv_general_dilated" in str(jaxpr) else 1


def _is_float(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating)


def _wide(x: Any) -> Any:
    return jnp.promote_types(x.dtype, jnp.float32) if _is_float(x) else x.dtype


@contextlib.contextmanager
def _accumulating(found: Accumulation) -> Iterator[None]:
    _now.append(found)
    try:
        yield
    finally:
        _now.pop()
