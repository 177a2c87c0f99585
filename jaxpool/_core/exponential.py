"""Windows whose elements weigh as much as an exponential says, in one fused loop.

A weight is relative to that of the window's peak, and so between 0 and 1: nothing
overflows, and a window far below others does not vanish. Exponentials and logarithms
in float32 are written out: XLA's own take several times as long on a CPU as reading
what they are of. They are for ordinary numbers, and say which.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.interpreters import ad

from jaxpool._core import linear, taps
from jaxpool._core.engine import window_pad, window_taps
from jaxpool._core.geometry import Geometry
from jaxpool._core.numerics import accumulation_dtype, hide, mean_dtype
from jaxpool._core.stages import holds_nothing, regions

__all__ = [
    "by_window",
    "exp",
    "expm1",
    "exponential_mean",
    "fold",
    "log",
    "log1p",
    "log_mean_exponential",
    "weighted_by",
]

# Windows with more elements than this are folded along one axis after the other.
MOST_AT_ONCE = 49

Parts = Sequence[jax.Array]


def _polynomial(f: Callable[[Any], Any], reach: float, degree: int) -> list[float]:
    """Coefficients of what interpolates f on [-reach, reach], the highest first."""
    fit = np.polynomial.Chebyshev.interpolate(f, degree, [-reach, reach])
    return fit.convert(kind=np.polynomial.Polynomial).coef[::-1].tolist()


# (2**x - 1) / x and log(1 + x) / x, to half an ulp of the result. No node is at 0.
_POWER = _polynomial(lambda x: np.expm1(x * math.log(2)) / x, 0.5, 5)
_LOG = _polynomial(lambda x: np.log1p(x) / x, 1 / 3, 9)


def _horner(coefficients: list[float], x: jax.Array) -> jax.Array:
    y = x * 0 + np.float32(coefficients[0])
    for c in coefficients[1:]:
        y = y * x + np.float32(c)
    return y


def _power_parts(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """e**x for x < 88 in float32, as a power of two s and s * (e**x / s - 1)."""
    x = lax.max(x * np.float32(1 / math.log(2)), np.float32(-127))
    # Adding 1.5 * 2**23 rounds to an integer, which the last bits then hold.
    shifter = np.float32(1.5 * 2**23)
    bits = lax.bitcast_convert_type(x + shifter, jnp.int32)
    whole = bits - lax.bitcast_convert_type(shifter, np.int32)
    rest = x - whole.astype(jnp.float32)
    scale = lax.bitcast_convert_type((whole + np.int32(127)) << 23, jnp.float32)
    return scale, scale * (rest * _horner(_POWER, rest))


@jax.custom_jvp
def exp(x: jax.Array) -> jax.Array:
    """e**x for x < 88, and 0 where it is below the normal numbers."""
    if x.dtype != jnp.float32:
        return jnp.exp(x)
    scale, rest = _power_parts(x)
    return scale + rest


@jax.custom_jvp
def expm1(x: jax.Array) -> jax.Array:
    """e**x - 1 for x < 88."""
    if x.dtype != jnp.float32:
        return jnp.expm1(x)
    scale, rest = _power_parts(x)
    return (scale - 1) + rest


def _logarithm(x: jax.Array, less_one: jax.Array) -> jax.Array:
    """log(x) in float32 for a normal number x > 0, given x - 1 too."""
    # x is 2**k (1 + f), with 2/3 <= 1 + f < 4/3.
    third = lax.bitcast_convert_type(np.float32(2 / 3), np.int32)
    bits = lax.bitcast_convert_type(x, jnp.int32) - third
    k = (bits >> 23).astype(jnp.float32)
    f = lax.bitcast_convert_type((bits & (2**23 - 1)) + third, jnp.float32) - 1
    f = jnp.where(k == 0, less_one, f)
    return k * np.float32(math.log(2)) + f * _horner(_LOG, f)


@jax.custom_jvp
def log(x: jax.Array) -> jax.Array:
    """log(x) for a normal number x > 0, or infinity."""
    if x.dtype != jnp.float32:
        return jnp.log(x)
    return jnp.where(x < np.float32(np.inf), _logarithm(x, x - 1), x)


@jax.custom_jvp
def log1p(x: jax.Array) -> jax.Array:
    """log(1 + x) for a finite x > -1 where 1 + x is a normal number."""
    return jnp.log1p(x) if x.dtype != jnp.float32 else _logarithm(1 + x, x)


# Where derivatives are taken, all are XLA's own: it computes an operand again for each
# of its uses in some loops of a derivative, and here there are many.
exp.defjvp(lambda x, t: (y := jnp.exp(*x), y * t[0]))
expm1.defjvp(lambda x, t: (jnp.expm1(*x), jnp.exp(*x) * t[0]))
log.defjvp(lambda x, t: (jnp.log(*x), t[0] / x[0]))
log1p.defjvp(lambda x, t: (jnp.log1p(*x), t[0] / (1 + x[0])))


def _same_shape(shape, stage):
    return shape


_settled_p = linear._primitive("pool_settled", lambda x, stage: x, _same_shape)
_apart_p = linear._primitive("pool_apart", lambda x, stage: taps.apart(x), _same_shape)
ad.primitive_transposes[_settled_p] = linear._transpose_with(_apart_p)
ad.primitive_transposes[_apart_p] = linear._transpose_with(_settled_p)


def _settled(x: jax.Array) -> jax.Array:
    """Returns `x`, whose cotangent is computed once, before whatever uses it."""
    return _settled_p.bind(x, stage=None)


def fold(op: Callable[[Any, Any], Any], parts: Parts, stage: Geometry) -> jax.Array:
    """Each window's elements folded with `lax.max`, `lax.min` or `lax.add`."""
    y = functools.reduce(op, parts)
    if not stage.whole:
        return y
    over = {lax.max: jnp.max, lax.min: jnp.min, lax.add: jnp.sum}[op]
    return over(y, stage.pooled, keepdims=True)


