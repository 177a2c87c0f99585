"""Learned importance: means whose weights come from the elements' surroundings.

Local importance-based pooling asks a small network how much each element counts;
detail-preserving pooling gives weight to what differs from its window's mean.

References:
  Ziteng Gao, Limin Wang, Gangshan Wu: LIP: Local Importance-based Pooling, 2019.
  Faraz Saeedan, Nicolas Weber, Michael Goesele, Stefan Roth: Detail-Preserving Pooling
  in Deep Networks, 2018.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.nn import initializers
from jax.typing import ArrayLike

from jaxpool._core.arguments import as_parameter, laid
from jaxpool._core.engine import window_pad, window_taps
from jaxpool._core.geometry import Geometry
from jaxpool._core.numerics import accumulation_dtype, hide, mean_dtype
from jaxpool._core.op import Weight, pool_op
from jaxpool._core.taps import derivatives_apart
from jaxpool._core.weighted import window_softmax
from jaxpool._core.weights import fit_shapes, read_params
from jaxpool._core.window import (
    Ints,
    Padding,
    as_flag,
    as_int,
    as_positive,
    fail,
    is_sequence,
)
from jaxpool._ops.average import masked_mean

__all__ = ["detail_preserving_pool", "local_importance_pool"]


def _importance_weights(features: int, window_shape: Any) -> dict[str, Weight]:
    """The kernel starts at 0, so that the pool is a mean, and the norm's scale at 1.

    Args:
      features: channels C of the input.
    """
    features = as_int("LocalImportancePool", "features", features, 1)
    if not is_sequence(window_shape):
        rule = "must be a sequence, to say how many axes the kernel has"
        raise fail("LocalImportancePool", "window_shape", rule, window_shape)
    rank = len(window_shape)
    return {
        "kernel": ((3,) * rank + (features, features), initializers.zeros),
        "norm_scale": ((features,), initializers.ones),
        "norm_bias": ((features,), initializers.zeros),
    }


@pool_op("importance", "other", weights=_importance_weights)
def local_importance_pool(
    x: ArrayLike,
    params: Mapping[str, ArrayLike],
    window_shape: Ints | None,
    strides: Ints | None = None,
    padding: Padding = "VALID",
    *,
    eps: float = 1e-5,
    window_dilation: Ints = 1,
    ceil_mode: bool = False,
    axis: Ints | None = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""The mean of each window with learned weights (LIP); strides default to 1.

    .. math:: y_o = \frac{\sum_{i \in W(o)} e^{g_i} x_i}{\sum_{i \in W(o)} e^{g_i}},
        \qquad g = 12 \, \sigma\big(s \operatorname{norm}(K * x) + b\big)

    with a convolution over 3 elements along each pooled axis, zeros around the input,
    and the norm of each channel of each sample over the pooled axes (instance norm).
    This is the authors' simplified form; they pool windows of 3 with strides of 2 and
    padding of 1. The kernel starts at 0, where it is a mean, and its gradient is not 0;
    logits within (0, 12) keep the weights within a factor of e**12.

    Args:
      x: `[B..., S..., C]` as in :func:`max_pool`; channels are the last axis that is
        not pooled.
      params: arrays by name: `kernel` `[3, ..., 3, C, C]` with a 3 for each pooled
        axis, from input to output channels, and `norm_scale` s and `norm_bias` b `[C]`;
        the last two may be absent, as 1 and 0.
      window_shape, strides, padding, window_dilation, ceil_mode, axis, where: the
        window, as in :func:`max_pool`. What a mask hides is 0 to the convolution, and
        counts neither in the norm nor in the mean.
      eps: what the norm adds to the variance.

    Returns:
      `[B..., O..., C]`; floats in the dtype of `x`, integers as floats. A window
      without elements gives 0. NaN is felt by its whole sample.

    Raises:
      ValueError, TypeError: as in :func:`max_pool`, and for arrays that are missing,
        not known or whose shapes do not fit.

    Example:
      With a kernel of 0 it is the mean:

      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x, params = jnp.arange(4.0)[:, None], {"kernel": jnp.zeros((3, 1, 1))}
      >>> jp.local_importance_pool(x, params, (2,), (2,))[:, 0]
      Array([0.5, 2.5], dtype=float32)
    """
    caller = "local_importance_pool"
    spec = (window_shape, strides, padding, window_dilation, ceil_mode, axis)
    x, geometry, where = laid(caller, x, where, spec, ordered=True)
    dtype = mean_dtype(x.dtype)
    x = hide(x.astype(accumulation_dtype(dtype)), where)
    eps = as_positive(caller, "eps", eps)
    rest = [a for a in range(-x.ndim, 0) if a not in geometry.pooled]
    if not rest:
        raise fail(caller, "axis", "must leave an axis for the channels", axis)
    channel = rest[-1]
    given = read_params(caller, params, ("kernel",))
    shapes = {"kernel": "k" * len(geometry.axes) + "cc"}
    shapes |= dict.fromkeys(("norm_scale", "norm_bias"), "c")
    fit_shapes(caller, given, shapes, {"k": 3, "c": x.shape[channel]})
    w = {name: array.astype(x.dtype) for name, array in given.items()}
    response = _convolve(x, w["kernel"], geometry.pooled, rest)
    response = _normalize(response, geometry, where, eps)
    for name, operation in (("norm_scale", lax.mul), ("norm_bias", lax.add)):
        if name in w:
            shape = [1] * x.ndim
            shape[channel] = x.shape[channel]
            array = jnp.broadcast_to(w[name].reshape(shape), response.shape)
            response = operation(response, array)
    logits = 12 * jax.nn.sigmoid(response)
    logits = hide(logits, where, -jnp.inf)
    return window_softmax(hide(x, where), logits, geometry).astype(dtype)


