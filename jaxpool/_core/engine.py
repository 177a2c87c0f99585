"""Windowed reductions and their derivative rules: the one door to XLA.

Only this file calls `lax.reduce_window`. Ops see these functions, none of which says
how it is computed:

  window_extremum  the largest or smallest element of each window
  window_choice    that, and where it stands, as a flat index into the pooled axes
  window_sum       the sum of each window
  window_fold      any monoid over each window
  window_combine   any formula of the elements of each window, in one loop
  window_sample    an element drawn in proportion to its size, if positive
  window_expectation the mean of that over all draws
  window_softmax   the mean of each window, weighted by the softmax of its logits
  window_soft      that, with logits in proportion to the elements themselves
  window_power_mean   a root of the mean of powers
  window_lse       the logarithm of the mean of exponentials
  window_taps      all elements of each window, an array for each place in it
  window_sort      the same in ascending order
  window_match     the first element of each window that equals a given value

All of them are differentiated as a choice of elements that adds up: `linear.read` and
its transpose `linear.place`, one stage after the other. Where a choice is a flat index,
`indices.take` reads it.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike

from jaxpool._core import linear, taps
from jaxpool._core.geometry import Geometry
from jaxpool._core.indices import take
from jaxpool._core.lowering import chosen_form
from jaxpool._core.numerics import accumulation_dtype, hide, power_of_two_scale
from jaxpool._core.stages import (
    MOST_TAPS,
    holds_nothing,
    large_and_whole,
    stages,
    sum_stages,
)

__all__ = [
    "MOST_COMPARED",
    "MOST_MATCHED",
    "few_regions",
    "identity",
    "in_order",
    "window_choice",
    "window_combine",
    "window_expectation",
    "window_extremum",
    "window_fold",
    "window_lse",
    "window_match",
    "window_pad",
    "window_power_mean",
    "window_sample",
    "window_soft",
    "window_softmax",
    "window_sort",
    "window_sum",
    "window_taps",
]

# Up to this many elements of a window are sorted by comparing pairs of whole arrays,
# which XLA fuses: 100 times as fast as its own sort on a CPU, as the program grows.
MOST_COMPARED = 49
# Up to this many elements of a window have a code each.
MOST_MATCHED = int(taps.NONE) - 1


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
    return y, _read_all(index, stages(geometry), codes) - 1


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
        y = _chosen(x, y, codes, geometry, form)
    return y, codes


@functools.partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def _chosen(x, y, codes, geometry, form):
    """The elements of `x` that `codes` name, which are known to be `y`."""
    del x, codes, geometry, form
    return y


@_chosen.defjvp
def _chosen_jvp(geometry, form, primals, tangents):
    x, y, codes = primals
    # Transposed, these add: in float32, whatever the dtype.
    tangent = tangents[0].astype(accumulation_dtype(x.dtype))
    if form == "reduce_window":
        tangent = take(tangent, codes[0], geometry.pooled)
    else:
        chain = (geometry,) if form == "one stage" else stages(geometry)
        tangent = _read_all(tangent, chain, codes)
    # The decorated function, so that a second derivative follows this rule too.
    return _chosen(x, y, codes, geometry, form), tangent.astype(y.dtype)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _value(x, geometry, largest, form):
    if form == "reduce_window":
        return _native_extremum(x, geometry, largest)
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
    codes, alive = [], where
    for stage in stages(geometry):
        # The barriers keep XLA from computing values and codes again for each tap of
        # whatever uses them, and from keeping `x` until then.
        y = taps.fold(x, stage, op, empty)
        y = taps.apart(y) if stage.binned else lax.optimization_barrier(y)
        code = taps.apart(taps.choose(x, y, stage, alive))
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

    if any(a.stride < a.window for a in geometry.axes):
        return reduce(x)
    return taps.keeping_nan(x, reduce, functools.partial(reduce, largest=True))


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


def window_sum(x: jax.Array, geometry: Geometry) -> jax.Array:
    """The sum of each window, in the dtype of `x`: y_o = sum_{i in W(o)} x_i."""
    return _sum(x, geometry, chosen_form(geometry))


@functools.partial(jax.jit, static_argnums=(1, 2))
def _sum(x, geometry, form):
    if form == "reduce_window":
        return _reduce_window(x, np.array(0, x.dtype), lax.add, geometry)
    for chains in sum_stages(geometry):
        x = functools.reduce(lax.add, [_read_all(x, chain) for chain in chains])
    return x


def _read_all(x, stages, codes=()):
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
    result. Half precision folds in float32.
    """
    each, given = jax.tree.map, x
    x = each(lambda x: x.astype(accumulation_dtype(x.dtype)), x)
    init = each(lambda x, init: jnp.asarray(init).astype(x.dtype), x, init)
    x = each(lambda x, init: _pad(x, geometry, init), x, init)
    for a in reversed(geometry.axes):  # the last axis first: row-major order
        x = functools.reduce(op, [each(tap, x) for tap in _along(a)])
    x = op(each(lambda x, init: jnp.broadcast_to(init, x.shape), x, init), x)
    return each(lambda x, given: x.astype(given.dtype), x, given)


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


