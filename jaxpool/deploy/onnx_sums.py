"""Primitives that reduce axes: sums, extrema, products of matrices, convolutions."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxpool.deploy.agreement import DeployError
from jaxpool.deploy.onnx_graph import (
    Graph,
    Rule,
    Value,
    astype,
    constant,
    is_constant,
    widened,
)
from jaxpool.deploy.onnx_program import traced
from jaxpool.deploy.onnx_shapes import padded, reversed_along

__all__ = ["RULES", "mean_of", "reduced_in"]


def mean_of(
    count: Any, mean: Callable[[], Value], op: str, other: Value
) -> Value | None:
    """`mean()`, if dividing (or multiplying) a sum of `count` by `other` makes it that.

    What is multiplied by has to be the exact inverse.
    """
    given = np.asarray(other.data, np.float64)
    if op == "mul":
        if not np.all(np.frexp(given)[0] == 0.5):
            return None
        given = 1 / given
    return mean() if np.all(given == np.asarray(count, np.float64)) else None


def reduced_in(op: str, dtype: Any) -> np.dtype:
    """The dtype to reduce in: onnxruntime's sums of int32 do not wrap around."""
    wide = widened(dtype)
    return np.dtype(np.int64) if (op, wide) == ("ReduceSum", np.int32) else wide


def _reduction(op: str) -> Rule:
    def rule(g, eqn, x):
        aval, axes = eqn.outvars[0].aval, eqn.params["axes"]
        if not axes:
            return x
        x = astype(g, x, reduced_in(op, x.dtype))
        places = g.ints(sorted(x.layout.index(axis) for axis in axes))
        kept = [axis for axis in range(len(x.shape)) if axis not in axes]
        layout = tuple(kept.index(axis) for axis in x.layout if axis not in axes)

        def reduced(op):
            name = g.node(op, g.tensor(x, x.layout), places, keepdims=0)
            return g.value(name, aval, layout=layout, dtype=x.dtype)

        y = reduced(op)
        if op == "ReduceSum" and aval.dtype == x.dtype and aval.dtype.kind == "f":
            if all(isinstance(x.shape[axis], int) for axis in axes):
                count = math.prod(x.shape[axis] for axis in axes)
                mean = functools.partial(reduced, "ReduceMean")
                g.means[y.data] = functools.partial(mean_of, count, mean)
        return astype(g, y, aval.dtype)

    return Rule(rule)


def _position(op: str) -> Rule:
    def rule(g, eqn, x):
        aval, (axis,) = eqn.outvars[0].aval, eqn.params["axes"]
        x = astype(g, x, widened(x.dtype))
        name = g.node(op, g.tensor(x, x.layout), axis=x.layout.index(axis), keepdims=0)
        layout = tuple(a - (a > axis) for a in x.layout if a != axis)
        y = g.value(name, aval, layout=layout, dtype=np.dtype(np.int64))
        return astype(g, y, aval.dtype)

    return Rule(rule)


def _cumulative_sum(g: Graph, eqn: Any, x: Value) -> Value:
    aval, x = eqn.outvars[0].aval, astype(g, x, widened(x.dtype))
    axis = g.number(np.int64(x.layout.index(eqn.params["axis"])))
    backward = int(eqn.params["reverse"])
    name = g.node("CumSum", g.tensor(x, x.layout), axis, reverse=backward)
    y = g.value(name, aval, layout=x.layout, dtype=x.dtype)
    return astype(g, y, aval.dtype)


def _dot_general(g: Graph, eqn: Any, x: Value, y: Value) -> Value:
    """`MatMul`, of several axes made one where it takes one."""
    aval = eqn.outvars[0].aval
    x, y = (astype(g, v, widened(aval.dtype)) for v in (x, y))
    (x_sum, y_sum), (x_batch, y_batch) = eqn.params["dimension_numbers"]
    x_rest = [a for a in range(len(x.shape)) if a not in (*x_sum, *x_batch)]
    y_rest = [a for a in range(len(y.shape)) if a not in (*y_sum, *y_batch)]
    rows = [tuple(x_rest)] if x_batch else [(a,) for a in x_rest]
    left = _merged(g, x, [*((a,) for a in x_batch), *rows, tuple(x_sum)])
    right = _merged(g, y, [*((a,) for a in y_batch), tuple(y_sum), tuple(y_rest)])
    name = g.node("MatMul", left, right)
    if len(y_rest) != 1 or (x_batch and len(x_rest) != 1):
        name = g.reshape(name, aval.shape)
    return astype(g, g.value(name, aval, dtype=x.dtype), aval.dtype)


