"""Windows weighted by exponentials or powers of their elements, and their derivatives.

  window_softmax   the mean of each window, weighted by the softmax of its logits
  window_soft      that, with logits in proportion to the elements themselves
  window_lse       the logarithm of the mean of exponentials
  window_power_mean   a root of the mean of powers

Each is one loop over the input, and so is each derivative, by `linear.read_weighted`,
which computes the weights once more: none is kept. Logits count from each window's
largest, so that no exponential overflows.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero

from jaxpool._core import linear, taps
from jaxpool._core.engine import window_extremum, window_pad, window_taps
from jaxpool._core.geometry import Geometry
from jaxpool._core.numerics import finite_or_zero, power_of_two_near
from jaxpool._core.stages import MOST_TAPS, large_and_whole

__all__ = [
    "gathers",
    "soft_logits",
    "window_lse",
    "window_power_mean",
    "window_soft",
    "window_softmax",
]

Parts = Sequence[jax.Array]
Fold = Callable[..., Any]


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
    one = jnp.ones([1] * x.ndim, x.dtype)
    for a in reversed(geometry.axes):
        along, given = Geometry((a,)), logits
        if gathers(along):
            x = _weighted(x, given, along)
        else:
            x = _centred_mean(
                _padded_taps(x, along, 0), _padded_taps(given, along, -np.inf)
            )
        logits = window_lse(given, one, one, along)
    return x


def window_soft(x: jax.Array, beta: jax.Array, geometry: Geometry) -> jax.Array:
    """`window_softmax` with the logits beta x, where beta is the same for a window."""
    if gathers(geometry):
        return _soft(x, beta, geometry)
    return window_softmax(x, soft_logits(x, beta), geometry)


def soft_logits(x: jax.Array, beta: jax.Array) -> jax.Array:
    """beta x, with a derivative in beta that is finite at what is infinite."""
    infinite = lax.stop_gradient(_sharpened(x, beta))
    return jnp.where(jnp.isfinite(x), beta * finite_or_zero(x), infinite)


def _sharpened(x, beta):
    """beta x, and 0 for a beta of 0, with which infinities weigh as much as others."""
    return jnp.where(beta == 0, 0, beta * x)


def window_lse(
    x: jax.Array, r: jax.Array, count: jax.Array, geometry: Geometry
) -> jax.Array:
    r"""The logarithm of each window's mean of exponentials.

    .. math:: y_o = \frac{1}{r} \log \frac{1}{n_o} \sum_{i \in W(o)} e^{r x_i}

    `r` is above 0, and the same for a window; `count` is n; both have the rank and
    dtype of `x`. -inf where all elements are.

    Gradient: the softmax of r x over the window, and that of the formula in r; computed
    from x once more.
    """
    if gathers(geometry):
        return _lse(x, r, count, geometry)
    for a in reversed(geometry.axes):
        along = Geometry((a,))
        n = count if a is geometry.axes[0] else jnp.ones([1] * x.ndim, x.dtype)
        if gathers(along):
            x = _lse(x, r, n, along)
        else:
            x = _log_of_mean(_padded_taps(x, along, -np.inf), r, n)
    return x


def window_power_mean(
    x: jax.Array, p: int | jax.Array, count: jax.Array, geometry: Geometry
) -> jax.Array:
    r"""The power mean of each window of numbers, none below 0.

    .. math:: y_o = \Big(\frac{1}{n_o} \sum_{i \in W(o)} x_i^p\Big)^{1/p}

    `p` is an int, or an array of the rank of `x` that is the same for a window; `count`
    is n, of the rank and dtype of `x`. The window is one that `gathers`.

    Gradient: :math:`(x_i / y_o)^{p - 1} / n_o`, and that of the formula in p; 0 where x
    is 0.
    """
    power = p if isinstance(p, int) else None
    return _power_mean(x, jnp.asarray(p, x.dtype), count, power, geometry)


def gathers(geometry: Geometry) -> bool:
    """Whether windows are few elements of known places, or the whole extent.

    Weighted windows then have derivatives that gather, and `window_power_mean` exists.
    """
    if geometry.symbolic:
        return geometry.whole
    return large_and_whole(geometry) or geometry.taps <= MOST_TAPS


def _padded_taps(x, geometry, value):
    """The elements of each window, padding as `value` among them."""
    return window_taps(*window_pad(x, geometry.clipped, None, value)[:2])


def _softmax_mean(parts: Parts, logits: Parts, fold: Fold = functools.reduce):
    """The formula of `window_softmax`, of an array for each tap.

    What has no weight may be infinite or NaN, and an infinite logit decides.
    """
    largest = finite_or_zero(lax.stop_gradient(fold(lax.max, logits)))
    shares = [jnp.exp(part - largest) for part in logits]
    terms = [e * jnp.where(e > 0, x, 0) for e, x in zip(shares, parts, strict=True)]
    weighted, total = fold(lax.add, terms), fold(lax.add, shares)
    mean = weighted / jnp.where(total > 0, total, 1)
    return jnp.where(total < np.inf, mean, weighted)


def _centred_mean(parts, logits):
    """`_softmax_mean` of distances to the element of the largest logit.

    Its derivative is of differences of elements, which so cancel before they round.
    """
    largest = functools.reduce(lax.max, logits)
    pairs = zip(parts, logits, strict=True)
    best = [jnp.where(g == largest, part, -np.inf) for part, g in pairs]
    centre = finite_or_zero(lax.stop_gradient(functools.reduce(lax.max, best)))
    return centre + _softmax_mean([part - centre for part in parts], logits)


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
    """How far the logarithm of the sum of exponentials is above the largest logit."""
    # Without the barrier XLA keeps the exponentials that others compute as well.
    logits, largest = lax.optimization_barrier((logits, largest))

    def formula(parts, largest, fold):
        total = fold(lax.add, [jnp.exp(part - largest) for part in parts])
        return jnp.log(jnp.where((total > 0) & (total < np.inf), total, 1))

    return taps.folded(formula, geometry, (logits,), (largest,))


@_excess.defjvp
def _excess_jvp(geometry, primals, tangents):
    logits, largest = primals
    y = _excess(logits, largest, geometry)
    return y, linear.read_weighted(tangents[0], geometry, logits, largest, y)


@functools.partial(jax.jit, static_argnums=2)
def _softmax_value(x, logits, geometry):
    return taps.folded(_softmax_mean, geometry, (x, logits))


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _weighted(x, logits, geometry):
    return _softmax_value(x, logits, geometry)


@_weighted.defjvp
def _weighted_jvp(geometry, primals, tangents):
    (x, logits), (dx, dlogits) = primals, tangents
    y = _weighted(x, logits, geometry)
    weights = _softmax_weights(logits, geometry)
    change = linear.read_weighted(dx, geometry, *weights)
    # What is infinite and has no weight adds nothing: 0 * inf would be NaN.
    inside = finite_or_zero(x)
    return y, change + linear.read_weighted(dlogits, geometry, *weights, inside, -y)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _soft(x, beta, geometry):
    return _softmax_value(x, _sharpened(x, beta), geometry)


def _soft_jvp(geometry, primals, tangents):
    # As for `_weighted`, with one sum over windows in place of two.
    (x, beta), (dx, dbeta) = primals, tangents
    y, logits = _soft(x, beta, geometry), _sharpened(x, beta)
    weights = _softmax_weights(logits, geometry)
    change = y * 0
    # What is infinite and has no weight adds nothing: 0 * inf would be NaN.
    if not isinstance(dx, SymbolicZero):
        inside = finite_or_zero(logits)
        change += linear.read_weighted(
            dx, geometry, *weights, inside, 1 - _sharpened(y, beta)
        )
    if not isinstance(dbeta, SymbolicZero):
        x = finite_or_zero(x)
        change += dbeta * linear.read_weighted(x, geometry, *weights, x, -y)
    return y, change


_soft.defjvp(_soft_jvp, symbolic_zeros=True)


def _log_of_mean(parts: Parts, r: Any, count: Any, fold: Fold = functools.reduce):
    r"""The formula of `window_lse`, of an array for each tap.

    .. math:: y_o = m_o
        + \frac{1}{r} \log \frac{1}{n_o} \sum_k e^{r (x_{o, k} - m_o)}

    with the largest element m; -inf for no element.
    """
    largest = finite_or_zero(lax.stop_gradient(fold(lax.max, parts)))
    total = fold(lax.add, [jnp.exp(r * (part - largest)) for part in parts])
    none = total == 0
    mean = jnp.where(none, 1, total) / count
    return jnp.where(none, -np.inf, largest + jnp.log(mean) / r)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
@functools.partial(jax.jit, static_argnums=3)
def _lse(x, r, count, geometry):
    return taps.folded(_log_of_mean, geometry, (x,), (r, count), nothing=-np.inf)


def _lse_jvp(geometry, primals, tangents):
    (x, r, count), (dx, dr, _) = primals, tangents
    y, weights = _lse(x, r, count, geometry), _softmax_weights(r * x, geometry)
    change = finite_or_zero(y) * 0
    if not isinstance(dx, SymbolicZero):
        change += linear.read_weighted(dx, geometry, *weights)
    if not isinstance(dr, SymbolicZero):
        # The softmax's mean less y, by r; what is infinite adds nothing.
        x, y_ = finite_or_zero(x), finite_or_zero(y)
        ones = linear.read_weighted(x * 0 + 1, geometry, *weights)
        mean = linear.read_weighted(x, geometry, *weights)
        change += dr / r * (mean - y_ * ones)
    return y, change


_lse.defjvp(_lse_jvp, symbolic_zeros=True)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3, 4))
@functools.partial(jax.jit, static_argnums=(3, 4))
def _power_mean(x, p, count, power, geometry):
    r"""The formula of `window_power_mean`, with elements by something near the largest.

    .. math:: y_o = s_o \Big(\frac{1}{n_o} \sum_k (x_{o, k} / s_o)^p\Big)^{1/p}

    s is the largest element, so that no power overflows; or, for a known `power`, which
    is taken by multiplication, a power of two near it, so that nothing rounds.
    """
    p = p if power is None else power

    def formula(parts, count, fold):
        largest = fold(lax.max, parts)
        if power is None:
            usual = (largest >= np.finfo(x.dtype).tiny) & (largest < np.inf)
            scale = jnp.where(usual, largest, 1)
            powers = [jnp.exp(p * jnp.log(part / scale)) for part in parts]
        else:
            scale, inverse = power_of_two_near(largest)
            powers = [lax.integer_pow(part * inverse, power) for part in parts]
        mean = fold(lax.add, powers) / count
        if power in (1, 2):
            return scale * (mean if power == 1 else lax.sqrt(mean))
        # XLA's own roots are several times as slow, and it would keep the powers.
        return scale * jnp.exp(jnp.log(mean) * (1 / p))

    return taps.folded(formula, geometry, (x,), (count,))


def _power_mean_jvp(power, geometry, primals, tangents):
    (x, p, count), (dx, dp, _) = primals, tangents
    y = _power_mean(x, p, count, power, geometry)
    p = p if power is None else power
    change = y * 0
    # By one power of two for each plane, so that logarithms are small.
    plane = jnp.max(lax.stop_gradient(x), geometry.pooled, keepdims=True)
    _, inverse = power_of_two_near(plane)
    x, z = x * inverse, y * inverse
    if not isinstance(dx, SymbolicZero):
        # The sum of (x / y)**(p - 1) / n times dx. All of the weights' denominator has
        # a derivative here: it is the second part.
        total = _log(z, 0, p - 1) + jnp.log(count)
        weights = _log(x, -np.inf, p - 1), z * 0, jnp.broadcast_to(total, z.shape)
        change += linear.read_weighted(dx, geometry, *weights)
    if not isinstance(dp, SymbolicZero):
        # y / p * (sum of s log x - log y), with the shares s of x**p in their sum
        outer = _log(z, 0)
        total = p * outer + jnp.log(count)
        weights = _log(x, -np.inf, p), z * 0, jnp.broadcast_to(total, z.shape)
        mean = linear.read_weighted(_log(x, 0), geometry, *weights)
        change += dp * y / p * (mean - outer)
    return y, change


_power_mean.defjvp(_power_mean_jvp, symbolic_zeros=True)


def _log(x, otherwise, factor=1):
    """A multiple of the logarithm of x, or something else at 0."""
    some = x > 0
    return jnp.where(some, factor * jnp.log(jnp.where(some, x, 1)), otherwise)
