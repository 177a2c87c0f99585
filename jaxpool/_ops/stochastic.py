"""Stochastic pooling: one element of each window, drawn in proportion to its value.

References:
  Matthew Zeiler, Rob Fergus: Stochastic Pooling for Regularization of Deep
  Convolutional Neural Networks, 2013.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxpool._core.arguments import as_key, laid
from jaxpool._core.engine import window_sample, window_sum
from jaxpool._core.numerics import (
    accumulation_dtype,
    hide,
    mean_dtype,
    power_of_two_scale,
)
from jaxpool._core.op import pool_op
from jaxpool._core.window import Ints, Padding

__all__ = ["stochastic_pool"]


@pool_op("stochastic", "window", takes_key=True)
def stochastic_pool(
    x: ArrayLike,
    window_shape: Ints | None,
    strides: Ints | None = None,
    padding: Padding = "VALID",
    *,
    key: Any = None,
    deterministic: bool = False,
    window_dilation: Ints = 1,
    ceil_mode: bool = False,
    axis: Ints | None = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""One element of each window, drawn in proportion to relu(x); strides are 1.

    With :math:`a_i = \max(x_i, 0)` and :math:`p_i = a_i / \sum_{j \in W(o)} a_j`,

    .. math:: y_o = x_l, \quad l \sim p \quad \text{(training)}, \qquad
        y_o = \sum_{i \in W(o)} p_i a_i \quad \text{(deterministic)}

    The second is the expectation of the first. Windows draw independently of each
    other, also where they overlap. A window without a positive element gives 0.

    Gradient: in training, to the drawn element alone; in evaluation,
    :math:`(2 a_i - y_o) / \sum_j a_j` for the positive ones. A window without a
    positive element has gradient 0.

    Args:
      x: `[B..., S..., C]` as in :func:`max_pool`.
      window_shape, strides, padding, window_dilation, ceil_mode, axis, where: the
        window, as in :func:`max_pool`.
      key: a PRNG key, typed or raw; the same key draws the same elements.
      deterministic: whether to return the expectation, which needs no key.

    Returns:
      `[B..., O..., C]`; floats in the dtype of `x`, integers as floats. A window with
      NaN or infinity gives NaN or infinity, without a gradient.

    Raises:
      ValueError, TypeError: as in :func:`max_pool`, and without a key to draw with.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> x = jnp.array([0.0, 1.0, 3.0, -2.0])[:, None]
      >>> stochastic_pool(x, (4,), key=jax.random.key(0)).item() in (1.0, 3.0)
      True
      >>> stochastic_pool(x, (4,), deterministic=True).item()
      2.5
    """
    caller = "stochastic_pool"
    spec = (window_shape, strides, padding, window_dilation, ceil_mode, axis)
    x, geometry, where = laid(caller, x, where, spec, ordered=True)
    dtype = mean_dtype(x.dtype)
    x = hide(x.astype(accumulation_dtype(dtype)), where)
    activation = jnp.where(x <= 0, 0, x)  # unlike max(x, 0), it keeps NaN
    # The sum of all is finite exactly where all are: scaling rules out overflow.
    scale = power_of_two_scale(activation, geometry.pooled, 2)
    weights = activation / scale
    total = window_sum(weights, geometry)
    if deterministic:
        # The inner `where` keeps 0 / 0 out of the gradient.
        positive = total > 0
        squares = window_sum(weights * weights, geometry)
        y = jnp.where(positive, squares / jnp.where(positive, total, 1), 0) * scale
    else:
        weights = jnp.where(jnp.isfinite(weights), weights, 0)
        y = window_sample(x, weights, geometry, as_key(caller, key))
    total = lax.stop_gradient(total)
    return jnp.where(jnp.isfinite(total), y, total).astype(dtype)