def _merged(g: Graph, v: Value, groups: Sequence[tuple[int, ...]]) -> str:
    """A tensor with an axis for each group of axes."""
    order = [axis for group in groups for axis in group]
    if all(len(group) == 1 for group in groups):
        return g.tensor(v, order)
    shape = [math.prod(v.shape[axis] for axis in group) for group in groups]
    if is_constant(v) and all(isinstance(size, int) for size in v.shape):
        data = np.broadcast_to(np.asarray(v.data), v.shape)
        return g.number(data.transpose(order).reshape(shape))
    return g.reshape(g.tensor(v, order), shape)


def _convolution(g: Graph, eqn: Any, x: Value, kernel: Value) -> Value:
    aval, p, order = eqn.outvars[0].aval, eqn.params, eqn.params["dimension_numbers"]
    wide = widened(aval.dtype)
    if p["batch_group_count"] != 1 or wide.kind != "f":
        rule = "a convolution must be of floats, and not grouped by batch"
        raise DeployError(f"`to_onnx`: {rule}; got {aval.str_short()}.")
    x, kernel = (astype(g, v, wide) for v in (x, kernel))
    pads = list(p["padding"])
    if not all(isinstance(n, int) for pair in pads for n in pair):
        config: list[tuple[Any, Any, int]] = [(0, 0, 0)] * len(x.shape)
        for axis, pair in zip(order.lhs_spec[2:], pads, strict=True):
            config[axis] = (*pair, 0)
        x = padded(g, x, constant(np.zeros((), wide)), config)
        pads = [(0, 0)] * len(pads)
    lows, highs = zip(*pads, strict=True)
    sizes = [kernel.shape[axis] for axis in order.rhs_spec[2:]]
    facts: dict[str, Any] = {
        "kernel_shape": sizes,
        "dilations": list(p["rhs_dilation"]),
        "group": p["feature_group_count"],
    }
    if all(d == 1 for d in p["lhs_dilation"]):
        facts |= {"strides": list(p["window_strides"]), "pads": [*lows, *highs]}
        weights = g.tensor(kernel, order.rhs_spec)
        name = g.node("Conv", g.tensor(x, order.lhs_spec), weights, **facts)
    else:
        # The other way round: what ONNX counts as padding is cut off its full result.
        steps = zip(sizes, p["rhs_dilation"], p["padding"], strict=True)
        cut = [[(n - 1) * d - pad for pad in pads] for n, d, pads in steps]
        ends = zip(cut, p["lhs_dilation"], strict=True)
        if (
            any(s != 1 for s in p["window_strides"])
            or facts["group"] != 1
            or any(low < 0 or -high >= stride for (low, high), stride in ends)
        ):
            return traced(g, functools.partial(_spread, **p), x, kernel)[0]
        out, into, *spatial = order.rhs_spec
        turned = reversed_along(g, kernel, spatial)
        name = g.node(
            "ConvTranspose",
            g.tensor(x, order.lhs_spec),
            g.tensor(turned, (into, out, *spatial)),
            **facts,
            strides=list(p["lhs_dilation"]),
            pads=[*(low for low, _ in cut), *(max(high, 0) for _, high in cut)],
            output_padding=[max(-high, 0) for _, high in cut],
        )
    y = g.value(name, aval, layout=tuple(order.out_spec), dtype=wide)
    return astype(g, y, aval.dtype)


def _spread(
    x: Any, kernel: Any, *, lhs_dilation: Any, dimension_numbers: Any, **params: Any
) -> Any:
    """A convolution of an input that has its zeros in it already."""
    config = [(0, 0, 0)] * x.ndim
    for axis, d in zip(dimension_numbers.lhs_spec[2:], lhs_dilation, strict=True):
        config[axis] = (0, 0, d - 1)
    x = lax.pad(x, jnp.zeros((), x.dtype), config)
    given = {
        name: params[name]
        for name in ("window_strides", "padding", "rhs_dilation", "feature_group_count")
    }
    return lax.conv_general_dilated(
        x, kernel, dimension_numbers=dimension_numbers, **given
    )


RULES = {
    "argmax": _position("ArgMax"),
    "argmin": _position("ArgMin"),
    "conv_general_dilated": Rule(_convolution),
    "cumsum": Rule(_cumulative_sum),
    "dot_general": Rule(_dot_general),
    "reduce_and": _reduction("ReduceMin"),
    "reduce_max": _reduction("ReduceMax"),
    "reduce_min": _reduction("ReduceMin"),
    "reduce_or": _reduction("ReduceMax"),
    "reduce_prod": _reduction("ReduceProd"),
    "reduce_sum": _reduction("ReduceSum"),
}
