"""Primitives that read, write and order elements by what others say.

A gather along one axis is `Gather`. Every other gather or scatter is one of a flat
array, at places that are computed: then one node does it.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxpool.deploy.onnx_graph import (
    Graph,
    Rule,
    Value,
    astype,
    broadcast,
    is_constant,
    squeeze,
    widened,
)
from jaxpool.deploy.onnx_program import traced

__all__ = ["RULES"]

_Mode = lax.GatherScatterMode


def _gather(g: Graph, eqn: Any, x: Value, indices: Value) -> Value:
    aval, p = eqn.outvars[0].aval, eqn.params
    d, mode = p["dimension_numbers"], p["mode"]
    sizes = zip(p["slice_sizes"], x.shape, strict=True)
    cut = {axis for axis, (size, full) in enumerate(sizes) if size != full}
    axes = set(d.start_index_map)
    plain = axes == set(d.collapsed_slice_dims) and cut <= axes and len(axes) == 1
    inside = mode == _Mode.PROMISE_IN_BOUNDS or _within(x, indices, d.start_index_map)
    if (
        not plain
        or d.operand_batching_dims
        or (mode == _Mode.FILL_OR_DROP and not inside)
    ):
        return traced(g, functools.partial(_flat_gather, **p), x, indices)[0]
    (axis,) = axes
    if not inside:
        last = x.shape[axis] - 1
        (indices,) = traced(g, lambda i: jnp.clip(i, 0, last), indices)
    indices = astype(g, _scalars(g, indices), np.int64)
    place = x.layout.index(axis)
    name = g.node("Gather", g.tensor(x, x.layout), g.tensor(indices), axis=place)
    # The axes of the indices lie where the axis was.
    kept = [a for a in range(len(x.shape)) if a != axis]
    offset = dict(zip(kept, d.offset_dims, strict=True))
    batch = [a for a in range(len(aval.shape)) if a not in d.offset_dims]
    lie = [batch if stored == axis else [offset[stored]] for stored in x.layout]
    return g.value(name, aval, layout=tuple(a for axes in lie for a in axes))


def _scalars(g: Graph, indices: Value) -> Value:
    """Indices into one axis without the axis that holds one of each."""
    return squeeze(g, indices, [len(indices.shape) - 1])


def _within(x: Value, indices: Value, into: Sequence[int]) -> bool:
    """Whether it is known that indices into one axis lie within it."""
    sizes = [x.shape[axis] for axis in into]
    if not is_constant(indices) or not all(isinstance(size, int) for size in sizes):
        return False
    given = np.asarray(indices.data)
    return bool(np.all((given >= 0) & (given < np.asarray(sizes))))


def _places(
    shape: Sequence[Any],
    indices: Any,
    sizes: Sequence[Any],
    axes: tuple[Sequence[int], Sequence[int], Sequence[int]],
    batching: Sequence[tuple[int, int]],
) -> tuple[Any, Any]:
    """Where in a flat array the elements of windows stand, and which lie inside.

    `axes` are the array's that an index is into, its that no window has, and the
    result's that windows have; `batching` are pairs of the array's and the indices'.
    """
    into, collapsed, window = axes
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    first = jnp.zeros(indices.shape[:-1], jnp.int32)
    inside = jnp.ones(indices.shape[:-1], bool)
    for k, axis in enumerate(into):
        index, last = indices[..., k].astype(jnp.int32), shape[axis] - sizes[axis]
        inside = inside & (index >= 0) & (index <= last)
        first = first + jnp.clip(index, 0, last) * strides[axis]
    for axis, along in batching:
        line = lax.broadcasted_iota(jnp.int32, first.shape, along)
        first = first + line * strides[axis]
    kept = [axis for axis in range(len(shape)) if axis not in collapsed]
    batch = [a for a in range(first.ndim + len(window)) if a not in window]
    full = dict(zip(batch, first.shape, strict=True))
    full |= {a: sizes[axis] for a, axis in zip(window, kept, strict=True)}
    full = [full[a] for a in range(len(full))]
    place = lax.broadcast_in_dim(first, full, batch)
    for a, axis in zip(window, kept, strict=True):
        place = place + lax.broadcasted_iota(jnp.int32, full, a) * strides[axis]
    return place, lax.broadcast_in_dim(inside, full, batch)


def _flat_gather(
    x: Any,
    indices: Any,
    *,
    dimension_numbers: Any,
    slice_sizes: Any,
    mode: Any,
    fill_value: Any,
    **unused: Any,
) -> Any:
    d = dimension_numbers
    collapsed = (*d.collapsed_slice_dims, *d.operand_batching_dims)
    axes = (d.start_index_map, collapsed, d.offset_dims)
    pairs = (d.operand_batching_dims, d.start_indices_batching_dims)
    batching = list(zip(*pairs, strict=True))
    place, inside = _places(x.shape, indices, slice_sizes, axes, batching)
    numbers = lax.GatherDimensionNumbers((), (0,), (0,))
    y = lax.gather(
        x.reshape(-1), place[..., None], numbers, (1,), mode=_Mode.PROMISE_IN_BOUNDS
    )
    if mode != _Mode.FILL_OR_DROP:
        return y
    fill = _nothing(x.dtype) if fill_value is None else fill_value
    return jnp.where(inside, y, jnp.asarray(fill, x.dtype))


def _nothing(dtype: Any) -> Any:
    """What a gather gives for what is not there."""
    if jnp.issubdtype(dtype, jnp.inexact):
        return np.nan
    if dtype == jnp.bool_:
        return True
    limits = jnp.iinfo(dtype)
    return limits.max if limits.min == 0 else limits.min


def _scatter(reduction: str, function: Callable[..., Any]) -> Rule:
    def rule(g, eqn, x, indices, updates):
        p = eqn.params
        plain = len(x.shape) == 1 and not p["dimension_numbers"].update_window_dims
        if not plain or p["mode"] != _Mode.PROMISE_IN_BOUNDS:
            flat = functools.partial(_flat_scatter, function, **p)
            return traced(g, flat, x, indices, updates)[0]
        # Without a reduction elements only move, in whatever dtype.
        wide = x.dtype if reduction == "none" else widened(x.dtype)
        names = [
            g.tensor(astype(g, x, wide)),
            g.tensor(astype(g, _scalars(g, indices), np.int64)),
            g.tensor(astype(g, updates, wide)),
        ]
        name = g.node("ScatterElements", *names, axis=0, reduction=reduction)
        y = g.value(name, eqn.outvars[0].aval, dtype=wide)
        return astype(g, y, x.dtype)

    return Rule(rule)


def _flat_scatter(
    function: Callable[..., Any],
    x: Any,
    indices: Any,
    updates: Any,
    *,
    dimension_numbers: Any,
    mode: Any,
    **unused: Any,
) -> Any:
    d = dimension_numbers
    collapsed = (*d.inserted_window_dims, *d.operand_batching_dims)
    kept = [axis for axis in range(x.ndim) if axis not in collapsed]
    sizes: list[Any] = [1] * x.ndim
    for axis, place in zip(kept, d.update_window_dims, strict=True):
        sizes[axis] = updates.shape[place]
    axes = (d.scatter_dims_to_operand_dims, collapsed, d.update_window_dims)
    pairs = (d.operand_batching_dims, d.scatter_indices_batching_dims)
    batching = list(zip(*pairs, strict=True))
    place, inside = _places(x.shape, indices, sizes, axes, batching)
    flat = x.reshape(-1)
    if mode == _Mode.FILL_OR_DROP:
        # What lies outside goes to a place behind all others.
        place = jnp.where(inside, place, flat.shape[0])
        flat = jnp.concatenate([flat, jnp.zeros(1, x.dtype)])
    numbers = lax.ScatterDimensionNumbers((), (0,), (0,))
    place, updates = place.reshape(-1, 1), updates.reshape(-1)
    flat = function(flat, place, updates, numbers, mode=_Mode.PROMISE_IN_BOUNDS)
    return flat[: math.prod(x.shape)].reshape(x.shape)


def _dynamic_slice(g: Graph, eqn: Any, x: Value, *starts: Value) -> Value:
    sizes = zip(x.shape, eqn.params["slice_sizes"], strict=True)
    cut = {axis: size for axis, (full, size) in enumerate(sizes) if size != full}
    if not cut:
        return x
    lists = [
        g.tensor(broadcast(g, astype(g, starts[axis], np.int64), (1,), ()))
        for axis in cut
    ]
    start = g.node("Concat", *lists, axis=0)
    last = g.shape([x.shape[axis] - size for axis, size in cut.items()])
    start = g.node("Max", g.node("Min", start, last), g.ints([0]))
    end = g.node("Add", start, g.shape(list(cut.values())))
    places = g.ints([x.layout.index(axis) for axis in cut])
    name = g.node("Slice", g.tensor(x, x.layout), start, end, places)
    return g.value(name, eqn.outvars[0].aval, layout=x.layout)


def _dynamic_update_slice(
    g: Graph, eqn: Any, x: Value, update: Value, *starts: Value
) -> Value:
    sizes = list(zip(x.shape, update.shape, strict=True))
    if all(map(is_constant, starts)):
        places = [int(np.asarray(v.data)) for v in starts]
        pairs = zip(places, sizes, strict=True)
        places = [n != full and min(max(p, 0), full - n) for p, (full, n) in pairs]
        return traced(g, functools.partial(_replaced, places), x, update)[0]
    return traced(g, _update_slice, x, update, *starts)[0]


def _replaced(starts: Sequence[Any], x: Any, update: Any) -> Any:
    """`x` with `update` in it, put together along one axis after the other."""
    for axis, n in enumerate(update.shape):
        if x.shape[axis] != n:
            start, end, size = starts[axis], starts[axis] + n, x.shape[axis]
            part = functools.partial(lax.slice_in_dim, x, axis=axis)
            parts = [part(0, start), _replaced(starts, part(start, end), update)]
            parts.append(part(end, size))
            return lax.concatenate([p for p in parts if p.shape[axis] != 0], axis)
    return update


def _update_slice(x: Any, update: Any, *starts: Any) -> Any:
    axes = tuple(range(x.ndim))
    numbers = lax.ScatterDimensionNumbers(axes, (), axes)
    return lax.scatter(x, jnp.stack(starts), update, numbers, mode=_Mode.CLIP)


def _best(g: Graph, x: Value, axis: int, k: Any, largest: int) -> list[Value]:
    """The first k along an axis in order, and where they stood."""
    wide = astype(g, x, widened(x.dtype))
    names = g.node(
        "TopK",
        g.tensor(wide, x.layout),
        g.shape([k]),
        outputs=2,
        axis=x.layout.index(axis),
        largest=largest,
    )
    shape = tuple(k if a == axis else size for a, size in enumerate(x.shape))
    best = Value(names[0], wide.dtype, shape, shape, x.layout)
    where = Value(names[1], np.dtype(np.int64), shape, shape, x.layout)
    return [astype(g, best, x.dtype), where]


def _top_k(g: Graph, eqn: Any, x: Value) -> list[Value]:
    last = len(x.shape) - 1
    axis = eqn.params.get("axis", last)  # jax 0.7 knows the last one only
    best, where = _best(g, x, axis % len(x.shape), eqn.params["k"], 1)
    return [best, astype(g, where, eqn.outvars[1].aval.dtype)]


def _sort(g: Graph, eqn: Any, *values: Value) -> list[Value]:
    """By one key after the other, the last one first: each keeps equals in order."""
    axis, rows = eqn.params["dimension"], list(values)
    for key in reversed(range(eqn.params["num_keys"])):
        best, where = _best(g, rows[key], axis, rows[key].shape[axis], 0)
        place = where.layout.index(axis)
        for i, v in enumerate(rows):
            name = g.node(
                "GatherElements", g.tensor(v, where.layout), where.data, axis=place
            )
            rows[i] = replace(where, data=name, dtype=v.dtype)
        rows[key] = best
    return rows


RULES = {
    "dynamic_slice": Rule(_dynamic_slice),
    "dynamic_update_slice": Rule(_dynamic_update_slice),
    "gather": Rule(_gather),
    "scatter": _scatter("none", lax.scatter),
    "scatter-add": _scatter("add", lax.scatter_add),
    "scatter-max": _scatter("max", lax.scatter_max),
    "scatter-min": _scatter("min", lax.scatter_min),
    "scatter-mul": _scatter("mul", lax.scatter_mul),
    "sort": Rule(_sort),
    "top_k": Rule(_top_k),
}
