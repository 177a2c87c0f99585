"""Power means: from the sum of magnitudes at p = 1 to their maximum at p = infinity.

Lp pools take the sum of powers of magnitudes (or, normalised, their mean).
Generalised-mean (GeM) pooling clamps at a small epsilon from below instead, and
learned-norm pooling learns where magnitudes are counted from. Numbers are divided by
the largest of their window before they are raised to p; or, in larger windows, by a
power of two for each plane: no power overflows.

References:
  Pierre Sermanet, Soumith Chintala, Yann LeCun: Convolutional Neural Networks Applied
  to House Numbers Digit Classification, 2012 (Lp pooling).
  Filip Radenovic, Giorgos Tolias, Ondrej Chum: Fine-tuning CNN Image Retrieval with No
  Human Annotation, 2018 (GeM).
  Caglar Gulcehre, Kyunghyun Cho, Razvan Pascanu, Yoshua Bengio: Learned-Norm Pooling
  for Deep Feedforward and Recurrent Neural Networks, 2014.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxpool._core.arguments import as_parameter, laid, reduced, whole
from jaxpool._core.engine import window_extremum, window_sum
from jaxpool._core.geometry import Geometry
from jaxpool._core.numerics import (
    accumulation_dtype,
    at_least,
    divide,
    hide,
    mean_dtype,
    power_of_two_scale,
    safe_power,
)
from jaxpool._core.op import pool_op
from jaxpool._core.plain import plain
from jaxpool._core.weighted import gathers, window_power_mean
from jaxpool._core.window import Ints, Padding, as_flag
from jaxpool._ops.average import element_count, masked_mean, masked_sum

__all__ = [
    "gem_pool",
    "global_gem_pool",
    "global_lp_pool",
    "learned_norm_pool",
    "lp_pool",
]

# What a learned order counts as below this: 1 / p does not explode.
_LEAST_P = 1e-3
# Up to this one, powers of a whole order are products.
_MOST_FACTORS = 8
_LEARNED = dict(learned=("p",), positive=("p",), monotone=True)


@pool_op("power", "window")
def lp_pool(
    x: ArrayLike,
    window_shape: Ints | None,
    strides: Ints | None = None,
    padding: Padding = "VALID",
    *,
    p: ArrayLike = 2.0,
    normalize: bool = False,
    window_dilation: Ints = 1,
    ceil_mode: bool = False,
    axis: Ints | None = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""The p-norm of each window; strides default to 1.

    .. math:: y_o = \Big(\frac{1}{n_o} \sum_{i \in W(o)} |x_i|^p\Big)^{1/p}

    with :math:`n_o = 1`, or the number of the window's elements (padding not counted)
    with `normalize=True`: then it is a power mean. Gradient:
    :math:`\mathrm{sign}(x_i) (|x_i| / y_o)^{p-1} / n_o`, and 0 where the window or,
    for p < 1, the element is 0.

    Args:
      x: `[B..., S..., C]` as in :func:`max_pool`.
      window_shape, strides, padding, window_dilation, ceil_mode, axis, where: the
        window, as in :func:`max_pool`.
      p: the order, greater than 0: a scalar, or one value a channel (`[C]`, in every
        layout). `math.inf` is the largest magnitude.
      normalize: whether to take the mean of the powers instead of their sum.

    Returns:
      `[B..., O..., C]`; floats in the dtype of `x`, integers as floats. A window
      without elements gives 0.

    Raises:
      ValueError, TypeError: as in :func:`max_pool`, and for a p that is not above 0 or
        differs along pooled axes.

    Example:
      >>> import math
      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.array([3.0, -4.0])[:, None]
      >>> [jp.lp_pool(x, (2,), p=p).item() for p in (1, 2, math.inf)]
      [7.0, 5.0, 4.0]
    """
    spec = (window_shape, strides, padding, window_dilation, ceil_mode, axis)
    x, geometry, where = laid("lp_pool", x, where, spec, ordered=True)
    return _norm("lp_pool", x, geometry, where, p, normalize)


