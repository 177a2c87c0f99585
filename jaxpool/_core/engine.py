"""Windowed reductions and their derivative rules: the one door to XLA.

Only this file calls `lax.reduce_window`. Ops see these functions, none of which says
how it is computed:

  window_extremum  the largest or smallest element of each window
  window_choice    that, and where it stands, as a flat index into the pooled axes
  window_sum       the sum of each window
  window_fold      any monoid over each window
  window_combine   any formula of the elements of each window, in one loop
  window_taps      all elements of each window, an array for each place in it
  window_stack     the same as one array

`weighted`, `order` and `draws` are made of these. All are differentiated as a choice of
elements that adds up: `linear.read` and its transpose `linear.place`, one stage after
the other. Where a choice is a flat index, `indices.take` reads it.
"""

import functools
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxpool._core import linear, planes, taps
from jaxpool._core.geometry import Geometry
from jaxpool._core.indices import take
from jaxpool._core.lowering import chosen_form
from jaxpool._core.numerics import accumulation_dtype, hide
from jaxpool._core.sharding import split_alike
from jaxpool._core.stages import (
    MOST_TAPS,
    holds_nothing,
    stages,
    sum_stages,
)

__all__ = [
    "chosen",
    "few_regions",
    "identity",
    "read_all",
    "window_choice",
    "window_combine",
    "window_extremum",
    "window_fold",
    "window_mean",
    "window_pad",
    "window_stack",
    "window_sum",
    "window_taps",
]


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
    form = chosen_form(geometry)
    if jnp.issubdtype(x.dtype, jnp.floating):
        return _extremum(x, where, geometry, largest, form)
    return _value(x, geometry, largest, form)


def window_choice(
    x: jax.Array, geometry: Geometry, largest: bool, where: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """The extremum of each window and where it stands: int32, flat over pooled axes.

    The index counts elements of the unpadded input in row-major order, whatever the
    other axes. Among equal elements it is the lowest, NaN beats all numbers, and a
    window without elements has -1. It has no derivative.
    """
    x = hide(x, where, identity(x.dtype, largest))
    form = chosen_form(geometry)
    y, codes = _choice(x, where, geometry, largest, form)
    if form == "reduce_window":
        return y, codes[0]
    # Counted from 1, since what no code names reads 0.
    index = taps.flat_positions(x.shape, geometry.pooled) + 1
    index = split_alike(index, x.shape, x)
    return y, read_all(index, stages(geometry), codes) - 1


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3, 4))
def _extremum(x, where, geometry, largest, form):
    del where  # only the derivative has to tell a masked element from an equal one
    return _value(x, geometry, largest, form)


@_extremum.defjvp
def _extremum_jvp(geometry, largest, form, primals, tangents):
    x, where = primals
    value = lambda x: _choice(x, where, geometry, largest, form)[0]  # noqa: E731
    return jax.jvp(value, (x,), tangents[:1])


def _choice(x, where, geometry, largest, form):
    """The extremum of each window, with its derivative, and its codes, without."""
    y, codes = _value_and_codes(lax.stop_gradient(x), where, geometry, largest, form)
    if jnp.issubdtype(x.dtype, jnp.floating):
        y = chosen(x, y, codes, geometry, form)
    return y, codes


@functools.partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def chosen(x, y, codes, geometry, form):
    """The elements of `x` that `codes` name, which are known to be `y`."""
    del x, codes, geometry, form
    return y


