"""FLOPs of a program, counted from its jaxpr, before any compiler: of all devices together.

Products and convolutions are counted as XLA does (HloCostAnalysis): a multiplication and an
addition for each pair of elements that meet, and none for padding or for the zeros that a stride
puts between. Every other operation counts its outputs, a reduction its inputs; transcendental
functions count one as well. A scan is counted for each of its iterations.
"""

from collections.abc import Sequence
from dataclasses import dataclass
import math
from typing import Any

from jax.extend import core
from jax.interpreters import partial_eval
import numpy as np

# What moves or renames elements and computes nothing.
FREE = frozenset(
    {
        "broadcast_in_dim",
        "reshape",
        "transpose",
        "squeeze",
        "expand_dims",
        "concatenate",
        "slice",
        "dynamic_slice",
        "dynamic_update_slice",
        "gather",
        "iota",
        "copy",
        "copy_p",
        "pad",
        "rev",
        "bitcast_convert_type",
        "stop_gradient",
        "sharding_constraint",
        "device_put",
        "optimization_barrier",
        "split",
        "create_token",
        "random_wrap",
        "random_unwrap",
        "symbolic_zeros",
        "mesh_cast",
        "reshard",
        "axis_index",
        "empty",
        "convert_element_type",
    }
)
REDUCTIONS = frozenset(
    {
        "reduce_sum",
        "reduce_max",
        "reduce_min",
        "reduce_prod",
        "reduce_and",
        "reduce_or",
        "argmax",
        "argmin",
        "reduce_xor",
        "reduce",
        "cumsum",
        "cumprod",
        "cummax",
        "cummin",
        "cumlogsumexp",
    }
)
CUDNN = "dot_product_attention_"
HASH = 100  # Of a random number by Threefry-2x32: 20 rounds of 4 for two, and what is around them.


@dataclass
class Flops:
    """FLOPs by the type in which products are computed, and those of all other operations."""

    products: dict[str, float]
    others: float = 0.0
    unknown_loops: int = 0  # While loops without a known number of iterations, counted once.

    @property
    def total(self) -> float:
        return sum(self.products.values()) + self.others


def count_flops(jaxpr: Any) -> Flops:
    """FLOPs of a (closed) jaxpr, without those whose results nothing needs."""
    found = Flops({})
    inner = getattr(jaxpr, "jaxpr", jaxpr)
    needed, _ = partial_eval.dce_jaxpr(inner, [True] * len(inner.outvars))
    _count(needed, 1.0, found)
    return found


def _count(jaxpr: Any, times: float, found: Flops) -> None:
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        name, params = eqn.primitive.name, eqn.params
        if name == "dot_general":
            _add_product(eqn, times * _dot(eqn), found)
        elif name == "conv_general_dilated":
            _add_product(eqn, times * _convolution(eqn), found)
        elif name == "scan":
            _count(params["jaxpr"], times * params["length"], found)
        elif name == "while":
            trips = _trips(eqn)
            found.unknown_loops += trips is None
            _count(params["body_jaxpr"], times * (trips or 1), found)
        elif name == "cond":
            branches = [count_flops(branch) for branch in params["branches"]]
            costly = max(branches, key=lambda branch: branch.total)
            for kind, n in costly.products.items():
                found.products[kind] = found.products.get(kind, 0) + times * n
            found.others += times * costly.others
            found.unknown_loops += costly.unknown_loops
        elif name == "shard_map":
            _count(params["jaxpr"], times * params["mesh"].size, found)
        elif name == "pallas_call":
            _kernel(eqn, times, found)
        elif name in ("random_bits", "threefry2x32"):
            found.others += times * HASH * sum(_size(v.aval) for v in eqn.outvars) / 2
        elif name.startswith(CUDNN):
            _add_product(eqn, times * _cudnn(eqn, 2 if "_fwd" in name else 5), found)
        elif name in ("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"):
            _count(params.get("call_jaxpr") or params["fun_jaxpr"], times, found)
        elif inner := list(core.jaxprs_in_params(params)) if _has_program(eqn) else []:
            for one in inner:
                _count(one, times, found)
        elif name in REDUCTIONS:
            found.others += times * sum(_size(v.aval) for v in eqn.invars)
        elif name.startswith("scatter"):
            found.others += times * _size(eqn.invars[-1].aval)
        elif name in ("sort", "top_k", "approx_top_k"):
            n = max(eqn.invars[0].aval.shape or (1,))
            found.others += times * _size(eqn.invars[0].aval) * math.log2(max(2, n))
        elif name not in FREE:
            found.others += times * sum(_size(v.aval) for v in eqn.outvars)


