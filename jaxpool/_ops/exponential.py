"""Exponential weights: smooth paths from the mean to the maximum.

Log-sum-exp is the logarithm of a mean of exponentials, and rises with each element.
SoftPool and AutoPool are means with those exponentials as weights; with weights from
elsewhere they are the core of local importance-based pooling.

References:
  Pedro Pinheiro, Ronan Collobert: From Image-level to Pixel-level Labeling with
  Convolutional Networks, 2015 (log-sum-exp).
  Alexandros Stergiou, Ronald Poppe, Grigorios Kalliatakis: Refining Activation
  Downsampling with SoftPool, 2021.
  Brian McFee, Justin Salamon, Juan Pablo Bello: Adaptive Pooling Operators for Weakly
  Labeled Sound Event Detection, 2018 (AutoPool).
  Ziteng Gao, Limin Wang, Gangshan Wu: LIP: Local Importance-based Pooling, 2019.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.typing import ArrayLike

from jaxpool._core.arguments import as_array, as_parameter, laid, over, reduced, whole
from jaxpool._core.geometry import Geometry
from jaxpool._core.numerics import accumulation_dtype, at_least, hide, mean_dtype
from jaxpool._core.op import Example, pool_op
from jaxpool._core.weighted import soft_logits, window_lse, window_soft, window_softmax
from jaxpool._core.window import Ints, Padding, fail
from jaxpool._ops.average import element_count

__all__ = [
    "auto_pool",
    "exp_weighted_pool",
    "global_lse_pool",
    "lse_pool",
    "soft_pool",
]

# What a learned sharpness of `lse_pool` counts as below this: 1 / r does not explode.
_LEAST_R = 1e-3


@pool_op("exponential", "window", learned=("r",), positive=("r",), monotone=True)
def lse_pool(
    x: ArrayLike,
    window_shape: Ints | None,
    strides: Ints | None = None,
    padding: Padding = "VALID",
    *,
    r: ArrayLike = 1.0,
    window_dilation: Ints = 1,
    ceil_mode: bool = False,
    axis: Ints | None = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""The log of the mean exponential of each window; strides default to 1.

    .. math:: y_o = \frac{1}{r} \log \frac{1}{n_o} \sum_{i \in W(o)} e^{r x_i}
        = m_o + \frac{1}{r} \log \frac{1}{n_o} \sum_{i \in W(o)} e^{r (x_i - m_o)},
        \quad m_o = \max_{i \in W(o)} x_i

    where :math:`n_o` counts the window's elements (padding not). Computed in the second
    form, which does not overflow. Gradient: the softmax of :math:`r x` over the window;
    that of the formula in r.

    Args:
      x: `[B..., S..., C]` as in :func:`max_pool`.
      window_shape, strides, padding, window_dilation, ceil_mode, axis, where: the
        window, as in :func:`max_pool`.
      r: the sharpness, greater than 0, in units of 1 / x: a scalar, or one value a
        channel. Near 0 the mean, and as it grows the maximum. Below 0.001, where
        learning may take it, it counts as 0.001, with the gradient there.

    Returns:
      `[B..., O..., C]`; floats in the dtype of `x`, integers as floats. A window
      without elements gives -inf.

    Raises:
      ValueError, TypeError: as in :func:`max_pool`, and for r <= 0, if its value is
        known.

    Example:
      No exponential overflows:

      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.array([1e4, 1e4, 0.0, 0.0])[:, None]
      >>> jp.lse_pool(x, (2,), (2,))[:, 0]
      Array([10000.,     0.], dtype=float32)
    """
    spec = (window_shape, strides, padding, window_dilation, ceil_mode, axis)
    x, geometry, where = laid("lse_pool", x, where, spec, ordered=True)
    return _log_mean_exp("lse_pool", x, geometry, where, r)