@chosen.defjvp
def _chosen_jvp(geometry, form, primals, tangents):
    x, y, codes = primals
    # Transposed, these add: in float32, whatever the dtype.
    tangent = tangents[0].astype(accumulation_dtype(x.dtype))
    if form == "reduce_window":
        tangent = take(tangent, codes[0], geometry.pooled)
    else:
        chain = (geometry,) if form == "one stage" else stages(geometry)
        tangent = read_all(tangent, chain, codes)
    # The decorated function, so that a second derivative follows this rule too.
    return chosen(x, y, codes, geometry, form), tangent.astype(y.dtype)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _value(x, geometry, largest, form):
    if form == "reduce_window":
        return _native_extremum(x, geometry, largest)
    if form == "planes":
        return _plane_extremum(x, geometry, largest)
    op, empty = lax.max if largest else lax.min, identity(x.dtype, largest)
    for i, stage in enumerate(stages(geometry)):
        # Without the barrier XLA computes a stage again for each tap of the next one.
        x = taps.fold(lax.optimization_barrier(x) if i else x, stage, op, empty)
    return x


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _value_and_codes(x, where, geometry, largest, form):
    """The extremum of each window, and what its derivative needs to know of the choice.

    That is one code for each stage; with `lax.reduce_window`, the flat index.
    """
    if form == "reduce_window":
        index = _reduce_index(x, geometry, largest, where)
        return _native_extremum(x, geometry, largest), (index,)
    op, empty = lax.max if largest else lax.min, identity(x.dtype, largest)
    kind = np.int32 if form == "planes" else np.uint8  # nobody else selects bytes
    codes, alive = [], where
    for stage in stages(geometry):
        # The barriers keep XLA from computing values and codes again for each tap of
        # whatever uses them, and from keeping `x` until then.
        y = taps.fold(x, stage, op, empty)
        y = taps.apart(y) if stage.binned else lax.optimization_barrier(y)
        code = taps.apart(taps.choose(x, y, stage, alive, np.dtype(kind)))
        # A window without elements gives the identity, which is not to be chosen.
        nothing = where is not None or holds_nothing(stage)
        alive = code != taps.NONE.astype(code.dtype) if nothing else None
        codes.append(code)
        x = y
    return x, tuple(codes)


def _native_extremum(x, geometry, largest):
    """The extremum of each window, by `lax.reduce_window`."""

    def reduce(x, largest=largest):
        op = lax.max if largest else lax.min
        return _reduce_window(x, identity(x.dtype, largest), op, geometry)

    sizes = [(a.stride, a.window) for a in geometry.axes]
    if any(s < k for s, k in sizes if isinstance(s, int) and isinstance(k, int)):
        return reduce(x)  # windows overlap
    return taps.keeping_nan(x, reduce, functools.partial(reduce, largest=True))


def _reduce_window(operand, init, op, geometry):
    """`lax.reduce_window` with the window, strides and pads of `geometry`."""
    ndim, inner = jax.tree.leaves(operand)[0].ndim, geometry.clipped
    y = lax.reduce_window(
        operand,
        init,
        op,
        window_dimensions=inner.full(ndim, "window", 1),
        window_strides=inner.full(ndim, "stride", 1),
        padding=inner.pads(ndim),
        window_dilation=inner.full(ndim, "dilation", 1),
    )
    if inner == geometry:
        return y
    # Smaller windows may fit in more often.
    begin = [0] * ndim
    return jax.tree.map(lambda y: lax.slice(y, begin, inner.out_shape(y.shape)), y)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _reduce_index(x, geometry, largest, where):
    """The flat index of `window_choice`, by a reducer of (value, index)."""
    index = taps.flat_positions(x.shape, geometry.pooled)
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
    # One axis after the other: the sum of the window's sizes, not their product.
    for axis in reversed(geometry.axes):
        x, index = _reduce_window((x, index), init, first_winner, Geometry((axis,)))
    return index


def window_sum(x: jax.Array, geometry: Geometry, form: str | None = None) -> jax.Array:
    """The sum of each window, in the dtype of `x`: y_o = sum_{i in W(o)} x_i."""
    return _sum(x, geometry, form or chosen_form(geometry))


@functools.partial(jax.jit, static_argnums=(1, 2))
def _sum(x, geometry, form):
    if form == "reduce_window":
        return _reduce_window(x, np.array(0, x.dtype), lax.add, geometry)
    if form == "planes" and planes.fit(x, geometry):
        return _plane_sum(x, geometry)
    for chains in sum_stages(geometry):
        x = functools.reduce(lax.add, [read_all(x, chain) for chain in chains])
    return x