def window_softmax(x: jax.Array, logits: jax.Array, geometry: Geometry) -> jax.Array:
    r"""The mean of each window, weighted by the softmax of its logits.

    .. math:: y_o = \sum_{i \in W(o)} w_{o i} x_i, \qquad
        w_{o i} = e^{g_i} \Big/ \sum_{j \in W(o)} e^{g_j}

    `logits` have the shape and dtype of `x`. What is at -inf has no weight, and a
    window with nothing else gives 0.

    Gradient: :math:`w_{o i}` in x and :math:`w_{o i} (x_i - y_o)` in g, computed from
    x and g once more: nothing is kept for each element of each window.
    """
    if gathers(geometry):
        return _weighted(x, logits, geometry)
    for a in reversed(geometry.axes):
        along, given = Geometry((a,)), logits
        if gathers(along):
            x = _weighted(x, given, along)
        else:
            x = taps.softmax_mean(
                _padded_taps(x, along, 0), _padded_taps(given, along, -np.inf)
            )
        logits = window_lse(given, jnp.ones([1] * x.ndim, x.dtype), 1, along)
    return x


def window_soft(x: jax.Array, beta: jax.Array, geometry: Geometry) -> jax.Array:
    """`window_softmax` with the logits beta x, where beta is the same for a window."""
    if gathers(geometry):
        return _soft(x, beta, geometry)
    return window_softmax(x, beta * x, geometry)


def window_lse(x: jax.Array, r: jax.Array, count: Any, geometry: Geometry) -> jax.Array:
    r"""The logarithm of each window's mean of exponentials.

    .. math:: y_o = \frac{1}{r} \log \frac{1}{n_o} \sum_{i \in W(o)} e^{r x_i}

    `r` is above 0, of the rank of `x`, and the same for a window; `count` is n, a
    number or an array of that rank. -inf where all elements are.

    Gradient: the softmax of r x over the window, and that of the formula in r; computed
    from x once more.
    """
    count = jnp.asarray(count, x.dtype)
    count = count.reshape((1,) * (x.ndim - count.ndim) + count.shape)
    if gathers(geometry):
        return _lse(x, r, count, geometry)
    for a in reversed(geometry.axes):
        along = Geometry((a,))
        n = count if a is geometry.axes[0] else jnp.ones([1] * x.ndim, x.dtype)
        if gathers(along):
            x = _lse(x, r, n, along)
        else:
            x = taps.log_of_mean(_padded_taps(x, along, -np.inf), r, n)
    return x


def window_power_mean(
    x: jax.Array, p: Any, count: jax.Array | np.ndarray, geometry: Geometry
) -> jax.Array:
    r"""The power mean of each window of numbers, none below 0.

    .. math:: y_o = \Big(\frac{1}{n_o} \sum_{i \in W(o)} x_i^p\Big)^{1/p}

    `p` is an int, or an array of the rank of `x` that is the same for a window; `count`
    is n, of the rank of `x`. The window is one that `gathers`.

    Gradient: :math:`(x_i / y_o)^{p - 1} / n_o`, and that of the formula in p; 0 where x
    is 0.
    """
    count = jnp.asarray(count, x.dtype)
    if isinstance(p, int):
        return _static_power_mean(x, count, p, geometry)
    return _power_mean(x, p, count, geometry)


