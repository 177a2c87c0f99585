"""Windowed reductions and their derivative rules: the one door to XLA.

Only this file calls `lax.reduce_window`. Ops see five functions, none of which says how
it is computed:

  window_extremum  the largest or smallest element of each window
  window_index     where that element stands, as a flat index into the pooled axes
  window_sum       the sum of each window
  window_fold      any monoid over each window
  window_sample    the index of an element drawn in proportion to its weight

and the linear pair through which every choice of one element is differentiated: `take`
reads each window's chosen element, `put` is its transpose.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxpool._core.geometry import Geometry
from jaxpool._core.numerics import accumulation_dtype, hide

__all__ = [
    "flat_positions",
    "identity",
    "last_claims",
    "put",
    "take",
    "window_extremum",
    "window_fold",
    "window_index",
    "window_sample",
    "window_sum",
]

# Up to this many elements of a window are visited by unrolled code, which XLA fuses.
_UNROLLED_TAPS = 32


def identity(dtype: Any, largest: bool) -> np.ndarray:
    """What never wins: the lowest value of `dtype` for a maximum, else the highest.

    It has to be a NumPy scalar: JAX recognises a maximum, and knows its derivative,
    only if the initial value is a constant.
    """
    if dtype == jnp.bool_:
        return np.array(not largest)
    if jnp.issubdtype(dtype, jnp.integer):
        limits = jnp.iinfo(dtype)
        return np.array(limits.min if largest else limits.max, dtype)
    lowest = np.array(-np.inf, dtype)
    if not np.isinf(lowest):  # a float8 without infinities
        lowest = np.array(jnp.finfo(dtype).min, dtype)
    return lowest if largest else -lowest


def window_extremum(
    x: jax.Array, geometry: Geometry, largest: bool, where: jax.Array | None = None
) -> jax.Array:
    r"""The largest (or smallest) element of each window: y_o = max_{i in W(o)} x_i.

    Gradient: dy_o/dx_i is 1 for the first maximal i in row-major order, which is the
    first NaN where there is one, and 0 for all others. A window without elements gives
    the identity, and no gradient.
    """
    x = hide(x, where, identity(x.dtype, largest))
    if jnp.issubdtype(x.dtype, jnp.floating):
        return _extremum(x, where, geometry, largest)
    return _reduce_extremum(x, geometry, largest)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _extremum(x, where, geometry, largest):
    del where  # only the derivative has to tell a masked element from an equal one
    return _reduce_extremum(x, geometry, largest)


@_extremum.defjvp
def _extremum_jvp(geometry, largest, primals, tangents):
    x, where = primals
    tangent = tangents[0]
    # The decorated function, so that a second derivative follows this rule too.
    y = _extremum(x, where, geometry, largest)
    index = window_index(x, geometry, largest, where)
    # A transposed `take` adds: in float32, whatever the dtype.
    wide = tangent.astype(accumulation_dtype(tangent.dtype))
    return y, take(wide, index, geometry.pooled).astype(tangent.dtype)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _reduce_extremum(x, geometry, largest):
    native = functools.partial(_native_extremum, geometry=geometry, largest=largest)

    def without_losing_nan(x):
        if sum(a.window for a in geometry.axes) <= _UNROLLED_TAPS:
            op = lax.max if largest else lax.min
            return window_fold(x, identity(x.dtype, largest), op, geometry)
        nan = _native_extremum((x != x).astype(np.int8), geometry, True) > 0
        return jnp.where(nan, np.array(np.nan, x.dtype), native(x))

    # Since jax 0.10, XLA's CPU backend drops every NaN where windows do not overlap.
    # The maximum of two arrays keeps it; for large windows NaN is looked for apart.
    loses_nan = geometry.disjoint or geometry.whole
    if loses_nan and jnp.issubdtype(x.dtype, jnp.floating):
        return lax.platform_dependent(x, cpu=without_losing_nan, default=native)
    return native(x)


def _native_extremum(x, geometry, largest):
    if geometry.whole:
        reduce = jnp.max if largest else jnp.min
        initial = identity(x.dtype, largest)
        return reduce(x, geometry.pooled, keepdims=True, initial=initial)
    op = lax.max if largest else lax.min
    return _reduce_window(x, identity(x.dtype, largest), op, geometry)


def _reduce_window(operand, init, op, geometry):
    """`lax.reduce_window` with the window, strides and pads of `geometry`."""
    ndim = jax.tree.leaves(operand)[0].ndim
    return lax.reduce_window(
        operand,
        init,
        op,
        window_dimensions=geometry.full(ndim, "window", 1),
        window_strides=geometry.full(ndim, "stride", 1),
        padding=geometry.pads(ndim),
        window_dilation=geometry.full(ndim, "dilation", 1),
    )


@functools.partial(jax.jit, static_argnums=(1, 2))
def window_index(
    x: jax.Array, geometry: Geometry, largest: bool, where: jax.Array | None = None
) -> jax.Array:
    """Where each window's extremum stands: int32, flat over the pooled axes.

    The index counts elements of the unpadded input in row-major order, whatever the
    other axes. Among equal elements it is the lowest, NaN beats all numbers, and a
    window without elements has -1. It has no derivative.
    """
    x = lax.stop_gradient(x)
    index = flat_positions(x.shape, geometry.pooled)
    if where is not None:
        index = jnp.where(where, index, -1)

    def first_winner(a, b):
        (a_value, a_index), (b_value, b_index) = a, b
        a_nan, b_nan = a_value != a_value, b_value != b_value
        wins = b_value > a_value if largest else b_value < a_value
        ties = (b_value == a_value) | (a_nan & b_nan)
        wins |= (b_nan & ~a_nan) | (ties & (b_index < a_index))
        wins = (b_index >= 0) & ((a_index < 0) | wins)
        return lax.select(wins, b_value, a_value), lax.select(wins, b_index, a_index)

    init = (identity(x.dtype, largest), np.int32(-1))
    if geometry.whole:
        dims = tuple(x.ndim + a for a in geometry.pooled)
        _, index = lax.reduce((x, index), init, first_winner, dims)
        return jnp.expand_dims(index, geometry.pooled)
    # One axis after the other: the sum of the window's sizes, not their product.
    for axis in reversed(geometry.axes):
        x, index = _reduce_window((x, index), init, first_winner, Geometry((axis,)))
    return index


@functools.partial(jax.jit, static_argnums=1)
def window_sum(x: jax.Array, geometry: Geometry) -> jax.Array:
    """The sum of each window, in the dtype of `x`: y_o = sum_{i in W(o)} x_i."""
    if geometry.whole:
        return jnp.sum(x, geometry.pooled, dtype=x.dtype, keepdims=True)
    return _reduce_window(x, np.array(0, x.dtype), lax.add, geometry)


def window_fold(
    x: jax.Array,
    init: ArrayLike,
    op: Callable[[jax.Array, jax.Array], jax.Array],
    geometry: Geometry,
) -> jax.Array:
    """Each window folded with `op`, an associative function: its own derivatives hold.

    As in `lax.reduce_window`, `init` enters each window once and each element of
    padding again, so anything but an identity of `op` changes the result. Half
    precision folds in float32.
    """
    dtype, x = x.dtype, x.astype(accumulation_dtype(x.dtype))
    init = jnp.asarray(init).astype(x.dtype)
    x = lax.pad(x, init, [(low, high, 0) for low, high in geometry.pads(x.ndim)])
    for a in reversed(geometry.axes):  # the last axis first: row-major order
        axis, extent = x.ndim + a.axis, (a.out - 1) * a.stride + 1
        starts = [k * a.dilation for k in range(a.window)]
        taps = [lax.slice_in_dim(x, i, i + extent, a.stride, axis) for i in starts]
        x = functools.reduce(op, taps)
    return op(jnp.broadcast_to(init, x.shape), x).astype(dtype)


@functools.partial(jax.jit, static_argnums=1)
def window_sample(weights: jax.Array, geometry: Geometry, key: jax.Array) -> jax.Array:
    """The index of one element of each window, drawn with probability w_i / sum w.

    Weights must be finite and at least 0. One uniform number u is drawn for each
    window; the element chosen is the one at which the running sum of weights, in
    row-major order, passes u * sum(w). Indices are those of `window_index`; a window
    whose weights are all 0 has -1. It has no derivative.
    """
    weights = lax.stop_gradient(weights)
    ndim, axes = weights.ndim, geometry.axes
    shape = geometry.out_shape(weights.shape)
    strides = _flat_strides(geometry.sizes)
    total = window_sum(weights, geometry)
    threshold = total * jax.random.uniform(key, shape, weights.dtype)

    # The flat index of each window's first element, laid out on devices as the sums.
    first = (total * 0).astype(jnp.int32)
    for a, stride in zip(axes, strides, strict=True):
        window = lax.broadcasted_iota(jnp.int32, shape, ndim + a.axis)
        first += (window * a.stride - a.low) * stride

    pads = [(low, high, 0) for low, high in geometry.pads(ndim)]
    padded = lax.pad(weights, np.array(0, weights.dtype), pads)
    extents = list(weights.shape)
    for a in axes:
        extents[a.axis] = (a.out - 1) * a.stride + 1
    step = geometry.full(ndim, "stride", 1)

    def visit(tap, state):
        below, index = state
        offsets = jnp.unravel_index(tap, tuple(a.window for a in axes))
        start, shift = [jnp.int32(0)] * ndim, jnp.int32(0)
        for a, stride, offset in zip(axes, strides, offsets, strict=True):
            start[a.axis] = offset * a.dilation
            shift += offset * a.dilation * stride
        here = lax.dynamic_slice(padded, start, extents)
        here = lax.slice(here, (0,) * ndim, here.shape, step)
        # The last element that satisfies this is the one that passes the threshold,
        # and there is one however the two sums round.
        chosen = (here > 0) & (below <= threshold)
        return below + here, jnp.where(chosen, first + shift, index)

    state = (threshold * 0, first * 0 - 1)
    unroll = geometry.taps <= _UNROLLED_TAPS
    taps = np.int32(geometry.taps)
    return lax.fori_loop(np.int32(0), taps, visit, state, unroll=unroll)[1]


def take(x: jax.Array, index: jax.Array, axes: Sequence[int]) -> jax.Array:
    """Reads one element of `x` for each entry of `index`: y_o = x[index_o].

    Linear in `x`, with the transpose `put`. `index` is flat over `axes` (negative,
    ascending) and as large as `x` along all others; an index of -1 reads 0.
    """
    flat, axis = _merge(x, axes)
    positions, _ = _merge(index, axes)
    # -1 must not reach the gather, whose indices are promised to be in bounds.
    inside = jnp.maximum(positions, 0)
    y = jnp.take_along_axis(flat, inside, axis, mode="promise_in_bounds")
    y = jnp.where(positions >= 0, y, jnp.zeros((), y.dtype))
    return _split(y, axes, [index.shape[a] for a in axes])


def put(
    y: jax.Array, index: jax.Array, axes: Sequence[int], sizes: Sequence[int]
) -> jax.Array:
    """Adds each element of `y` up where `index` says: x_i = sum_{o: index_o = i} y_o.

    The transpose of `take`; `sizes` are those of the result along `axes`. An index of
    -1 adds nothing.
    """

    def in_plane(y, index):
        zeros = jnp.zeros(math.prod(sizes), accumulation_dtype(y.dtype))
        target = _within(index, sizes)
        return zeros.at[target].add(y.astype(zeros.dtype), mode="drop").astype(y.dtype)

    flat, axis = _merge(y, axes)
    positions, _ = _merge(index, axes)
    planes = jnp.vectorize(in_plane, signature="(n),(n)->(m)")
    x = planes(jnp.moveaxis(flat, axis, -1), jnp.moveaxis(positions, axis, -1))
    return _split(jnp.moveaxis(x, -1, axis), axes, sizes)


def flat_positions(shape: Sequence[Any], axes: Sequence[int]) -> jax.Array:
    """The flat index, int32 of `shape`, of each element's position along `axes`."""
    index = jnp.zeros(shape, jnp.int32)
    strides = _flat_strides([shape[a] for a in axes])
    for a, stride in zip(axes, strides, strict=True):
        index += lax.broadcasted_iota(jnp.int32, shape, len(shape) + a) * stride
    return index


