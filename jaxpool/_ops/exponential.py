"""Log-sum-exp: a smooth path from the mean (r = 0) to the maximum (r = infinity).

References:
  Pedro Pinheiro, Ronan Collobert: From Image-level to Pixel-level Labeling with
  Convolutional Networks, 2015.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxpool._core.arguments import as_parameter, whole
from jaxpool._core.engine import window_extremum
from jaxpool._core.numerics import accumulation_dtype, hide, mean_dtype
from jaxpool._core.op import pool_op
from jaxpool._core.window import Ints
from jaxpool._ops.average import masked_mean

__all__ = ["global_lse_pool"]


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
    caller = "global_lse_pool"
    x, geometry, where = whole(caller, x, where, axis, ordered=True)
    dtype = mean_dtype(x.dtype)
    wide = x.astype(accumulation_dtype(dtype))
    sharpness = as_parameter(caller, "r", r, wide, positive=True)
    largest = window_extremum(lax.stop_gradient(wide), geometry, True, where)
    # inf - inf is NaN: where the largest is infinite it is the result.
    shift = jnp.where(jnp.isfinite(largest), largest, 0)
    wide = hide(wide, where, shift)
    mean = masked_mean(jnp.exp(sharpness * (wide - shift)), geometry, where, False)
    finite = jnp.isfinite(largest)
    y = jnp.log(jnp.where(finite, mean, 1)) / sharpness + shift
    y = jnp.where(finite, y, largest).astype(dtype)
    return y if keepdims else jnp.squeeze(y, geometry.pooled)