def gathers(geometry: Geometry) -> bool:
    """Whether windows are few elements of known places, or the whole extent.

    Weighted windows then have derivatives that gather, and `window_power_mean` exists.
    """
    if geometry.symbolic:
        return geometry.whole
    return large_and_whole(geometry) or geometry.taps <= MOST_TAPS


def _padded_taps(x, geometry, value):
    """The elements of each window, padding as `value` among them."""
    return window_taps(*window_pad(x, geometry, None, value)[:2])


def _softmax_weights(logits, geometry):
    """What `linear.read_weighted` needs to know of a softmax."""
    # Of what is infinite, no other logit has a share.
    most = np.finfo(logits.dtype).max
    largest = window_extremum(lax.stop_gradient(logits), geometry, True)
    largest = lax.clamp(-most, largest, most)
    return logits, largest, _excess(logits, largest, geometry)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
@functools.partial(jax.jit, static_argnums=2)
def _excess(logits, largest, geometry):
    # Without the barrier XLA keeps the exponentials that others compute as well.
    logits, largest = lax.optimization_barrier((logits, largest))
    return taps.excess(logits, largest, geometry)


@_excess.defjvp
def _excess_jvp(geometry, primals, tangents):
    logits, largest = primals
    y = _excess(logits, largest, geometry)
    return y, linear.read_weighted(tangents[0], geometry, logits, largest, y)


@functools.partial(jax.jit, static_argnums=2)
def _softmax_value(x, logits, geometry):
    return taps.weigh(x, logits, geometry)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _weighted(x, logits, geometry):
    return _softmax_value(x, logits, geometry)


@_weighted.defjvp
def _weighted_jvp(geometry, primals, tangents):
    (x, logits), (dx, dlogits) = primals, tangents
    y = _weighted(x, logits, geometry)
    weights = _softmax_weights(logits, geometry)
    change = linear.read_weighted(dx, geometry, *weights)
    return y, change + linear.read_weighted(dlogits, geometry, *weights, x, -y)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _soft(x, beta, geometry):
    return _softmax_value(x, beta * x, geometry)


def _soft_jvp(geometry, primals, tangents):
    # As for `_weighted`, with one sum over windows in place of two.
    (x, beta), (dx, dbeta) = primals, tangents
    y, logits = _soft(x, beta, geometry), beta * x
    weights = _softmax_weights(logits, geometry)
    change = y * 0
    if not isinstance(dx, SymbolicZero):
        change += linear.read_weighted(dx, geometry, *weights, logits, 1 - beta * y)
    if not isinstance(dbeta, SymbolicZero):
        change += dbeta * linear.read_weighted(x, geometry, *weights, x, -y)
    return y, change


_soft.defjvp(_soft_jvp, symbolic_zeros=True)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
@functools.partial(jax.jit, static_argnums=3)
def _lse(x, r, count, geometry):
    return taps.log_mean(x, r, count, geometry)


def _lse_jvp(geometry, primals, tangents):
    (x, r, count), (dx, dr, _) = primals, tangents
    y, weights = _lse(x, r, count, geometry), _softmax_weights(r * x, geometry)
    change = taps.finite_or_zero(y) * 0
    if not isinstance(dx, SymbolicZero):
        change += linear.read_weighted(dx, geometry, *weights)
    if not isinstance(dr, SymbolicZero):
        # The softmax's mean less y, by r; what is infinite adds nothing.
        x, y_ = taps.finite_or_zero(x), taps.finite_or_zero(y)
        ones = linear.read_weighted(x * 0 + 1, geometry, *weights)
        mean = linear.read_weighted(x, geometry, *weights)
        change += dr / r * (mean - y_ * ones)
    return y, change