@pool_op("power", "global")
def global_lp_pool(
    x: ArrayLike,
    *,
    p: ArrayLike = 2.0,
    normalize: bool = False,
    axis: Ints | None = None,
    keepdims: bool = False,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""The p-norm over the whole extent of the pooled axes.

    .. math:: y = \Big(\frac{1}{n} \sum_i |x_i|^p\Big)^{1/p}

    Formula, gradient, `p` and `normalize` as in :func:`lp_pool`; the other arguments
    and errors as in :func:`global_max_pool`.

    Returns:
      `[B, C]`; floats in the dtype of `x`, integers as floats; 0 where nothing takes
      part.

    Example:
      With `normalize` and p = 2, the root of the mean square:

      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.array([[[1.0], [-7.0], [5.0], [5.0]]])
      >>> jp.global_lp_pool(x).item(), jp.global_lp_pool(x, normalize=True).item()
      (10.0, 5.0)
    """
    x, geometry, where = whole("global_lp_pool", x, where, axis, ordered=True)
    y = _norm("global_lp_pool", x, geometry, where, p, normalize)
    return reduced("global_lp_pool", y, geometry, keepdims)


@pool_op("power", "window", **_LEARNED, camel="GeMPool")
def gem_pool(
    x: ArrayLike,
    window_shape: Ints | None,
    strides: Ints | None = None,
    padding: Padding = "VALID",
    *,
    p: ArrayLike = 3.0,
    eps: float = 1e-6,
    window_dilation: Ints = 1,
    ceil_mode: bool = False,
    axis: Ints | None = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""The generalised mean of each window; strides default to 1.

    .. math:: y_o = \Big(\frac{1}{n_o} \sum_{i \in W(o)}
        \max(x_i, \epsilon)^p\Big)^{1/p}

    with :math:`n_o` the number of the window's elements: padding does not count.
    Formula, gradient, `p`, `eps` and errors as in :func:`global_gem_pool`; the window's
    arguments as in :func:`max_pool`.

    Returns:
      `[B..., O..., C]`; floats in the dtype of `x`, integers as floats. A window
      without elements gives 0.

    Example:
      From the mean towards the maximum, as p grows:

      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.array([2.0, 6.0])[:, None]
      >>> [round(jp.gem_pool(x, (2,), p=p).item(), 2) for p in (1.0, 3.0, 100.0)]
      [4.0, 4.82, 5.96]
    """
    spec = (window_shape, strides, padding, window_dilation, ceil_mode, axis)
    x, geometry, where = laid("gem_pool", x, where, spec, ordered=True)
    return _generalized_mean("gem_pool", x, geometry, where, p, eps)


@pool_op("power", "global", **_LEARNED, camel="GlobalGeMPool")
def global_gem_pool(
    x: ArrayLike,
    *,
    p: ArrayLike = 3.0,
    eps: float = 1e-6,
    axis: Ints | None = None,
    keepdims: bool = False,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""The generalised mean over the whole extent of the pooled axes.

    .. math:: y = \Big(\frac{1}{n} \sum_{i=1}^n \max(x_i, \epsilon)^p\Big)^{1/p}

    The mean of what exceeds :math:`\epsilon` at p = 1, the maximum as p grows.
    Gradient: that of the formula, in `p` too; elements at or below :math:`\epsilon`
    get none.

    Args:
      x: `[B, S..., C]`, real.
      p: the order, greater than 0: a scalar, or one value a channel (`[C]`, in every
        layout). Below 0.001, where learning may take it, it counts as 0.001, with the
        gradient there.
      eps: the lower bound, greater than 0, in units of `x`.
      axis, keepdims, where: as in :func:`global_max_pool`.

    Returns:
      `[B, C]`; floats in the dtype of `x`, integers as floats; 0 where nothing takes
      part.

    Raises:
      ValueError, TypeError: as in :func:`global_max_pool`, for p or eps <= 0, if their
        values are known, and where they differ along pooled axes.

    Example:
      An order for each channel:

      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.array([[[2.0, 2.0], [6.0, 6.0]]])
      >>> y = jp.global_gem_pool(x, p=jnp.array([1.0, 3.0]))
      >>> [round(value, 2) for value in y[0].tolist()]
      [4.0, 4.82]
    """
    x, geometry, where = whole("global_gem_pool", x, where, axis, ordered=True)
    y = _generalized_mean("global_gem_pool", x, geometry, where, p, eps)
    return reduced("global_gem_pool", y, geometry, keepdims)


@pool_op("power", "window", learned=("rho", "center"))
def learned_norm_pool(
    x: ArrayLike,
    window_shape: Ints | None,
    strides: Ints | None = None,
    padding: Padding = "VALID",
    *,
    rho: ArrayLike = 1.8546,
    center: ArrayLike = 0.0,
    window_dilation: Ints = 1,
    ceil_mode: bool = False,
    axis: Ints | None = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""The normalised p-norm of each window about a centre; strides default to 1.

    .. math:: y_o = \Big(\frac{1}{n_o} \sum_{i \in W(o)} |x_i - c|^p\Big)^{1/p},
        \qquad p = 1 + \log(1 + e^\rho)

    where :math:`n_o` counts the window's elements (padding not). The order is above 1
    whatever :math:`\rho`. The paper pools over projections of its input, each with a
    centre of its own; here one serves all places. Gradient: that of the formula, in
    :math:`\rho` and c too, and 0 where all elements equal c.

    Args:
      x: `[B..., S..., C]` as in :func:`max_pool`.
      window_shape, strides, padding, window_dilation, ceil_mode, axis, where: the
        window, as in :func:`max_pool`.
      rho: what the order is made of: a scalar, or one value a channel. 1.8546 gives the
        order 3.
      center: where magnitudes are counted from, in units of x: a scalar, or one value a
        channel.

    Returns:
      `[B..., O..., C]`; floats in the dtype of `x`, integers as floats. A window
      without elements gives 0.

    Raises:
      ValueError, TypeError: as in :func:`max_pool`, and for a rho or center that
        differs along pooled axes.

    Example:
      How far the elements are from 2:

      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.array([4.0, 0.0, 3.0, 1.0])[:, None]
      >>> jp.learned_norm_pool(x, (2,), (2,), center=2.0)[:, 0]
      Array([2., 1.], dtype=float32)
    """
    caller = "learned_norm_pool"
    spec = (window_shape, strides, padding, window_dilation, ceil_mode, axis)
    x, geometry, where = laid(caller, x, where, spec, ordered=True)
    dtype = mean_dtype(x.dtype)
    x = x.astype(accumulation_dtype(dtype))
    rho = as_parameter(caller, "rho", rho, x, geometry.pooled)
    center = as_parameter(caller, "center", center, x, geometry.pooled)
    order, size = 1 + jax.nn.softplus(rho), _magnitude(hide(x - center, where))
    return _power_mean(size, order, geometry, where).astype(dtype)


def _generalized_mean(
    caller: str,
    x: jax.Array,
    geometry: Geometry,
    where: jax.Array | None,
    p: ArrayLike,
    eps: float,
) -> jax.Array:
    dtype = mean_dtype(x.dtype)
    x = x.astype(accumulation_dtype(dtype))
    floor = as_parameter(caller, "eps", eps, x, geometry.pooled, positive=True)
    order = as_parameter(caller, "p", p, x, geometry.pooled, positive=True)
    x = hide(jnp.where(x <= floor, floor, x), where)
    order = _order(_known(p), at_least(order, _LEAST_P))
    return _power_mean(x, order, geometry, where).astype(dtype)


def _power_mean(
    size: jax.Array,
    order: Any,
    geometry: Geometry,
    where: jax.Array | None,
    normalize: bool = True,
) -> jax.Array:
    """The root of each window's mean, or sum, of powers; 0 for one without elements.

    What the mask hides is 0.
    """
    if plain():
        whole = isinstance(order, int)
        powers = lax.integer_pow(size, order) if whole else safe_power(size, order)
        if normalize:
            y = masked_mean(powers, geometry, where, False)
        else:
            y = masked_sum(powers, geometry, where)
        return lax.sqrt(y) if whole and order == 2 else safe_power(y, 1 / order)
    count = np.ones([1] * size.ndim)
    if normalize:
        count = element_count(size.dtype, size.ndim, geometry, where, False)
    count = jnp.maximum(jnp.asarray(count, size.dtype), 1)
    if gathers(geometry):
        return window_power_mean(size, order, count, geometry)
    order = jnp.asarray(order, size.dtype)
    scale = power_of_two_scale(size, geometry.pooled, order)
    total = window_sum(safe_power(size / scale, order), geometry)
    return safe_power(divide(total, count), 1 / order) * scale


def _known(p: ArrayLike) -> Any:
    """NumPy's numbers as Python's."""
    return p.item() if isinstance(p, np.ndarray | np.generic) and p.ndim == 0 else p


def _order(value: Any, order: jax.Array) -> Any:
    """The order as an int, if that is what was given."""
    if isinstance(value, int | float) and value <= _MOST_FACTORS:
        return int(value) if value == int(value) else order
    return order


def _magnitude(x: jax.Array) -> jax.Array:
    """|x|, with gradient 0 at 0."""
    if plain():
        return jnp.abs(x)
    return x * lax.stop_gradient(jnp.sign(x))


def _norm(
    caller: str,
    x: jax.Array,
    geometry: Geometry,
    where: jax.Array | None,
    p: ArrayLike,
    normalize: bool,
) -> jax.Array:
    dtype = mean_dtype(x.dtype)
    x = hide(x.astype(accumulation_dtype(dtype)), where)
    size, known = _magnitude(x), _known(p)
    if isinstance(known, float) and known == math.inf:
        y = window_extremum(size, geometry, True, where)
        empty = jnp.isneginf(y)
        return jnp.where(empty, 0, y).astype(dtype)
    order = as_parameter(caller, "p", p, size, geometry.pooled, positive=True)
    order = _order(known, order)
    if plain() and isinstance(order, int) and order % 2 == 0:
        size = x  # whose even powers are its magnitude's
    normalize = as_flag(caller, "normalize", normalize)
    return _power_mean(size, order, geometry, where, normalize).astype(dtype)
