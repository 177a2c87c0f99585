"""Elements of windows drawn at random, in proportion to their size, if positive.

  uniform              a number for each place, drawn from a key
  window_sample        one element of each window
  window_expectation   the mean of that over all draws

One uniform number for each window decides, in a loop over the window's elements: no
array of all windows' elements is made.

References:
  John Salmon, Mark Moraes, Ron Dror, David Shaw: Parallel Random Numbers: As Easy as
  1, 2, 3, 2011.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxpool._core import linear, taps
from jaxpool._core.engine import (
    chosen,
    few_regions,
    read_all,
    window_combine,
    window_sum,
)
from jaxpool._core.geometry import Geometry
from jaxpool._core.indices import take
from jaxpool._core.lowering import chosen_form
from jaxpool._core.numerics import (
    accumulation_dtype,
    finite_or_zero,
    power_of_two_scale,
)
from jaxpool._core.order import MOST_MATCHED
from jaxpool._core.sharding import split_alike
from jaxpool._core.stages import MOST_TAPS, large_and_whole, regions, sum_stages

__all__ = ["uniform", "window_expectation", "window_sample"]

# Of Threefry-2x32: how far bits are rotated in a round, and a part of the key schedule.
_ROTATIONS = tuple(map(np.uint32, (13, 15, 26, 6, 17, 29, 16, 24)))
_PARITY = np.uint32(0x1BD11BDA)


def uniform(key: jax.Array, shape: Sequence[int], dtype: Any) -> jax.Array:
    """Numbers in [0, 1), all of whose bits are random: multiples of 2^-24 or 2^-53.

    The key, of whatever kind, gives 64 bits, and they the key of a Threefry-2x32 whose
    counter is the place: arithmetic, which XLA fuses with what reads it.
    `jax.random.uniform` keeps an array, and takes 3 to 6 times as long as a mean on
    CPUs, where it is compiled as a loop of passes over that.
    """
    first, second = jax.random.bits(key, (2,), jnp.uint32)
    row = lax.broadcasted_iota(jnp.uint32, shape, 0) if shape else jnp.uint32(0)
    place = taps.flat_positions(shape, range(1 - len(shape), 0)).astype(jnp.uint32)
    high, low = _threefry((first, second), (row, place))

    def upper(word, bits):
        return lax.shift_right_logical(word, np.uint32(32 - bits)).astype(jnp.int32)

    if np.dtype(dtype) == np.float64:
        number = upper(high, 27).astype(dtype) * 2.0**26 + upper(low, 26).astype(dtype)
        return number * 2.0**-53
    return upper(high, 24).astype(dtype) * np.asarray(2.0**-24, dtype)


def _threefry(key, counter):
    """Two words of 32 random bits for each counter of two: 20 rounds."""
    (first, second), (a, b) = key, counter
    keys = (first, second, first ^ second ^ _PARITY)
    a, b = a + first, b + second
    for turn in range(5):
        for by in _ROTATIONS[4 * (turn % 2) :][:4]:
            a = a + b
            b = lax.shift_left(b, by) | lax.shift_right_logical(b, np.uint32(32) - by)
            b = b ^ a
        a = a + keys[(turn + 1) % 3]
        b = b + (keys[(turn + 2) % 3] + np.uint32(turn + 1))
    return a, b


def window_sample(x: jax.Array, geometry: Geometry, key: jax.Array) -> jax.Array:
    """One element of each window, drawn with probability a_i / sum a, a = max(x, 0).

    One uniform number u is drawn for each window; the element chosen is the one at
    which the running sum of a, in row-major order, passes u * sum(a). A window without
    positive elements gives 0, and one with NaN or infinity NaN or infinity.

    Gradient: to the drawn element; what was drawn has none.
    """
    dtype, geometry = accumulation_dtype(x.dtype), geometry.clipped
    shape = geometry.out_shape(x.shape)
    number = split_alike(uniform(key, shape, dtype), shape, x)
    if geometry.taps <= MOST_MATCHED and _many_places(geometry):
        x, geometry, _ = few_regions(x, geometry, None, 0)
        return _drawn(x, number, geometry)
    # In an array of its own, as it is read once for each place of a window.
    still = lax.stop_gradient(x).astype(dtype)
    weights = _activations(still, geometry)[0](still)
    total = window_sum(weights, geometry)
    finite = jnp.isfinite(total)
    weights = finite_or_zero(weights)
    index = _drawn_index(weights, total * number, geometry)
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
    return _expected(x.astype(accumulation_dtype(x.dtype)), geometry).astype(x.dtype)


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
        return window_combine(_mean_drawn, x, geometry)
    return _mean_of_draws(x, geometry, _sum_of)


@_expected.defjvp
def _expected_jvp(geometry, primals, tangents):
    (x,), (tangent,) = primals, tangents
    y = _expected(x, geometry)
    # What is not finite is seen in `y`; in a derivative, times 0, it would be NaN.
    x, mean = finite_or_zero(x), finite_or_zero(y)
    weights, scale = _activations(x, geometry)
    share = weights(x)
    total = window_sum(share, geometry)
    some = (total > 0) & jnp.isfinite(y)
    tangent = jnp.where(share > 0, tangent, 0)
    change = 2 * window_sum(share * tangent, geometry)
    change -= mean / scale * window_sum(tangent, geometry)
    return y, jnp.where(some, change / jnp.where(some, total, 1), 0)


def _mean_of_draws(x, geometry, sum_of=lambda f, x, g: window_sum(f(x), g)):
    """The formula of `window_expectation` by sums of windows."""
    weights, scale = _activations(x, geometry)
    total = sum_of(weights, x, geometry)
    squares = sum_of(lambda x: weights(x) ** 2, x, geometry)
    y = squares / jnp.where(total > 0, total, 1) * scale
    return jnp.where(jnp.isfinite(total), y, total)


def _sum_of(f, x, geometry):
    """The sum of `f` of each window's elements, which is no array of its own."""

    def add(parts):
        return functools.reduce(lax.add, [f(part) for part in parts])

    (chains, *groups) = sum_stages(geometry)
    firsts = [(window_combine(add, x, chain[0]), chain[1:]) for chain in chains]
    x = functools.reduce(lax.add, [read_all(y, rest) for y, rest in firsts])
    for chains in groups:
        x = functools.reduce(lax.add, [read_all(x, chain) for chain in chains])
    return x