_lse.defjvp(_lse_jvp, symbolic_zeros=True)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _power_mean_value(x, count, p, geometry):
    return taps.power_mean(x, p, count, geometry)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _static_power_mean(x, count, p, geometry):
    return _power_mean_value(x, count, p, geometry)


@_static_power_mean.defjvp
def _static_power_mean_jvp(p, geometry, primals, tangents):
    x, count = primals
    y = _static_power_mean(x, count, p, geometry)
    return y, _power_mean_change(x, tangents[0], y, p, count, geometry)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
@functools.partial(jax.jit, static_argnums=3)
def _power_mean(x, p, count, geometry):
    return taps.power_mean(x, p, count, geometry)


def _power_mean_jvp(geometry, primals, tangents):
    (x, p, count), (dx, dp, _) = primals, tangents
    y = _power_mean(x, p, count, geometry)
    change = y * 0
    if not isinstance(dx, SymbolicZero):
        change += _power_mean_change(x, dx, y, p, count, geometry)
    if not isinstance(dp, SymbolicZero):
        # y / p * (sum of s log x - log y), with the shares s of x**p in their sum
        x, z = _beside_each_other(x, y, geometry)
        outer = _log(z, 0)
        total = p * outer + jnp.log(count)
        weights = _log(x, -np.inf, p), z * 0, jnp.broadcast_to(total, z.shape)
        mean = linear.read_weighted(_log(x, 0), geometry, *weights)
        change += dp * y / p * (mean - outer)
    return y, change


_power_mean.defjvp(_power_mean_jvp, symbolic_zeros=True)


def _power_mean_change(x, dx, y, p, count, geometry):
    """The sum of (x / y)**(p - 1) / n times dx."""
    x, y = _beside_each_other(x, y, geometry)
    # All of the weights' denominator has a derivative here: it is the second part.
    total = _log(y, 0, p - 1) + jnp.log(count)
    weights = _log(x, -np.inf, p - 1), y * 0, jnp.broadcast_to(total, y.shape)
    return linear.read_weighted(dx, geometry, *weights)


def _beside_each_other(x, y, geometry):
    """Both by one power of two for each plane, so that logarithms are small."""
    largest = jnp.max(lax.stop_gradient(x), geometry.pooled, keepdims=True)
    _, inverse = taps.binade(largest)
    return x * inverse, y * inverse


def _log(x, otherwise, factor=1):
    """A multiple of the logarithm of x, or something else at 0."""
    some = x > 0
    return jnp.where(some, factor * jnp.log(jnp.where(some, x, 1)), otherwise)


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


def window_sort(x: jax.Array, geometry: Geometry) -> Sequence[jax.Array] | jax.Array:
    """The elements of each window in ascending order: `[taps]` of the output's shape.

    If one is NaN, all are. Windows must not hold padding (see `window_pad`). There is
    no derivative; `window_match` has it for one of them.
    """
    return _sorted(lax.stop_gradient(x), geometry)


@functools.partial(jax.jit, static_argnums=1)
def _sorted(x, geometry):
    if geometry.taps <= MOST_COMPARED:
        return in_order(window_taps(x, geometry))
    x = lax.expand_dims(x, [0])
    for a in geometry.axes:
        x = lax.concatenate([tap(x) for tap in _along(a)], 0)
    x = lax.sort(x, dimension=0)  # NaN comes last
    return jnp.where(x[-1:] != x[-1:], x[-1:], x)


def in_order(parts: Sequence[jax.Array]) -> list[jax.Array]:
    """Arrays put in ascending order, element by element; NaN in one is NaN in all."""
    parts = list(parts)
    for i, j in _comparators(len(parts)):
        a, b = parts[i], parts[j]
        parts[i], parts[j] = lax.min(a, b), lax.max(a, b)
    return parts


def _comparators(count: int) -> Iterator[tuple[int, int]]:
    """The pairs that sort `count` values if each is put in order (Batcher, 1968)."""
    for p in (2**i for i in range((count - 1).bit_length())):
        for k in (p >> i for i in range(p.bit_length())):
            for i in range(k % p, count - k):
                within = (i - k % p) // k % 2 == 0
                if within and i // (2 * p) == (i + k) // (2 * p):
                    yield i, i + k