def window_mean(
    x: jax.Array, geometry: Geometry, counts: np.ndarray
) -> jax.Array | None:
    """The sum of each window by `counts`, as one node of a runtime's; None if none is.

    For formulas that are traced plainly.
    """
    if chosen_form(geometry) != "planes" or not planes.fit(x, geometry):
        return None
    if geometry.whole:
        return jnp.mean(x, geometry.pooled, keepdims=True)
    return _plane_mean(x, geometry, np.maximum(counts, 1))


def _plane_extremum(x, geometry, largest):
    """The extremum by maxima of planes: converters know no other."""
    if jnp.issubdtype(x.dtype, jnp.integer) and np.dtype(x.dtype).itemsize < 4:
        y = _plane_extremum(x.astype(np.float32), geometry, largest)
        return y.astype(x.dtype)
    if not planes.fit(x, geometry):
        return _value(x, geometry, largest, "stages")
    zero = np.array(0, x.dtype)
    x = x if largest else zero - x  # which has a form in int8, unlike -x
    for pair in planes.pairs(geometry):
        plane, inner, shape = planes.cut(x, pair)
        empty = identity(x.dtype, True)
        x = _reduce_window(plane, empty, lax.max, inner).reshape(shape)
    return x if largest else zero - x


def _plane_sum(x, geometry):
    """The sum of each window by their mean: converters know no other."""
    if geometry.whole:
        return jnp.sum(x, geometry.pooled, keepdims=True)
    taps = np.full([1] * x.ndim, geometry.clipped.taps)
    return _plane_mean(x, geometry, taps) * taps.astype(x.dtype)


def _plane_mean(x, geometry, counts):
    """The sum of each window by `counts`, by means of planes."""
    pairs, zero = list(planes.pairs(geometry)), np.array(0, x.dtype)
    if len(pairs) == 1 and planes.same(geometry.clipped, counts):
        plane, inner, shape = planes.cut(x, pairs[0])
        ones = jnp.ones((1, *plane.shape[1:]), x.dtype)
        total, count = (
            _reduce_window(part, zero, lax.add, inner) for part in (plane, ones)
        )
        return (total / jnp.broadcast_to(count, total.shape)).reshape(shape)
    scale = np.asarray(1 / counts, np.float64)
    for pair in pairs:
        plane, inner, shape = planes.cut(x, pair)
        plane, inner, _ = window_pad(plane, inner, None, 0)
        total = _reduce_window(plane, zero, lax.add, inner)
        x = (total / np.array(inner.taps, x.dtype)).reshape(shape)
        scale = scale * inner.taps
    return x if np.allclose(scale, 1, 1e-12, 0) else x * scale.astype(x.dtype)


def read_all(x, stages, codes=()):
    """`linear.read` through one stage after the other."""
    pairs = itertools.zip_longest(stages, codes)
    for i, (stage, code) in enumerate(pairs):
        # As for values: a stage must not be computed again for each tap of the next.
        x = linear.read(lax.optimization_barrier(x) if i else x, stage, code)
    return x


def window_fold(
    x: Any,
    init: Any,
    op: Callable[[Any, Any], Any],
    geometry: Geometry,
) -> Any:
    """Each window folded with `op`, an associative function: its own derivatives hold.

    `x` is an array, or several of one shape that `op` takes and returns together; then
    `init` is as many scalars. As in `lax.reduce_window`, `init` enters each window once
    and each element of padding again, so anything but an identity of `op` changes the
    result. Half precision folds in float32. Windows of symbolic size are those of
    `lax.reduce_window`, which knows no derivative of most functions.
    """
    each, given = jax.tree.map, x
    x = each(lambda x: x.astype(accumulation_dtype(x.dtype)), x)
    init = each(lambda x, init: jnp.asarray(init).astype(x.dtype), x, init)
    if not isinstance(geometry.taps, int):
        x = _reduce_window(x, init, op, geometry)
        return each(lambda x, given: x.astype(given.dtype), x, given)
    inner, outside = geometry.clipped, init
    x = each(lambda x, init: _pad(x, inner, init), x, init)
    pairs = zip(geometry.axes, inner.axes, strict=True)
    for a, part in reversed(list(pairs)):  # the last axis first: row-major order
        x = functools.reduce(op, [each(tap, x) for tap in _along(part)])
        before = (a.low - part.low) // a.dilation
        for n, first in ((before, True), (a.window - part.window - before, False)):
            if n:
                y = _times(op, outside, n)
                y = each(lambda y, x: jnp.broadcast_to(y, x.shape), y, x)
                x = op(y, x) if first else op(x, y)
        outside = _times(op, outside, a.window)
    x = op(each(lambda x, init: jnp.broadcast_to(init, x.shape), x, init), x)
    return each(lambda x, given: x.astype(given.dtype), x, given)


