"""Maximum and minimum: one element of each window, its place, and the way back.

The extremum is one element: the first maximal one in row-major order, or the first NaN
where there is one. Gradient and index speak of that element, and the value equals it;
of -0. and 0., which are equal, it may be the other. A max-unpooling writes values back
to where they came from.

References:
  Matthew Zeiler, Rob Fergus: Visualizing and Understanding Convolutional Networks,
  2014 (unpooling with the positions of the maxima).
"""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxpool._core.arguments import (
    as_array,
    as_integers,
    check_whole,
    countable,
    int32_of,
    laid,
    output_axes,
    reduced,
    whole,
)
from jaxpool._core.engine import window_choice, window_extremum
from jaxpool._core.indices import last_claims, put
from jaxpool._core.op import Example, pool_op
from jaxpool._core.sharding import split_alike
from jaxpool._core.window import Ints, Padding, fail

__all__ = [
    "global_max_pool",
    "global_min_pool",
    "max_pool",
    "max_pool_with_argmax",
    "max_unpool",
    "min_pool",
]


@pool_op("extremum", "window", monotone=True)
def max_pool(
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
    r"""The largest element of each window; strides default to 1.

    .. math:: y_o = \max_{i \in W(o)} x_i, \qquad
        W(o) = \{o \cdot s - p + k \cdot d : 0 \le k < K\}

    with window :math:`K`, strides :math:`s`, low padding :math:`p`, dilation :math:`d`.
    Gradient: all of it goes to the first maximal element in row-major order, or to the
    first NaN.

    Args:
      x: `[B..., S..., C]` with any leading axes `B...`, spatial axes `S...` and
        channels `C`; real, of any dtype.
      window_shape: window size for each spatial axis; an int together with `axis=`
        stands for all of them, and None with `axis=` for the whole extent. It may be
        the symbolic size of an axis (`jax.export`).
      strides: step between windows: an int, or one for each pooled axis. None is 1.
      padding: `"VALID"`, `"SAME"` (the larger half behind), `"SAME_LOWER"` (in
        front), an int, or one int or (low, high) pair for each pooled axis. Padding
        never wins. A window of nothing but padding has no elements; ops other than
        maxima, minima, sums, :func:`pool` and a mean that counts padding refuse it.
      window_dilation: distance between neighbouring elements of a window.
      ceil_mode: round the output size up instead of down, except for windows that
        would start behind the input (PyTorch's rule).
      axis: the pooled axes, for any other layout (channels first: `(-2, -1)`).
      where: boolean, broadcastable to `x`; only True elements take part.

    Returns:
      `[B..., O..., C]` in the dtype of `x`. A window without elements gives the lowest
      value of the dtype and no gradient.

    Raises:
      ValueError, TypeError: for arguments that break these rules, or windows larger
        than the padded input.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.arange(16.0).reshape(4, 4, 1)
      >>> jp.max_pool(x, (2, 2), strides=(2, 2))[..., 0]
      Array([[ 5.,  7.],
             [13., 15.]], dtype=float32)
    """
    spec = (window_shape, strides, padding, window_dilation, ceil_mode, axis)
    x, geometry, where = laid("max_pool", x, where, spec, ordered=True, reduction=True)
    return window_extremum(x, geometry, True, where)


@pool_op("extremum", "window", monotone=True)
def min_pool(
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
    r"""The smallest element of each window; strides default to 1.

    .. math:: y_o = \min_{i \in W(o)} x_i

    Arguments, layout, errors and gradient as in :func:`max_pool`. A window without
    elements gives the highest value of the dtype.

    Example:
      Padding is never the smallest: no 0 comes in at the borders.

      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.array([5.0, 3.0, 4.0, 6.0, 7.0])[:, None]
      >>> jp.min_pool(x, (3,), strides=(2,), padding="SAME")[:, 0]
      Array([3., 3., 6.], dtype=float32)
    """
    spec = (window_shape, strides, padding, window_dilation, ceil_mode, axis)
    x, geometry, where = laid("min_pool", x, where, spec, ordered=True, reduction=True)
    return window_extremum(x, geometry, False, where)


@pool_op("extremum", "window", outputs=2, compare="is another method with indices")
def max_pool_with_argmax(
    x: ArrayLike,
    window_shape: Ints | None,
    strides: Ints | None = None,
    padding: Padding = "VALID",
    *,
    window_dilation: Ints = 1,
    ceil_mode: bool = False,
    axis: Ints | None = None,
    where: ArrayLike | None = None,
) -> tuple[jax.Array, jax.Array]:
    r"""The largest element of each window and where it stands.

    .. math:: y_o = x_{a(o)}, \qquad a(o) = \min \arg\max_{i \in W(o)} x_i

    Arguments, layout, errors and gradient as in :func:`max_pool`.

    Returns:
      values: `[B..., O..., C]` in the dtype of `x`. Of -0. and 0., which are equal, a
        value may be the one that its index does not name.
      indices: int32 of the same shape: the element's position in the unpadded input,
        counted in row-major order over the pooled axes alone (for H and W: h * W + w),
        as PyTorch counts; -1 for a window without elements. No gradient.

    Example:
      Of two equal maxima the first is the maximum; places count over the whole input.

      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.array([1.0, 2.0, 7.0, 7.0, 4.0, 3.0])[:, None]
      >>> values, indices = jp.max_pool_with_argmax(x, (3,), strides=(3,))
      >>> values[:, 0], indices[:, 0]
      (Array([7., 7.], dtype=float32), Array([2, 3], dtype=int32))
    """
    spec = (window_shape, strides, padding, window_dilation, ceil_mode, axis)
    x, geometry, where = laid(
        "max_pool_with_argmax", x, where, spec, ordered=True, reduction=True
    )
    countable("max_pool_with_argmax", geometry.sizes)
    return window_choice(x, geometry, True, where)


@pool_op(
    "extremum",
    "other",
    inputs=("values", "indices"),
    example=Example(
        (2, 8, 8, 16),
        {
            "values, indices": "jp.max_pool_with_argmax("
            "jnp.ones((2, 8, 8, 16)), (2, 2), (2, 2))"
        },
        "(8, 8)",
    ),
)
def max_unpool(
    values: ArrayLike,
    indices: ArrayLike,
    output_shape: Ints,
    *,
    axis: Ints | None = None,
) -> jax.Array:
    r"""Writes values back to the positions that a max-pooling took them from.

    .. math:: y_i = v_{o(i)}, \qquad o(i) = \max \{o : a_o = i\}

    and 0 where no index points. Where several do, the last in row-major order is
    written; the gradient goes to that one alone.

    Args:
      values: `[B..., O..., C]`, of any dtype.
      indices: integers of the same shape, as :func:`max_pool_with_argmax` returns
        them; those outside of the output (-1 too) write nothing.
      output_shape: sizes of the result's pooled axes; an int only with `axis=`.
      axis: the pooled axes, by default those before a trailing channel axis.

    Returns:
      `[B..., S..., C]` in the dtype of `values`.

    Raises:
      ValueError, TypeError: if shapes, dtypes or sizes do not fit together.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.array([1.0, 4.0, 3.0, 2.0])[:, None]
      >>> values, indices = jp.max_pool_with_argmax(x, (2,), strides=(2,))
      >>> jp.max_unpool(values, indices, (4,))[:, 0]
      Array([0., 4., 3., 0.], dtype=float32)
    """
    caller = "max_unpool"
    values = as_array(caller, values, "values")
    indices = int32_of(as_integers(caller, indices, "indices"))
    if indices.shape != values.shape:
        rule = f"must have the shape of `values`, {values.shape}"
        raise fail(caller, "indices", rule, indices.shape)
    axes, sizes = output_axes(caller, output_shape, axis, values.ndim)
    check_whole(caller, values, axes, "values")
    check_whole(caller, indices, axes, "indices")
    indices = split_alike(indices, values.shape, values)
    values = split_alike(values, values.shape, indices)
    countable(caller, sizes, "output_shape")
    indices = jnp.where(indices < math.prod(sizes), indices, -1)
    last = jnp.where(last_claims(indices, axes, sizes), indices, -1)
    if values.dtype == jnp.bool_:  # of which JAX makes no sums
        return put(values.astype(jnp.uint8), last, axes, sizes).astype(jnp.bool_)
    return put(values, last, axes, sizes)


@pool_op("extremum", "global", monotone=True)
def global_max_pool(
    x: ArrayLike,
    *,
    axis: Ints | None = None,
    keepdims: bool = False,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""The largest element over the whole extent of the pooled axes.

    .. math:: y = \max_i x_i

    Gradient as in :func:`max_pool`: to one element, unlike that of `jnp.max`, which
    shares it among equals.

    Args:
      x: `[B, S..., C]`; real, of any dtype.
      axis: the pooled axes, by default all but the first and the last.
      keepdims: whether pooled axes stay, with size 1.
      where: boolean, broadcastable to `x`; only True elements take part.

    Returns:
      `[B, C]` in the dtype of `x`; the lowest value where nothing takes part.

    Raises:
      ValueError, TypeError: for arguments that break these rules, or empty axes.

    Example:
      The gradient goes to one of the two maxima:

      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.array([[[2.0], [5.0], [5.0]]])
      >>> jax.grad(lambda x: jp.global_max_pool(x).sum())(x)[0, :, 0]
      Array([0., 1., 0.], dtype=float32)
    """
    x, geometry, where = whole("global_max_pool", x, where, axis, ordered=True)
    y = window_extremum(x, geometry, True, where)
    return reduced("global_max_pool", y, geometry, keepdims)


@pool_op("extremum", "global", monotone=True)
def global_min_pool(
    x: ArrayLike,
    *,
    axis: Ints | None = None,
    keepdims: bool = False,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""The smallest element over the whole extent of the pooled axes.

    .. math:: y = \min_i x_i

    Arguments, errors and gradient as in :func:`global_max_pool`; the highest value
    where nothing takes part.

    Example:
      Channels first:

      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.array([[[4.0, 2.0], [3.0, 7.0]], [[9.0, 8.0], [6.0, 5.0]]])
      >>> jp.global_min_pool(x, axis=(-2, -1))
      Array([2., 5.], dtype=float32)
    """
    x, geometry, where = whole("global_min_pool", x, where, axis, ordered=True)
    y = window_extremum(x, geometry, False, where)
    return reduced("global_min_pool", y, geometry, keepdims)