def by_window(
    f: Callable[..., Any],
    arrays: Sequence[jax.Array | None],
    padding: Sequence[Any],
    geometry: Geometry,
) -> Any:
    """`f(parts, stage)`, a tree of arrays, for all windows of a geometry.

    For each array (or None), `parts` has a list of the elements of each window, which
    `fold` takes with the `stage`. Outputs are cut into regions whose windows hold the
    same places of the input; only where some hold none, or sizes are symbolic, is the
    input padded.
    """
    if geometry.whole:
        return f([x if x is None else [x] for x in arrays], geometry)
    if geometry.symbolic or holds_nothing(geometry):
        padded = [
            None if x is None else window_pad(x, geometry, None, value)
            for x, value in zip(arrays, padding, strict=True)
        ]
        arrays = [x if x is None else x[0] for x in padded]
        geometry = next(x[1] for x in padded if x is not None)
    return _by_region(f, arrays, geometry, 0)


def _by_region(f, arrays, geometry, done):
    if done == len(geometry.axes) or geometry.symbolic:
        parts = [
            x if x is None else [_settled(tap) for tap in window_taps(x, geometry)]
            for x in arrays
        ]
        return f(parts, geometry)
    a, results = geometry.axes[done], []
    for run in regions(a):
        out, count = run.end - run.begin, len(run.taps)
        start = run.begin * a.stride - a.low + run.taps[0] * a.dilation
        size = (out - 1) * a.stride + (count - 1) * a.dilation + 1
        inner = replace(a, size=size, window=count, out=out, low=0, high=0)
        axes = (*geometry.axes[:done], inner, *geometry.axes[done + 1 :])
        here = [
            x if x is None else lax.slice_in_dim(x, start, start + size, 1, a.axis)
            for x in arrays
        ]
        results.append(_by_region(f, here, Geometry(axes), done + 1))
    join = lambda *ys: lax.concatenate(ys, ys[0].ndim + a.axis)  # noqa: E731
    return results[0] if len(results) == 1 else jax.tree.map(join, *results)