def last_claims(
    index: jax.Array, axes: Sequence[int], sizes: Sequence[int]
) -> jax.Array:
    """Whether each entry of `index` is the last, in row-major order, with its value.

    False for an index of -1; `sizes` bound the indices, as in `put`.
    """

    def in_plane(index):
        order = jnp.arange(index.size, dtype=jnp.int32)
        target = _within(index, sizes)
        last = jnp.full(math.prod(sizes), -1, jnp.int32)
        last = last.at[target].max(order, mode="drop")
        return (index >= 0) & (last.at[target].get(mode="clip") == order)

    flat, axis = _merge(index, axes)
    planes = jnp.vectorize(in_plane, signature="(n)->(n)")
    last = jnp.moveaxis(planes(jnp.moveaxis(flat, axis, -1)), -1, axis)
    return _split(last, axes, [index.shape[a] for a in axes])


def _within(index: jax.Array, sizes: Sequence[int]) -> jax.Array:
    """Moves -1, which scatter counts from the end, to where scatter drops it."""
    return jnp.where(index >= 0, index, math.prod(sizes))


def _flat_strides(sizes: Sequence[int]) -> list[int]:
    """Distance, in a flat row-major index, between neighbours along each axis."""
    return [math.prod(sizes[i + 1 :]) for i in range(len(sizes))]


def _merge(x: jax.Array, axes: Sequence[int]) -> tuple[jax.Array, int]:
    """Makes one of the pooled axes; returns the array and that (negative) axis."""
    if tuple(axes) != tuple(range(axes[0], axes[0] + len(axes))):
        x = jnp.moveaxis(x, axes, range(-len(axes), 0))
        axes = range(-len(axes), 0)
    begin, end = x.ndim + axes[0], x.ndim + axes[-1] + 1
    size = math.prod(x.shape[begin:end])
    return x.reshape(*x.shape[:begin], size, *x.shape[end:]), axes[-1]


def _split(y: jax.Array, axes: Sequence[int], sizes: Sequence[int]) -> jax.Array:
    """Undoes `_merge`, with new sizes of the pooled axes."""
    moved = tuple(axes) != tuple(range(axes[0], axes[0] + len(axes)))
    merged = y.ndim - 1 if moved else y.ndim + axes[-1]
    y = y.reshape(*y.shape[:merged], *sizes, *y.shape[merged + 1 :])
    return jnp.moveaxis(y, range(-len(axes), 0), axes) if moved else y