def window_match(
    x: jax.Array, y: jax.Array, geometry: Geometry, where: jax.Array | None = None
) -> jax.Array:
    """Returns `y`, values of one element of each window, with that one's derivative.

    Of equal elements it is the first in row-major order, and the first NaN if `y` is
    NaN. A window has at most `MOST_MATCHED` elements, or is the whole extent.
    """
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return y
    return _matched(x, y, where, geometry)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _matched(x, y, where, geometry):
    del x, where, geometry
    return y


@_matched.defjvp
def _matched_jvp(geometry, primals, tangents):
    x, y, where = primals
    code = _match_code(lax.stop_gradient(x), y, where, geometry)
    value = lambda x: _chosen(x, y, (code,), geometry, "one stage")  # noqa: E731
    return jax.jvp(value, (x,), tangents[:1])


@functools.partial(jax.jit, static_argnums=3)
def _match_code(x, y, where, geometry):
    return taps.apart(taps.choose(x, y, geometry, where))


def window_combine(
    formula: Callable[..., jax.Array], x: jax.Array, geometry: Geometry, *outputs: Any
) -> jax.Array:
    """`formula` of the elements of each window, a list of arrays, and of `outputs`.

    One loop over the output, whose shape `outputs` have; half precision is computed in
    float32. Padding is no element: lists differ in length, and a window without
    elements gives 0. More than a few elements want padding that is (see `few_regions`).
    """
    return taps.combine(formula, x, geometry, *outputs)


def few_regions(
    x: jax.Array, geometry: Geometry, where: jax.Array | None, value: ArrayLike
) -> tuple[jax.Array, Geometry, jax.Array | None]:
    """`window_pad` for windows of many elements, which padding leaves in many ways."""
    if geometry.taps <= MOST_TAPS:
        return hide(x, where, value), geometry, where
    return window_pad(x, geometry, where, value)


def window_sample(x: jax.Array, geometry: Geometry, key: jax.Array) -> jax.Array:
    """One element of each window, drawn with probability a_i / sum a, a = max(x, 0).

    One uniform number u is drawn for each window; the element chosen is the one at
    which the running sum of a, in row-major order, passes u * sum(a). A window without
    positive elements gives 0, and one with NaN or infinity NaN or infinity.

    Gradient: to the drawn element; what was drawn has none.
    """
    dtype = accumulation_dtype(x.dtype)
    uniform = jax.random.uniform(key, geometry.out_shape(x.shape), dtype)
    if geometry.taps <= MOST_MATCHED and _many_places(geometry):
        x, geometry, _ = few_regions(x, geometry, None, 0)
        return _drawn(x, uniform, geometry)
    # In an array of its own, as it is read once for each place of a window.
    still = lax.stop_gradient(x).astype(dtype)
    weights = _proportions(still, geometry)[0](still)
    total = window_sum(weights, geometry)
    finite = jnp.isfinite(total)
    weights = taps.finite_or_zero(weights)
    index = _drawn_index(weights, total * uniform, geometry)
    index = jnp.where(finite, index, -1)
    if geometry.whole:
        y = linear.read(x, geometry, index)
    else:
        y = take(x, index, geometry.pooled)
    return jnp.where(finite, y, total.astype(y.dtype))


def window_expectation(x: jax.Array, geometry: Geometry) -> jax.Array:
    r"""The expectation of `window_sample`: y_o = sum a_i^2 / sum a_i.

    Gradient: (2 a_i - y_o) / sum a for positive elements, none where y is 0, NaN or
    infinite.
    """
    return _expected(x, geometry)


def _many_places(geometry):
    """Whether a formula of a window's elements is to be one loop over all windows."""
    return chosen_form(geometry) == "stages" and not large_and_whole(geometry)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _expected(x, geometry):
    if _many_places(geometry):
        return _expected_in_loops(x, geometry)
    return _mean_of_draws(x, geometry)