@functools.partial(jax.jit, static_argnums=3)
def exponential_mean(
    place: jax.Array, values: jax.Array | None, slope: jax.Array, geometry: Geometry
) -> jax.Array:
    """The mean of each window's values with weights e**(slope * place), slope > 0.

    Values are the places themselves if None; then an infinite peak is the result. What
    is at -inf has no weight. A window with nothing else gives 0, or its peak.
    """

    @functools.partial(jax.checkpoint, static_argnums=1)
    def merge(parts, stage):
        places, totals, values = parts
        peak, away = _apart(places, stage)
        weights = [exp(slope * d) for d in away]
        if totals is not None:
            weights = _products(weights, totals)
        total = fold(lax.add, weights, stage)
        some = jnp.where(total == 0, 1, total)
        if values is not None:
            return peak, total, fold(lax.add, _products(weights, values), stage) / some
        mean = peak + fold(lax.add, _products(weights, away), stage) / some
        return peak, total, jnp.where(jnp.isfinite(peak), mean, peak)

    state: Any = (place, None, values)
    empty = (-np.inf, 0, 0)
    for stage in _chain(geometry):
        state = by_window(merge, state, empty, stage)
    return state[2]


def weighted_by(
    x: jax.Array, logits: jax.Array, geometry: Geometry, where: jax.Array | None
) -> jax.Array:
    """The mean of each window with weights e**logits, in the dtype it adds up in."""
    x = x.astype(accumulation_dtype(mean_dtype(x.dtype)))
    logits = hide(logits.astype(x.dtype), where, -jnp.inf)
    # Infinities as the largest number: the difference of two is 0.
    logits = lax.min(logits, np.finfo(x.dtype).max)
    x = hide(x, logits != -jnp.inf)
    return exponential_mean(logits, x, jnp.ones([1] * x.ndim, x.dtype), geometry)


@functools.partial(jax.jit, static_argnums=3)
def log_mean_exponential(
    place: jax.Array,
    where: jax.Array | None,
    slope: jax.Array,
    geometry: Geometry,
) -> jax.Array:
    """(1 / slope) log of the mean of e**(slope * place) of each window, slope > 0.

    An infinite peak is the result, also -inf where a window has no elements.
    """
    chain = _chain(geometry)
    if where is None and (len(chain) > 1 or holds_nothing(geometry)):
        ones = [1] * place.ndim
        for a in geometry.axes:
            ones[a.axis] = a.size
        where = jnp.ones(ones, bool)
    place = hide(place, where, -np.inf)
    counts = None if where is None else where.astype(place.dtype)

    @functools.partial(jax.checkpoint, static_argnums=1)
    def merge(parts, stage):
        places, excesses, counts = parts
        peak, away = _apart(places, stage)
        grown = [expm1(slope * d) for d in away]  # each weight, less 1
        count = None
        if counts is not None:
            count, grown = fold(lax.add, counts, stage), _products(grown, counts)
        if excesses is not None:
            weights = [exp(slope * d) for d in away]
            weighted = _products(excesses, weights)
            grown = [g + e for g, e in zip(grown, weighted, strict=True)]
        excess = fold(lax.add, grown, stage)
        n = stage.taps if count is None else jnp.maximum(count, 1)
        rise = log1p(excess / jnp.asarray(n, excess.dtype)) / slope
        return peak, excess, count, peak + jnp.where(jnp.isfinite(peak), rise, 0)

    state: Any = (place, None, counts)
    y, empty = place, (-np.inf, 0, 0)
    for stage in chain:
        *state, y = by_window(merge, state, empty, stage)
    return y


def _apart(places: Parts, stage: Geometry) -> tuple[jax.Array, Parts]:
    """The largest of each window's places, and how far below it each of them is."""
    peak = lax.stop_gradient(fold(lax.max, places, stage))
    level = jnp.where(jnp.isfinite(peak), peak, 0)
    # What is infinite is at a finite distance, so that 0 times it is 0. Above the level
    # are only places at an infinite peak.
    lowest, above = np.finfo(peak.dtype).min, np.asarray(1e-30, peak.dtype)
    return peak, [lax.clamp(lowest, p - level, above) for p in places]


def _products(a: Parts, b: Parts) -> Parts:
    return [x * y for x, y in zip(a, b, strict=True)]


def _chain(geometry: Geometry) -> list[Geometry]:
    """The windows themselves, or, with many elements, along one axis after another."""
    if geometry.whole or geometry.taps <= MOST_AT_ONCE:
        return [geometry]
    return [Geometry((axis,)) for axis in reversed(geometry.axes)]
