"""Primitives that move elements: views, slices, padding."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax import lax

from jaxpool.deploy.onnx_graph import (
    Graph,
    Rule,
    Value,
    astype,
    broadcast,
    constant,
    is_constant,
    squeeze,
    transpose,
)
from jaxpool.deploy.onnx_program import rewritten, traced

__all__ = ["RULES", "padded", "reversed_along", "sliced"]

# What `Pad` of onnxruntime takes in place of what it does not take.
_PADDED = {"bfloat16": "float32", "int16": "int32", "uint16": "int32"}
_PADDED |= {"float16": "float32"}


def _identity(g: Graph, eqn: Any, *values: Value) -> list[Value]:
    return list(values)


def _transpose(g: Graph, eqn: Any, x: Value) -> Value:
    return transpose(x, eqn.params["permutation"])


def _broadcast_in_dim(g: Graph, eqn: Any, x: Value, *sizes: Value) -> Value:
    return broadcast(g, x, eqn.params["shape"], eqn.params["broadcast_dimensions"])


def _squeeze(g: Graph, eqn: Any, x: Value) -> Value:
    return squeeze(g, x, eqn.params["dimensions"])


def _reshape(g: Graph, eqn: Any, x: Value, *sizes: Value) -> Value:
    aval, order = eqn.outvars[0].aval, eqn.params["dimensions"]
    x = x if order is None else transpose(x, order)
    unit = [axis for axis, size in enumerate(x.shape) if size == 1]
    places = [axis for axis, size in enumerate(aval.shape) if size != 1]
    if [size for size in x.shape if size != 1] == [aval.shape[a] for a in places]:
        return broadcast(g, squeeze(g, x, unit), aval.shape, places)
    return g.value(g.reshape(g.tensor(x), aval.shape), aval)


def _concatenate(g: Graph, eqn: Any, *values: Value) -> Value:
    axis = eqn.params["dimension"]
    values = tuple(v for v in values if v.shape[axis] != 0)
    layout = next((v.layout for v in values if not is_constant(v)), values[0].layout)
    axis = layout.index(axis)
    name = g.node("Concat", *(g.tensor(v, layout) for v in values), axis=axis)
    return g.value(name, eqn.outvars[0].aval, layout=layout)


def _slice(g: Graph, eqn: Any, x: Value) -> Value:
    start, limit = eqn.params["start_indices"], eqn.params["limit_indices"]
    step = eqn.params["strides"] or [1] * len(start)
    return sliced(g, eqn.outvars[0].aval, x, start, limit, step)


def _rev(g: Graph, eqn: Any, x: Value) -> Value:
    return reversed_along(g, x, eqn.params["dimensions"])


def reversed_along(g: Graph, x: Value, axes: Sequence[int]) -> Value:
    """A value with the order of its elements along some axes turned round."""
    if is_constant(x):
        return constant(np.flip(np.asarray(x.data), tuple(axes)), x.shape)
    start, limit, step = [0] * len(x.shape), list(x.shape), [1] * len(x.shape)
    for axis in axes:
        start[axis], limit[axis], step[axis] = -1, -(2**31), -1
    return sliced(g, x, x, start, limit, step)


def sliced(g: Graph, aval: Any, x: Value, start: Any, limit: Any, step: Any) -> Value:
    """What lies from `start` to `limit`, in steps, along axes where that is less."""
    cut = [
        axis
        for axis, size in enumerate(x.shape)
        if not (start[axis] == 0 and limit[axis] == size and step[axis] == 1)
        # What is the same all along an axis is not cut along it.
        and x.stored[axis] == size
    ]
    sizes = zip(x.stored, x.shape, aval.shape, strict=True)
    stored = tuple(out if there == size else 1 for there, size, out in sizes)
    name = g.tensor(x, x.layout, whole=False)
    if cut:
        bounds = [g.shape([at[axis] for axis in cut]) for at in (start, limit)]
        places = g.ints([x.layout.index(axis) for axis in cut])
        steps = g.ints([step[axis] for axis in cut])
        name = g.node("Slice", name, *bounds, places, steps)
    return g.value(name, aval, stored=stored, layout=x.layout)


def _pad(g: Graph, eqn: Any, x: Value, value: Value) -> Value:
    return padded(g, x, value, eqn.params["padding_config"])


def padded(
    g: Graph, x: Value, value: Value, config: Sequence[tuple[Any, Any, int]]
) -> Value:
    """A value with others before, behind and between its elements, as in `lax.pad`."""
    if any(inner for _, _, inner in config):
        return traced(g, functools.partial(_spread, config), x, value)[0]
    if not any(low or high for low, high, _ in config):
        return x
    dtype, layout = x.dtype, x.layout
    x, value = (astype(g, v, _PADDED.get(str(dtype), dtype)) for v in (x, value))
    # For all axes: opset 17 has no list of axes.
    pads = g.shape([config[axis][end] for end in (0, 1) for axis in layout])
    name = g.node("Pad", g.tensor(x, layout), pads, g.tensor(value))
    sizes = zip(x.shape, config, strict=True)
    shape = tuple(low + size + high for size, (low, high, _) in sizes)
    return astype(g, Value(name, x.dtype, shape, shape, layout), dtype)


def _spread(config: Any, x: Any, value: Any) -> Any:
    """`lax.pad` that also puts something between the elements."""
    for axis, (_, _, inner) in enumerate(config):
        if inner and x.shape[axis] > 1:
            x = lax.expand_dims(x, [axis + 1])
            behind = [(0, inner if a == axis + 1 else 0, 0) for a in range(x.ndim)]
            x = lax.pad(x, value, behind)
            size = x.shape[axis] * (inner + 1)
            x = x.reshape(*x.shape[:axis], size, *x.shape[axis + 2 :])
            x = lax.slice_in_dim(x, 0, size - inner, axis=axis)
    return lax.pad(x, value, [(low, high, 0) for low, high, _ in config])


def _iota(g: Graph, eqn: Any, *sizes: Value) -> Value:
    aval, axis = eqn.outvars[0].aval, eqn.params["dimension"]
    size, places = aval.shape[axis], [1] * len(aval.shape)
    if isinstance(size, int):
        places[axis] = size
        return constant(np.arange(size, dtype=aval.dtype).reshape(places), aval.shape)
    ends = [g.number(np.int64(0)), _scalar(g, size), g.number(np.int64(1))]
    line = Value(g.node("Range", *ends), np.dtype(np.int64), (size,), (size,), (0,))
    return broadcast(g, astype(g, line, aval.dtype), aval.shape, [axis])


def _scalar(g: Graph, size: Any) -> str:
    return g.node("Squeeze", g.size(size), g.ints([0]))


def _dim_as_value(g: Graph, eqn: Any) -> Value:
    aval = eqn.outvars[0].aval
    return g.value(g.cast(_scalar(g, eqn.params["dim"]), aval.dtype), aval)


def _stack(*arrays: Any, axis: int) -> Any:
    return lax.concatenate([lax.expand_dims(x, [axis]) for x in arrays], axis)


def _tile(x: Any, reps: Sequence[Any]) -> Any:
    """Each axis after one that says which copy it is."""
    pairs = [size for pair in zip(reps, x.shape, strict=True) for size in pair]
    sizes = [n * size for n, size in zip(reps, x.shape, strict=True)]
    copies = lax.broadcast_in_dim(x, pairs, range(1, 2 * x.ndim, 2))
    return lax.reshape(copies, sizes)


def _split(x: Any, sizes: Sequence[int], axis: int) -> list[Any]:
    ends = np.cumsum(sizes).tolist()
    pairs = zip(ends, sizes, strict=True)
    return [lax.slice_in_dim(x, end - n, end, axis=axis) for end, n in pairs]


_SAME = ("copy", "copy_p", "optimization_barrier", "pvary")
_SAME += ("sharding_constraint", "stop_gradient")
RULES = {
    **{name: Rule(_identity, "never") for name in _SAME},
    "broadcast_in_dim": Rule(_broadcast_in_dim, "never"),
    "concatenate": Rule(_concatenate),
    "dim_as_value": Rule(_dim_as_value, "never"),
    "iota": Rule(_iota, "never"),
    "pad": Rule(_pad),
    "reshape": Rule(_reshape),
    "rev": Rule(_rev),
    "slice": Rule(_slice),
    "split": rewritten(_split),
    "squeeze": Rule(_squeeze, "never"),
    "stack": rewritten(_stack),
    "tile": rewritten(_tile),
    "transpose": Rule(_transpose, "never"),
}
