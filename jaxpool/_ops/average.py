"""Sums and means: linear in the input, exact in half precision.

Half-precision inputs are added up, and their gradients too, in float32 and rounded
once at the end; integers widen as in `jnp.sum` and `jnp.mean`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxpool._core.arguments import check_padding, laid, reduced, whole
from jaxpool._core.engine import window_extremum, window_mean, window_sum
from jaxpool._core.geometry import Geometry
from jaxpool._core.lowering import chosen_form
from jaxpool._core.numerics import (
    accumulation_dtype,
    divide,
    hide,
    mean_dtype,
    sum_dtype,
)
from jaxpool._core.op import pool_op
from jaxpool._core.plain import plain
from jaxpool._core.primitives import bind, linear_primitive
from jaxpool._core.stages import holds_nothing
from jaxpool._core.window import Ints, Padding, as_flag, as_number

__all__ = ["avg_pool", "global_avg_pool", "global_sum_pool", "sum_pool"]


@pool_op("average", "window", linear=True, monotone=True)
def sum_pool(
    x: ArrayLike,
    window_shape: Ints | None,
    strides: Ints | None = None,
    padding: Padding = "VALID",
    *,
    window_dilation: Ints = 1,
    ceil_mode: bool = False,
    axis: Ints | None = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""The sum of each window; strides default to 1.

    .. math:: y_o = \sum_{i \in W(o)} x_i

    Arguments, layout and errors as in :func:`max_pool`; complex inputs are welcome.
    Gradient: each element gets that of every window it lies in.

    Returns:
      `[B..., O..., C]`; floats in the dtype of `x` (half precision adds up in
      float32), integers widened as by `jnp.sum`. A window without elements gives 0.

    Example:
      Sums of small integers do not wrap around:

      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.array([100, 27, 1, 120], jnp.int8)[:, None]
      >>> jp.sum_pool(x, (2,), strides=(2,))[:, 0]
      Array([127, 121], dtype=int32)
    """
    spec = (window_shape, strides, padding, window_dilation, ceil_mode, axis)
    x, geometry, where = laid("sum_pool", x, where, spec, reduction=True)
    return masked_sum(x, geometry, where).astype(sum_dtype(x.dtype))