def _convolve(
    x: jax.Array, kernel: jax.Array, pooled: tuple[int, ...], rest: list[int]
) -> jax.Array:
    """The convolution over `pooled`, with zeros around, in the layout of `x`."""
    order = [a + x.ndim for a in (*rest[:-1], *pooled, rest[-1])]
    moved = x.transpose(order)
    flat = moved.reshape(-1, *moved.shape[len(rest) - 1 :])
    n = len(pooled)
    numbers = lax.ConvDimensionNumbers(
        (0, n + 1, *range(1, n + 1)),
        (n + 1, n, *range(n)),
        (0, n + 1, *range(1, n + 1)),
    )
    y = lax.conv_general_dilated(
        flat, kernel, (1,) * n, [(1, 1)] * n, dimension_numbers=numbers
    )
    return y.reshape(moved.shape).transpose(np.argsort(order))


def _normalize(
    x: jax.Array, geometry: Geometry, where: jax.Array | None, eps: float
) -> jax.Array:
    """The instance norm over the pooled axes."""

    def mean(x):
        if where is None:
            return jnp.mean(x, geometry.pooled, keepdims=True)
        count = jnp.sum(where.astype(x.dtype), geometry.pooled, keepdims=True)
        total = jnp.sum(hide(x, where), geometry.pooled, keepdims=True)
        return total / jnp.maximum(count, 1)

    x = x - mean(x)
    return x * lax.rsqrt(mean(x * x) + eps)