def _times(op, x, n):
    """`x` folded with itself, n times over, by halves."""
    if n == 1:
        return x
    half = _times(op, x, n // 2)
    return op(op(half, half), x) if n % 2 else op(half, half)


def _pad(x, geometry, value):
    """`x` with as much padding as its windows reach into."""
    return lax.pad(x, value, [(low, high, 0) for low, high in geometry.pads(x.ndim)])


def _along(a) -> list[Callable[[jax.Array], jax.Array]]:
    """For each tap along an axis, what reads it for all windows of a padded array."""

    def read(start, x):
        end = start + (a.out - 1) * a.stride + 1
        return lax.slice_in_dim(x, start, end, a.stride, x.ndim + a.axis)

    return [functools.partial(read, k * a.dilation) for k in range(a.window)]


def window_pad(
    x: jax.Array, geometry: Geometry, where: jax.Array | None, value: ArrayLike
) -> tuple[jax.Array, Geometry, jax.Array | None]:
    """The same windows over an array that holds their padding.

    Returns the array, with `value` as padding and in place of what the mask hides; its
    geometry; and a mask of what is neither, or None if that is everything.
    """
    x = hide(x, where, value)
    if not any(a.low or a.high for a in geometry.axes):
        return x, geometry, where
    if where is None:
        where = jnp.ones(geometry.full(x.ndim, "size", 1), bool)
    inside = Geometry(
        tuple(
            replace(a, size=a.low + a.size + a.high, low=0, high=0, counted_high=0)
            for a in geometry.axes
        )
    )
    value = jnp.asarray(value, x.dtype)
    where = _pad(where, geometry, np.array(False))
    return _pad(x, geometry, value), inside, where


def window_taps(x: jax.Array, geometry: Geometry) -> list[jax.Array]:
    """The elements of each window: an array of the output's shape for each tap.

    In row-major order. Windows must not hold padding (see `window_pad`). A formula that
    folds them is one loop over the input; stacked, they would be as large as all
    windows together.
    """
    parts = [x]
    for a in geometry.axes:
        parts = [tap(part) for part in parts for tap in _along(a)]
    return parts


def window_stack(x: jax.Array, geometry: Geometry) -> jax.Array:
    """As `window_taps`, one after the other along a new first axis."""
    axes = geometry.pooled
    if geometry.whole:
        x = jnp.moveaxis(x, axes, range(len(axes)))
        return jnp.expand_dims(x.reshape(geometry.taps, *x.shape[len(axes) :]), axes)
    x = lax.expand_dims(x, [0])
    for a in reversed(geometry.axes):  # the last axis first: row-major order
        x = lax.concatenate([tap(x) for tap in _along(a)], 0)
    return x


def window_combine(
    formula: Callable[..., jax.Array], x: jax.Array, geometry: Geometry, *outputs: Any
) -> jax.Array:
    """`formula` of the elements of each window, a list of arrays, and of `outputs`.

    One loop over the output, whose shape `outputs` have; half precision is computed in
    float32. Padding is no element: lists differ in length, and a window without
    elements gives 0. More than a few elements want padding that is (see `few_regions`).
    """
    return taps.combine(formula, geometry, (x,), outputs)


def few_regions(
    x: jax.Array, geometry: Geometry, where: jax.Array | None, value: ArrayLike
) -> tuple[jax.Array, Geometry, jax.Array | None]:
    """`window_pad` for windows of many elements, which padding leaves in many ways."""
    if geometry.taps <= MOST_TAPS:
        return hide(x, where, value), geometry, where
    return window_pad(x, geometry, where, value)