def _activations(x, geometry):
    """Weights in proportion to max(x, 0), as a function of `x`, and a scale.

    A sum is finite exactly where all of its weights are: scaling rules out overflow.
    """

    def activation(x):
        return jnp.where(x <= 0, 0, x)  # unlike max(x, 0), it keeps NaN

    scale = power_of_two_scale(activation(x), geometry.pooled, 2)
    return lambda x: activation(x) / scale, scale


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
@functools.partial(jax.jit, static_argnums=2)
def _drawn(x, number, geometry):
    return window_combine(_draw, x, geometry, number)


@_drawn.defjvp
def _drawn_jvp(geometry, primals, tangents):
    x, number = primals
    y = lax.stop_gradient(_drawn(x, number, geometry))
    code = _drawn_code(lax.stop_gradient(x), number, geometry)
    value = lambda x: chosen(x, y, (code,), geometry, "one stage")  # noqa: E731
    return jax.jvp(value, (x,), tangents[:1])


@functools.partial(jax.jit, static_argnums=2)
def _drawn_code(x, number, geometry):
    """The code of the element that `_draw` gives, `taps.NONE` if it is no element."""
    wide = accumulation_dtype(x.dtype)

    def region(runs):
        u = taps.outputs(number, geometry, runs)
        elements = taps.elements(x, geometry, runs)
        if not elements:
            return taps.filled(u, taps.NONE)
        _, weights, _, total = _proportions([part.astype(wide) for _, part in elements])
        code = taps.filled(u, np.uint8(elements[0][0]))
        passed = _passed(weights, total * u)
        for (tap, _), here in zip(elements[1:], passed, strict=True):
            code = jnp.where(here, np.uint8(tap), code)
        return jnp.where((total > 0) & jnp.isfinite(total), code, taps.NONE)

    return taps.apart(taps.put_together(geometry, regions, region))


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
            # Offsets in a window of symbolic size are of 64 bits under x64.
            start[a.axis] = offset.astype(jnp.int32) * a.dilation
            shift += start[a.axis] * stride
        here = lax.dynamic_slice(padded, start, extents)
        here = lax.slice(here, (0,) * ndim, here.shape, step)
        passed = (here > 0) & (below <= threshold)
        return below + here, jnp.where(passed, first + shift, index)

    state = (threshold * 0, first * 0 - 1)
    return lax.fori_loop(np.int32(0), np.int32(geometry.taps), visit, state)[1]


def _flat_strides(sizes: Sequence[int]) -> list[int]:
    """Distance, in a flat row-major index, between neighbours along each axis."""
    return [math.prod(sizes[i + 1 :]) for i in range(len(sizes))]


def _mean_drawn(parts: list[jax.Array]) -> jax.Array:
    """The expectation of `_draw`."""
    _, weights, scale, total = _proportions(parts)
    squares = functools.reduce(lax.add, [w * w for w in weights])
    y = squares / jnp.where(total > 0, total, 1) / scale
    return jnp.where(jnp.isfinite(total), y, total)


def _draw(parts: list[jax.Array], number: jax.Array) -> jax.Array:
    """The element where the running sum of positive ones passes number * sum.

    In row-major order; 0 if none is positive. NaN or infinity gives NaN or infinity.
    """
    parts, weights, _, total = _proportions(parts)
    y = parts[0]
    for part, passed in zip(parts[1:], _passed(weights, total * number), strict=True):
        y = jnp.where(passed, part, y)
    return jnp.where(jnp.isfinite(total), y, total)


def _proportions(parts):
    """The positive parts, and weights: a power of two, of each window, times them.

    Neither the sum of weights, nor of their squares, nears overflow, or vanishes.
    """
    zero = np.zeros((), parts[0].dtype)
    parts = [jnp.where(part <= zero, zero, part) for part in parts]  # keeps NaN
    exponent = jnp.finfo(zero.dtype).maxexp
    far = np.asarray(2.0 ** int(0.35 * exponent), zero.dtype)
    back = np.asarray(2.0 ** int(0.7 * exponent), zero.dtype)
    one = np.ones((), zero.dtype)
    largest = functools.reduce(lax.max, parts)
    scale = jnp.where(largest > far, 1 / back, one)
    scale = jnp.where(largest < 1 / far, back, scale)
    weights = [part * scale for part in parts]
    return parts, weights, scale, functools.reduce(lax.add, weights)


def _passed(weights, threshold):
    """For each weight but the first: whether the sum of those before passes by it.

    The last for which that holds is the one that is drawn, and there is one, however
    the two sums round, unless the first is drawn, or no weight is positive.
    """
    below = weights[0]
    for weight in weights[1:]:
        yield (weight > 0) & (below <= threshold)
        below = below + weight
