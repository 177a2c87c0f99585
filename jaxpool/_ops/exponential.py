"""Log-sum-exp: a smooth path from the mean (r = 0) to the maximum (r = infinity).

References:
  Pedro Pinheiro, Ronan Collobert: From Image-level to Pixel-level Labeling with
  Convolutional Networks, 2015.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxpool._core.arguments import as_parameter, laid, whole
from jaxpool._core.engine import window_extremum, window_fold
from jaxpool._core.geometry import Geometry
from jaxpool._core.numerics import accumulation_dtype, divide, hide, mean_dtype
from jaxpool._core.op import pool_op
from jaxpool._core.window import Ints, Padding, fail
from jaxpool._ops.average import element_count, masked_mean

__all__ = ["global_lse_pool", "lse_pool"]


@pool_op("exponential", "window", learned=("r",), monotone=True)
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
        channel. Near 0 the mean, and as it grows the maximum.

    Returns:
      `[B..., O..., C]`; floats in the dtype of `x`, integers as floats. A window
      without elements gives -inf.

    Raises:
      ValueError, TypeError: as in :func:`max_pool`, and for r <= 0.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.array([1e4, 1e4, 0.0, 0.0])[:, None]
      >>> lse_pool(x, (2,), (2,))[:, 0]
      Array([10000.,     0.], dtype=float32)
    """
    spec = (window_shape, strides, padding, window_dilation, ceil_mode, axis)
    x, geometry, where = laid("lse_pool", x, where, spec, ordered=True)
    return _log_mean_exp("lse_pool", x, geometry, where, r)


@pool_op("exponential", "global", learned=("r",), monotone=True)
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
        channel. Near 0 the mean, and as it grows the maximum.
      axis, keepdims, where: as in :func:`global_max_pool`.

    Returns:
      `[B, C]`; floats in the dtype of `x`, integers as floats; -inf where nothing takes
      part.

    Raises:
      ValueError, TypeError: as in :func:`global_max_pool`, and for r <= 0.
    """
    x, geometry, where = whole("global_lse_pool", x, where, axis, ordered=True)
    y = _log_mean_exp("global_lse_pool", x, geometry, where, r)
    return y if keepdims else jnp.squeeze(y, geometry.pooled)


def _log_mean_exp(
    caller: str,
    x: jax.Array,
    geometry: Geometry,
    where: jax.Array | None,
    r: ArrayLike,
) -> jax.Array:
    dtype = mean_dtype(x.dtype)
    x = x.astype(accumulation_dtype(dtype))
    sharpness = as_parameter(caller, "r", r, x, positive=True)
    if any(sharpness.shape[a] != 1 for a in geometry.pooled):
        rule = "must be a scalar or one value a channel: the same along pooled axes"
        raise fail(caller, "r", rule, np.shape(r))
    largest = window_extremum(lax.stop_gradient(x), geometry, True, where)
    # inf - inf is NaN: where the largest is infinite it is the result.
    finite = jnp.isfinite(largest)
    if geometry.whole:
        shift = jnp.where(finite, largest, 0)
        x = hide(x, where, shift)
        mean = masked_mean(jnp.exp(sharpness * (x - shift)), geometry, where, False)
    else:
        shift, mean = _shifted_mean(x, geometry, where, sharpness)
    y = jnp.log(jnp.where(finite, mean, 1)) / sharpness + shift
    return jnp.where(finite, y, largest).astype(dtype)


@functools.partial(jax.jit, static_argnums=1)
def _shifted_mean(x, geometry, where, sharpness):
    """The maximum m of each window, and its mean of exp(r (x - m)), of finite elements.

    An element lies in several windows, whose maxima differ. So windows are folded as
    pairs (m, s) that stand for s exp(r m), with m constant in every derivative.
    """
    alive = jnp.isfinite(x) if where is None else jnp.isfinite(x) & where
    x = jnp.where(alive, x, 0)
    peak = lax.stop_gradient(x)
    share = jnp.where(alive, jnp.exp(sharpness * (x - peak)), 0)
    none, most = -jnp.inf, jnp.finfo(x.dtype).max

    def add(a, b):
        (peak_a, share_a), (peak_b, share_b) = a, b
        # Derivatives by r are 0 * inf for an infinite distance. To no element it may
        # be any: that one's share is 0.
        apart = jnp.minimum(jnp.abs(peak_a - peak_b), most)
        apart = jnp.where(jnp.minimum(peak_a, peak_b) == none, 0, apart)
        less, above = jnp.exp(-sharpness * apart), peak_a >= peak_b
        share = jnp.where(above, share_a + less * share_b, less * share_a + share_b)
        return jnp.maximum(peak_a, peak_b), share

    pairs = (jnp.where(alive, peak, none), share)
    shift, total = window_fold(pairs, (none, 0), add, geometry)
    count = element_count(x.dtype, x.ndim, geometry, where, False)
    return shift, divide(total, jnp.maximum(jnp.asarray(count, x.dtype), 1))