@functools.partial(jax.jit, static_argnums=1)
def _expected_in_loops(x, geometry):
    if geometry.taps <= MOST_TAPS:
        return taps.combine(taps.expect, x, geometry)
    return _mean_of_draws(x, geometry, _sum_of)


@_expected.defjvp
def _expected_jvp(geometry, primals, tangents):
    y = _expected(*primals, geometry)
    # What is not finite is seen in `y`; in a derivative, times 0, it would be NaN.
    mean = lambda x: _mean_of_draws(taps.finite_or_zero(x), geometry)  # noqa: E731
    tangent = jax.jvp(mean, primals, tangents)[1]
    return y, jnp.where(jnp.isfinite(y), tangent, 0)


def _mean_of_draws(x, geometry, sum_of=lambda f, x, g: window_sum(f(x), g)):
    """The formula of `window_expectation` by sums of windows, with its derivative."""
    wide = x.astype(accumulation_dtype(x.dtype))
    weights, scale = _proportions(wide, geometry)
    total = sum_of(weights, wide, geometry)
    squares = sum_of(lambda x: weights(x) ** 2, wide, geometry)
    positive = total > 0
    # The inner `where` keeps 0 / 0 out of the gradient.
    y = jnp.where(positive, squares / jnp.where(positive, total, 1), 0) * scale
    total = lax.stop_gradient(total)
    return jnp.where(jnp.isfinite(total), y, total).astype(x.dtype)


def _sum_of(f, x, geometry):
    """The sum of `f` of each window's elements, which is no array of its own."""

    def add(parts):
        return functools.reduce(lax.add, [f(part) for part in parts])

    (chains, *groups) = sum_stages(geometry)
    firsts = [(taps.combine(add, x, chain[0]), chain[1:]) for chain in chains]
    x = functools.reduce(lax.add, [_read_all(y, rest) for y, rest in firsts])
    for chains in groups:
        x = functools.reduce(lax.add, [_read_all(x, chain) for chain in chains])
    return x


def _proportions(x, geometry):
    """Weights in proportion to max(x, 0), as a function of `x`, and a scale.

    A sum is finite exactly where all of its weights are: scaling rules out overflow.
    """

    def activation(x):
        return jnp.where(x <= 0, 0, x)  # unlike max(x, 0), it keeps NaN

    scale = power_of_two_scale(activation(x), geometry.pooled, 2)
    return lambda x: activation(x) / scale, scale


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
@functools.partial(jax.jit, static_argnums=2)
def _drawn(x, uniform, geometry):
    return taps.combine(taps.draw, x, geometry, uniform)


@_drawn.defjvp
def _drawn_jvp(geometry, primals, tangents):
    x, uniform = primals
    y = lax.stop_gradient(_drawn(x, uniform, geometry))
    code = _drawn_code(lax.stop_gradient(x), uniform, geometry)
    value = lambda x: _chosen(x, y, (code,), geometry, "one stage")  # noqa: E731
    return jax.jvp(value, (x,), tangents[:1])


@functools.partial(jax.jit, static_argnums=2)
def _drawn_code(x, uniform, geometry):
    return taps.apart(taps.draw_code(x, uniform, geometry))


@functools.partial(jax.jit, static_argnums=2)
def _drawn_index(weights, threshold, geometry):
    """The flat index of the drawn element, in a loop over a window's elements."""
    ndim, axes = weights.ndim, geometry.axes
    shape = geometry.out_shape(weights.shape)
    strides = _flat_strides(geometry.sizes)

    # The flat index of each window's first element, laid out on devices as the sums.
    first = (threshold * 0).astype(jnp.int32)
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
        chosen = (here > 0) & (below <= threshold)
        return below + here, jnp.where(chosen, first + shift, index)

    state = (threshold * 0, first * 0 - 1)
    return lax.fori_loop(np.int32(0), np.int32(geometry.taps), visit, state)[1]


def _flat_strides(sizes: Sequence[int]) -> list[int]:
    """Distance, in a flat row-major index, between neighbours along each axis."""
    return [math.prod(sizes[i + 1 :]) for i in range(len(sizes))]