@pool_op("importance", "window", learned=("lam", "alpha"))
def detail_preserving_pool(
    x: ArrayLike,
    window_shape: Ints | None,
    strides: Ints | None = None,
    padding: Padding = "VALID",
    *,
    lam: ArrayLike = 0.0,
    alpha: ArrayLike = 0.0,
    symmetric: bool = True,
    eps: float = 1e-3,
    window_dilation: Ints = 1,
    ceil_mode: bool = False,
    axis: Ints | None = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""The mean of each window, weighted by distance from its plain mean; strides 1.

    With the window's mean :math:`m_o` and elements' detail
    :math:`d_i = (x_i - m_o)^2 + \epsilon`, of which :math:`\bar d_o` is the mean,

    .. math:: y_o = \frac{\sum_{i \in W(o)} w_i x_i}{\sum_{i \in W(o)} w_i}, \qquad
        w_i = (d_i / \bar d_o)^{e^\lambda / 2} + e^\alpha

    or, asymmetric, with :math:`\max(x_i - m_o, 0)^2` instead: only what lies above the
    mean is detail. Padding is no element. As :math:`\alpha` grows it is the mean, and
    asymmetric, as :math:`\lambda` grows and :math:`\alpha` falls, the maximum.
    Gradient: that of the formula, in :math:`\lambda` and :math:`\alpha` too.

    This is the authors' lite form: for windows of 2 with strides of 2 it equals theirs,
    and any other window, whatever the input's size, has a mean of its own to differ
    from.

    Args:
      x: `[B..., S..., C]` as in :func:`max_pool`.
      window_shape, strides, padding, window_dilation, ceil_mode, axis, where: the
        window, as in :func:`max_pool`.
      lam: the logarithm of how much detail counts: a scalar, or one value a channel.
        Above 10 it counts as 10. The authors draw it, and alpha, near 0.
      alpha: the logarithm of what each element weighs without any detail: a scalar, or
        one value a channel.
      symmetric: whether what lies below the mean is detail too.
      eps: the detail of what equals the mean, greater than 0, in units of x squared.

    Returns:
      `[B..., O..., C]`; floats in the dtype of `x`, integers as floats. A window with
      NaN or infinity gives its mean, and one without elements 0.

    Raises:
      ValueError, TypeError: as in :func:`max_pool`, for eps <= 0, and for a lam or
        alpha that differs along pooled axes.

    Example:
      The one element that stands out, where the mean would be 1:

      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.array([0.0, 0.0, 0.0, 4.0])[:, None]
      >>> y = jp.detail_preserving_pool(x, (4,), lam=3.0, alpha=-3.0, symmetric=False)
      >>> y[:, 0].round(2)
      Array([4.], dtype=float32)
    """
    caller = "detail_preserving_pool"
    spec = (window_shape, strides, padding, window_dilation, ceil_mode, axis)
    x, geometry, where = laid(caller, x, where, spec, ordered=True)
    dtype = mean_dtype(x.dtype)
    x = x.astype(accumulation_dtype(dtype))
    eps = as_positive(caller, "eps", eps)
    power = as_parameter(caller, "lam", lam, x, geometry.pooled)
    power = jnp.exp(lax.min(power, x.dtype.type(10))) / 2
    base = as_parameter(caller, "alpha", alpha, x, geometry.pooled)
    x = hide(x, where)
    mean = masked_mean(x, geometry, where, False)
    calm = hide(x, jnp.isfinite(x))  # the mean speaks for windows with anything else
    symmetric = as_flag(caller, "symmetric", symmetric)
    y = _preserve(calm, where, power, base, geometry, symmetric, eps)
    return jnp.where(jnp.isfinite(mean), y, mean).astype(dtype)


@functools.partial(jax.jit, static_argnums=(4, 5, 6))
def _preserve(x, where, power, base, geometry, symmetric, eps):
    x, geometry, where = window_pad(x, geometry.clipped, where, 0)
    shown = None if where is None else where.astype(x.dtype)

    @jax.checkpoint
    def weigh(x, shown):
        if geometry.whole:
            elements, masks = [x], [shown]
        else:
            elements = derivatives_apart(window_taps(x, geometry))
            masks = [None] * len(elements)
            if shown is not None:
                masks = window_taps(shown, geometry)

        def total(terms):
            pairs = zip(terms, masks, strict=True)
            y = functools.reduce(lax.add, [t if m is None else t * m for t, m in pairs])
            if geometry.whole:
                y = jnp.sum(y, geometry.pooled, keepdims=True)
            return y

        count = geometry.taps
        if shown is not None:
            count = jnp.maximum(total([e * 0 + 1 for e in elements]), 1)
        mean = total(elements) / count
        away = [e - mean for e in elements]
        detail = [d * (d if symmetric else lax.max(d, d * 0)) + eps for d in away]
        level = jnp.log(jnp.maximum(total(detail) / count, eps))
        heights = [power * (jnp.log(d) - level) for d in detail]
        pairs = zip(heights, masks, strict=True)  # what is hidden outweighs nothing
        heights = [h if m is None else jnp.where(m > 0, h, base) for h, m in pairs]
        # Relative to the largest weight: below or at 1.
        peak = functools.reduce(lax.max, heights)
        if geometry.whole:
            peak = jnp.max(peak, geometry.pooled, keepdims=True)
        peak = lax.max(lax.stop_gradient(peak), base + 0 * peak)
        flat = jnp.exp(base - peak)
        weights = [jnp.exp(h - peak) + flat for h in heights]
        some = total(weights)
        weighted = total([w * e for w, e in zip(weights, elements, strict=True)])
        return weighted / jnp.where(some > 0, some, 1)

    return weigh(x, shown)
