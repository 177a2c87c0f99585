"""Blends of maximum and mean.

Mixed pooling weighs the two with one number, fixed or learned; the global forms that
classifiers use take half of each, or keep both side by side.

References:
  Chen-Yu Lee, Patrick Gallagher, Zhuowen Tu: Generalizing Pooling Functions in
  Convolutional Neural Networks: Mixed, Gated, and Tree, 2016.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxpool._core.arguments import as_parameter, laid, whole
from jaxpool._core.engine import window_extremum
from jaxpool._core.geometry import Geometry
from jaxpool._core.numerics import accumulation_dtype, mean_dtype
from jaxpool._core.op import pool_op
from jaxpool._core.stages import holds_nothing
from jaxpool._core.window import Ints, Padding
from jaxpool._ops.average import element_count, masked_mean

__all__ = ["global_avgmax_pool", "global_catavgmax_pool", "mixed_pool"]


@pool_op("blend", "window", learned=("alpha",))
def mixed_pool(
    x: ArrayLike,
    window_shape: Ints | None,
    strides: Ints | None = None,
    padding: Padding = "VALID",
    *,
    alpha: ArrayLike = 0.5,
    window_dilation: Ints = 1,
    ceil_mode: bool = False,
    axis: Ints | None = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""Maximum and mean of each window, blended; strides default to 1.

    .. math:: y_o = \alpha \max_{i \in W(o)} x_i
        + (1 - \alpha) \frac{1}{n_o} \sum_{i \in W(o)} x_i

    where :math:`n_o` counts the window's elements (padding not). Gradient: that of the
    two, each with its weight; in :math:`\alpha`, maximum minus mean.

    Args:
      x: `[B..., S..., C]` as in :func:`max_pool`.
      window_shape, strides, padding, window_dilation, ceil_mode, axis, where: the
        window, as in :func:`max_pool`.
      alpha: the weight of the maximum: a scalar, one value a channel, or whatever
        broadcasts to the result. It is not confined to [0, 1].

    Returns:
      `[B..., O..., C]`; floats in the dtype of `x`, integers as floats. A window
      without elements gives 0.

    Raises:
      ValueError, TypeError: as in :func:`max_pool`.
    """
    spec = (window_shape, strides, padding, window_dilation, ceil_mode, axis)
    x, geometry, where = laid("mixed_pool", x, where, spec, ordered=True)
    highest, mean = _highest_and_mean(x, geometry, where)
    weight = as_parameter("mixed_pool", "alpha", alpha, highest)
    y = weight * highest + (1 - weight) * mean
    return y.astype(mean_dtype(x.dtype))


@pool_op("blend", "global", monotone=True)
def global_avgmax_pool(
    x: ArrayLike,
    *,
    axis: Ints | None = None,
    keepdims: bool = False,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""Half the mean and half the maximum over the whole extent of the pooled axes.

    .. math:: y = \tfrac{1}{2} \Big(\max_i x_i + \frac{1}{n} \sum_{i=1}^n x_i\Big)

    Arguments and errors as in :func:`global_max_pool`, dtypes as in :func:`avg_pool`;
    0 where nothing takes part.
    """
    x, geometry, where = whole("global_avgmax_pool", x, where, axis, ordered=True)
    highest, mean = _highest_and_mean(x, geometry, where)
    y = ((highest + mean) / 2).astype(mean_dtype(x.dtype))
    return y if keepdims else jnp.squeeze(y, geometry.pooled)


@pool_op("blend", "global", monotone=True)
def global_catavgmax_pool(
    x: ArrayLike,
    *,
    axis: Ints | None = None,
    keepdims: bool = False,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""Mean and maximum over the whole extent of the pooled axes, side by side.

    .. math:: y = \Big[\frac{1}{n} \sum_{i=1}^n x_i,\ \max_i x_i\Big]

    The means come first, then the maxima, along the last axis that is not pooled.
    Arguments and errors as in :func:`global_max_pool`, dtypes as in :func:`avg_pool`;
    0 where nothing takes part.

    Returns:
      `[B, 2C]`.
    """
    caller = "global_catavgmax_pool"
    x, geometry, where = whole(caller, x, where, axis, ordered=True)
    highest, mean = _highest_and_mean(x, geometry, where)
    channel = max(set(range(-x.ndim, 0)) - set(geometry.pooled))
    y = jnp.concatenate([mean, highest], channel).astype(mean_dtype(x.dtype))
    return y if keepdims else jnp.squeeze(y, geometry.pooled)


def _highest_and_mean(
    x: jax.Array, geometry: Geometry, where: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Maximum and mean in the dtype they add up in; 0 for windows without elements."""
    x = x.astype(mean_dtype(x.dtype))
    x = x.astype(accumulation_dtype(x.dtype))
    highest = window_extremum(x, geometry, True, where)
    mean = masked_mean(x, geometry, where, False)
    if where is None and not holds_nothing(geometry):
        return highest, mean
    counts = element_count(x.dtype, x.ndim, geometry, where, False)
    return jnp.where(counts > 0, highest, 0), mean