@pool_op("exponential", "window", learned=("beta",))
def soft_pool(
    x: ArrayLike,
    window_shape: Ints | None,
    strides: Ints | None = None,
    padding: Padding = "VALID",
    *,
    beta: ArrayLike = 1.0,
    window_dilation: Ints = 1,
    ceil_mode: bool = False,
    axis: Ints | None = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""The mean of each window, weighted by its exponentials; strides default to 1.

    .. math:: y_o = \sum_{i \in W(o)} w_i x_i, \qquad
        w_i = \frac{e^{\beta x_i}}{\sum_{j \in W(o)} e^{\beta x_j}}

    Padding is no element. Exponentials are taken relative to the window's largest, so
    that none overflows. Gradient: :math:`w_i (1 + \beta (x_i - y_o))`, which is below 0
    for elements far under the mean: unlike :func:`lse_pool`, a window's result may fall
    as one of its elements grows. In :math:`\beta`, the weighted variance.

    Args:
      x: `[B..., S..., C]` as in :func:`max_pool`.
      window_shape, strides, padding, window_dilation, ceil_mode, axis, where: the
        window, as in :func:`max_pool`.
      beta: the sharpness, of either sign, in units of 1 / x: a scalar, or one value a
        channel. 0 is the mean, infinity would be the maximum, -infinity the minimum.

    Returns:
      `[B..., O..., C]`; floats in the dtype of `x`, integers as floats. A window with
      infinity, or -infinity for beta < 0, gives that; the other one has no weight,
      and a window of nothing else gives 0, as one without elements does.

    Raises:
      ValueError, TypeError: as in :func:`max_pool`, and for a beta that is not finite
        or differs along pooled axes.

    Example:
      Equal elements give themselves, and of others the larger one weighs more:

      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.array([5.0, 5.0, 0.0, 1.0])[:, None]
      >>> [round(y, 2) for y in jp.soft_pool(x, (2,), (2,))[:, 0].tolist()]
      [5.0, 0.73]
    """
    spec = (window_shape, strides, padding, window_dilation, ceil_mode, axis)
    x, geometry, where = laid("soft_pool", x, where, spec, ordered=True)
    return _self_weighted("soft_pool", x, geometry, where, "beta", beta)


@pool_op(
    "exponential",
    "window",
    inputs=("x", "logits"),
    linear=True,
    monotone=True,
    example=Example(
        inputs={"x": "jnp.ones((2, 8, 8, 16))", "logits": "jnp.zeros((2, 8, 8, 1))"}
    ),
)
def exp_weighted_pool(
    x: ArrayLike,
    window_shape: Ints | None,
    strides: Ints | None = None,
    padding: Padding = "VALID",
    *,
    logits: ArrayLike,
    window_dilation: Ints = 1,
    ceil_mode: bool = False,
    axis: Ints | None = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""The mean of each window with exponential weights; strides default to 1.

    .. math:: y_o = \frac{\sum_{i \in W(o)} e^{g_i} x_i}{\sum_{i \in W(o)} e^{g_i}}

    with logits :math:`g`, of which only differences within a window count: each window
    is computed relative to its largest. With g = 0 it is the mean, with
    :math:`g = \beta x` :func:`soft_pool`, and with what a small network makes of x
    :func:`local_importance_pool`. Padding is no element. Gradient: that of the formula,
    to the logits too.

    Args:
      x: `[B..., S..., C]` as in :func:`max_pool`.
      window_shape, strides, padding, window_dilation, ceil_mode, axis, where: the
        window, as in :func:`max_pool`.
      logits: real, broadcastable to `x`. -inf takes an element out, whatever its value,
        as a mask does; of several infinities each has the same weight.

    Returns:
      `[B..., O..., C]`; floats in the dtype of `x`, integers as floats. A window
      without elements, or with no logit but -inf, gives 0.

    Raises:
      ValueError, TypeError: as in :func:`max_pool`, and for logits that are complex or
        do not fit.

    Example:
      The first element counts three times as much as the second:

      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x, logits = jnp.array([1.0, 5.0]), jnp.array([jnp.log(3.0), 0.0])
      >>> jp.exp_weighted_pool(x, 2, axis=0, logits=logits)
      Array([2.], dtype=float32)
    """
    caller = "exp_weighted_pool"
    spec = (window_shape, strides, padding, window_dilation, ceil_mode, axis)
    x, geometry, where = laid(caller, x, where, spec, ordered=True)
    given = as_array(caller, logits, "logits", ordered=True)
    given = over(caller, "logits", given, x, geometry.pooled)
    dtype = mean_dtype(x.dtype)
    x = x.astype(accumulation_dtype(dtype))
    shown = jnp.broadcast_to(given.astype(x.dtype), x.shape)
    shown = hide(shown, where, -jnp.inf)
    # Infinities as the largest number: the difference of two is 0.
    shown = lax.min(shown, np.finfo(x.dtype).max)
    x = hide(x, shown > -jnp.inf)
    return window_softmax(x, shown, geometry).astype(dtype)


@pool_op("exponential", "global", learned=("r",), positive=("r",), monotone=True)
def global_lse_pool(
    x: ArrayLike,
    *,
    r: ArrayLike = 1.0,
    axis: Ints | None = None,
    keepdims: bool = False,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""The log of the mean exponential over the whole extent of the pooled axes.

    .. math:: y = \frac{1}{r} \log \frac{1}{n} \sum_{i=1}^n e^{r x_i}
        = m + \frac{1}{r} \log \frac{1}{n} \sum_{i=1}^n e^{r (x_i - m)},
        \quad m = \max_i x_i

    Computed in the second form, which does not overflow. Gradient: the softmax of
    :math:`r x`.

    Args:
      x: `[B, S..., C]`, real.
      r: the sharpness, greater than 0, in units of 1 / x: a scalar, or one value a
        channel, as in :func:`lse_pool`.
      axis, keepdims, where: as in :func:`global_max_pool`.

    Returns:
      `[B, C]`; floats in the dtype of `x`, integers as floats; -inf where nothing takes
      part.

    Raises:
      ValueError, TypeError: as in :func:`global_max_pool`, and for r <= 0, if its value
        is known.

    Example:
      From the mean to the maximum, as r grows:

      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.array([[[0.0], [1.0]]])
      >>> [round(jp.global_lse_pool(x, r=r).item(), 2) for r in (0.01, 1.0, 100.0)]
      [0.5, 0.62, 0.99]
    """
    x, geometry, where = whole("global_lse_pool", x, where, axis, ordered=True)
    y = _log_mean_exp("global_lse_pool", x, geometry, where, r)
    return reduced("global_lse_pool", y, geometry, keepdims)


@pool_op("exponential", "global", learned=("alpha",))
def auto_pool(
    x: ArrayLike,
    *,
    alpha: ArrayLike = 1.0,
    axis: Ints | None = None,
    keepdims: bool = False,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""The mean over the whole extent, weighted by exponentials of learned sharpness.

    .. math:: y = \sum_i w_i x_i, \qquad
        w_i = \frac{e^{\alpha x_i}}{\sum_j e^{\alpha x_j}}

    :func:`soft_pool` over everything, with its gradient and its rules for infinities.
    Made for many predictions of each class, of which one is wanted: a module with
    `features` learns a sharpness for each class. It starts from 1, the softmax; the
    authors' own code starts from 0, the mean.

    Args:
      x: `[B, S..., C]`, real; `[B, T, C]` for predictions over time.
      alpha: the sharpness, of either sign, in units of 1 / x: a scalar, or one value a
        channel.
      axis, keepdims, where: as in :func:`global_max_pool`.

    Returns:
      `[B, C]`; floats in the dtype of `x`, integers as floats; 0 where nothing takes
      part.

    Raises:
      ValueError, TypeError: as in :func:`global_max_pool`, and for an alpha that is not
        finite or differs along pooled axes.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.array([[[0.0], [1.0]]])
      >>> [round(jp.auto_pool(x, alpha=a).item(), 2) for a in (0.0, 1.0, 100.0)]
      [0.5, 0.73, 1.0]
    """
    x, geometry, where = whole("auto_pool", x, where, axis, ordered=True)
    y = _self_weighted("auto_pool", x, geometry, where, "alpha", alpha)
    return reduced("auto_pool", y, geometry, keepdims)


def _self_weighted(
    caller: str,
    x: jax.Array,
    geometry: Geometry,
    where: jax.Array | None,
    name: str,
    value: ArrayLike,
) -> jax.Array:
    dtype = mean_dtype(x.dtype)
    x = x.astype(accumulation_dtype(dtype))
    sharpness = _sharpness(caller, name, value, x, geometry)
    if where is None:
        return window_soft(x, sharpness, geometry).astype(dtype)
    x = hide(x, where)
    logits = hide(soft_logits(x, sharpness), where, -jnp.inf)
    return window_softmax(x, logits, geometry).astype(dtype)


def _log_mean_exp(
    caller: str,
    x: jax.Array,
    geometry: Geometry,
    where: jax.Array | None,
    r: ArrayLike,
) -> jax.Array:
    dtype = mean_dtype(x.dtype)
    x = x.astype(accumulation_dtype(dtype))
    slope = at_least(_sharpness(caller, "r", r, x, geometry, positive=True), _LEAST_R)
    count = element_count(x.dtype, x.ndim, geometry, where, False)
    count = jnp.maximum(jnp.asarray(count, x.dtype), 1)
    return window_lse(hide(x, where, -jnp.inf), slope, count, geometry).astype(dtype)


def _sharpness(
    caller: str,
    name: str,
    value: ArrayLike,
    x: jax.Array,
    geometry: Geometry,
    positive: bool = False,
) -> jax.Array:
    """A finite parameter."""
    sharpness = as_parameter(caller, name, value, x, geometry.pooled, positive=positive)
    if not isinstance(value, Tracer) and not np.isfinite(value).all():
        raise fail(caller, name, "must be finite", value)
    return sharpness