@pool_op("average", "window", linear=True, monotone=True)
def avg_pool(
    x: ArrayLike,
    window_shape: Ints | None,
    strides: Ints | None = None,
    padding: Padding = "VALID",
    count_include_pad: bool = True,
    *,
    divisor_override: float | None = None,
    window_dilation: Ints = 1,
    ceil_mode: bool = False,
    axis: Ints | None = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""The mean of each window; strides default to 1.

    .. math:: y_o = \frac{1}{n_o} \sum_{i \in W(o)} x_i

    Gradient: each element gets :math:`1 / n_o` of that of every window it lies in.

    Args:
      x: `[B..., S..., C]` as in :func:`max_pool`; complex inputs are welcome.
      window_shape, strides, padding, window_dilation, ceil_mode, axis, where: the
        window, as in :func:`max_pool`. What a mask hides is not counted either.
      count_include_pad: whether :math:`n_o` counts the padding that was asked for, as
        zeros; what `ceil_mode` adds behind it never counts (PyTorch's rule).
      divisor_override: a number other than 0 to divide every sum by instead.

    Returns:
      `[B..., O..., C]`; floats in the dtype of `x` (half precision adds up in
      float32), integers as floats, like `jnp.mean`. A window without elements gives 0.

    Raises:
      ValueError, TypeError: as in :func:`max_pool`, for a divisor of 0, and for windows
        of nothing but padding where padding does not count.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.arange(1.0, 5.0)[:, None]
      >>> jp.avg_pool(x, (3,), padding="SAME", count_include_pad=False)[:, 0]
      Array([1.5, 2. , 3. , 3.5], dtype=float32)
    """
    spec = (window_shape, strides, padding, window_dilation, ceil_mode, axis)
    include_pad = as_flag("avg_pool", "count_include_pad", count_include_pad)
    x, geometry, where = laid("avg_pool", x, where, spec, reduction=True)
    if not include_pad and divisor_override is None:
        check_padding("avg_pool", geometry, padding)
    dtype = mean_dtype(x.dtype)
    if divisor_override is None:
        y = masked_mean(x, geometry, where, include_pad)
    else:
        rule, fits = "must be a number other than 0", lambda n: abs(n) > 0
        divisor = as_number(
            "avg_pool", "divisor_override", divisor_override, rule, fits
        )
        y = divide(masked_sum(x.astype(dtype), geometry, where), divisor)
    return y.astype(dtype)


@pool_op("average", "global", linear=True, monotone=True)
def global_sum_pool(
    x: ArrayLike,
    *,
    axis: Ints | None = None,
    keepdims: bool = False,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""The sum over the whole extent of the pooled axes.

    .. math:: y = \sum_i x_i

    Arguments and errors as in :func:`global_max_pool`; complex inputs are welcome.
    Gradient: that of the sum to each element that takes part.

    Returns:
      `[B, C]`, in the dtypes of :func:`sum_pool`; 0 where nothing takes part.

    Example:
      The number of objects in an image, from a map of their density:

      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> density = jnp.array([[0.5, 1.0], [0.0, 1.5]])[None, :, :, None]
      >>> jp.global_sum_pool(density)
      Array([[3.]], dtype=float32)
    """
    x, geometry, where = whole("global_sum_pool", x, where, axis)
    y = masked_sum(x, geometry, where).astype(sum_dtype(x.dtype))
    return reduced("global_sum_pool", y, geometry, keepdims)


@pool_op("average", "global", linear=True, monotone=True)
def global_avg_pool(
    x: ArrayLike,
    *,
    axis: Ints | None = None,
    keepdims: bool = False,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""The mean over the whole extent of the pooled axes.

    .. math:: y = \frac{1}{n} \sum_{i=1}^n x_i

    Arguments and errors as in :func:`global_max_pool`; complex inputs are welcome.
    Gradient: :math:`1 / n` to each element that takes part.

    Returns:
      `[B, C]`, in the dtypes of :func:`avg_pool`; 0 where nothing takes part.

    Example:
      The mean of two rows, of which the second is padded:

      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.array([[1.0, 3.0, 8.0], [2.0, 4.0, 0.0]])[..., None]
      >>> where = jnp.array([[True, True, True], [True, True, False]])[..., None]
      >>> jp.global_avg_pool(x, where=where)[:, 0]
      Array([4., 3.], dtype=float32)

    References:
      Min Lin, Qiang Chen, Shuicheng Yan: Network In Network, 2014.
    """
    x, geometry, where = whole("global_avg_pool", x, where, axis)
    y = masked_mean(x, geometry, where, False).astype(mean_dtype(x.dtype))
    return reduced("global_avg_pool", y, geometry, keepdims)


def masked_sum(x: jax.Array, geometry: Geometry, where: jax.Array | None) -> jax.Array:
    """The sum of each window's True elements, in the dtype it accumulates in."""
    x = x.astype(accumulation_dtype(sum_dtype(x.dtype)))
    return window_sum(hide(x, where), geometry)


def element_count(
    dtype, ndim: int, geometry: Geometry, where: jax.Array | None, include_pad: bool
):
    """Number of each window's True elements, and of its padding on request."""
    if geometry.symbolic:
        taps = jnp.asarray(geometry.taps, dtype)
        ones = [1] * ndim
        for a in geometry.axes:
            ones[a.axis] = a.size
        inside = window_sum(jnp.ones(ones, dtype), geometry)
        counts = jnp.broadcast_to(taps, inside.shape) if include_pad else inside
    else:
        counts = geometry.counts(ndim, include_pad)
        inside = geometry.counts(ndim, False)
    if where is None:
        return counts
    return window_sum(where.astype(dtype), geometry) + jnp.asarray(
        counts - inside, dtype
    )


def masked_mean(
    x: jax.Array, geometry: Geometry, where: jax.Array | None, include_pad: bool
) -> jax.Array:
    """The mean of each window's True elements, in the dtype it accumulates in."""
    x = x.astype(accumulation_dtype(mean_dtype(x.dtype)))
    counted = jnp.zeros((), x.dtype).real.dtype
    counts = element_count(counted, x.ndim, geometry, where, include_pad)
    if isinstance(counts, np.ndarray):
        mean = window_mean(x, geometry, counts)
        if mean is not None:
            return mean
    if isinstance(counts, np.ndarray) and counts.min() == counts.max() > 0:
        return _mean_of(x, geometry, int(counts.min()))
    total = masked_sum(x, geometry, where)
    # A window without elements has the sum 0, which is its mean too.
    return divide(total, jnp.maximum(jnp.asarray(counts, counted), 1))


def _mean_of(x, geometry, count):
    """The mean of windows that all have as many elements."""
    stage = geometry, chosen_form(geometry), count
    return _mean(x, stage) if plain() else bind(_mean_p, stage, x)


def _mean(x, stage):
    geometry, form, count = stage
    return divide(window_sum(x, geometry, form), count)


def _mean_jvp(primals, tangents, bind, stage):
    geometry, form, count = stage
    # Divided first, so that the transpose divides last: XLA then does it in one pass
    # with the sums, instead of keeping the quotients.
    return bind(*primals), window_sum(tangents[0] / count, geometry, form)


_mean_p = linear_primitive(
    "pool_mean", _mean, lambda shape, stage: stage[0].out_shape(shape), _mean_jvp
)


def widened(x: jax.Array) -> jax.Array:
    """`x` in the dtype that means of it add up in."""
    x = x.astype(mean_dtype(x.dtype))
    return x.astype(accumulation_dtype(x.dtype))


def highest_and_mean(
    x: jax.Array, geometry: Geometry, where: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Maximum and mean in the dtype they add up in; 0 for windows without elements."""
    x = widened(x)
    highest = window_extremum(x, geometry, True, where)
    mean = masked_mean(x, geometry, where, False)
    if where is None and not holds_nothing(geometry):
        return highest, mean
    counts = element_count(x.dtype, x.ndim, geometry, where, False)
    return jnp.where(counts > 0, highest, 0), mean