def _has_program(eqn: Any) -> bool:
    """Whether an operation is a program of others, rather than one that has one for a scalar."""
    return not eqn.primitive.name.startswith(("scatter", "reduce", "sort"))


def _size(aval: Any) -> int:
    return math.prod(getattr(aval, "shape", ()))


def _add_product(eqn: Any, flops: float, found: Flops) -> None:
    kinds = [v.aval.dtype for v in eqn.invars[:2]]
    kind = max((np.dtype(k) for k in kinds), key=lambda k: k.itemsize).name
    found.products[kind] = found.products.get(kind, 0) + flops


def _dot(eqn: Any) -> float:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    k = math.prod(eqn.invars[0].aval.shape[i] for i in contracted)
    return 2.0 * _size(eqn.outvars[0].aval) * k


def _cudnn(eqn: Any, products: int) -> float:
    """Products of cuDNN's attention, of masked scores as of others; its gradient's take five."""
    (n, t, heads, d), keys = (v.aval.shape for v in eqn.invars[:2])
    return 2.0 * products * n * t * keys[1] * heads * d


def _convolution(eqn: Any) -> float:
    """2 · (pairs of an output's place and a kernel's that meet an input) · batch · features."""
    p, (x, w) = eqn.params, (v.aval.shape for v in eqn.invars[:2])
    numbers, out = p["dimension_numbers"], eqn.outvars[0].aval.shape
    pairs = 1.0
    for axis, (i, k, o) in enumerate(
        zip(numbers.lhs_spec[2:], numbers.rhs_spec[2:], numbers.out_spec[2:], strict=True)
    ):
        pairs *= _meeting(
            x[i],
            w[k],
            out[o],
            p["window_strides"][axis],
            p["padding"][axis][0],
            p["lhs_dilation"][axis],
            p["rhs_dilation"][axis],
        )
    batch, features = out[numbers.out_spec[0]], out[numbers.out_spec[1]]
    return 2.0 * pairs * batch * features * w[numbers.rhs_spec[1]]


def _meeting(
    n: int, kernel: int, out: int, stride: int, low: int, spread: int, dilation: int
) -> int:
    """Pairs (output, kernel element) along an axis that meet one of `n` inputs, `spread` apart."""
    at = np.arange(out)[:, None] * stride + np.arange(kernel) * dilation - low
    return int(np.sum((at >= 0) & (at < (n - 1) * spread + 1) & (at % spread == 0)))


def _trips(eqn: Any) -> int | None:
    """Iterations of a while loop that counts from one literal to another; None of others."""
    condition = getattr(eqn.params["cond_jaxpr"], "jaxpr", eqn.params["cond_jaxpr"])
    if len(condition.eqns) != 1 or condition.eqns[0].primitive.name != "lt":
        return None
    a, b = condition.eqns[0].invars
    consts = eqn.params["cond_nconsts"]
    values = [*eqn.invars[:consts], *eqn.invars[consts + eqn.params["body_nconsts"] :]]

    def value(v: Any) -> int | None:
        if isinstance(v, core.Literal):
            return int(v.val)
        given = values[condition.invars.index(v)]
        return int(given.val) if isinstance(given, core.Literal) else None

    start, end = value(a), value(b)
    return None if start is None or end is None else max(0, end - start)


def _kernel(eqn: Any, times: float, found: Flops) -> None:
    """A kernel of Pallas: what its author says it costs, or its program for each cell of a grid."""
    cost = eqn.params.get("cost_estimate")
    if cost is not None:
        _add_product(eqn, times * cost.flops, found)
        return
    grid: Sequence[Any] = eqn.params["grid_mapping"].grid
    cells = math.prod(n for n in grid if isinstance(n, int))
    _count(eqn.params["jaxpr"], times * cells, found)
