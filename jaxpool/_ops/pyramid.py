r"""Pyramids: windows or bins of several sizes over the same input, side by side.

References:
  Kaiming He, Xiangyu Zhang, Shaoqing Ren, Jian Sun: Spatial Pyramid Pooling in Deep
  Convolutional Networks for Visual Recognition, 2014.
  Hengshuang Zhao, Jianping Shi, Xiaojuan Qi, Xiaogang Wang, Jiaya Jia: Pyramid Scene
  Parsing Network, 2017.
  Qibin Hou, Li Zhang, Ming-Ming Cheng, Jiashi Feng: Strip Pooling: Rethinking Spatial
  Pooling for Scene Parsing, 2020.
  Glenn Jocher: YOLOv5, 2020 (SPPF).
"""

import functools
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxpool._core.arguments import (
    adaptive_bins,
    as_array,
    channel_axis,
    check_whole,
    laid,
    whole,
)
from jaxpool._core.engine import window_extremum
from jaxpool._core.geometry import Geometry
from jaxpool._core.numerics import mean_dtype
from jaxpool._core.op import Example, pool_op
from jaxpool._core.window import Ints, as_entries, as_int, fail, is_name, is_sequence
from jaxpool._ops.average import masked_mean

__all__ = ["pyramid_pool", "spatial_pyramid_pool", "sppf", "strip_pool"]

Levels = int | Sequence[int | Sequence[int]]


@pool_op(
    "pyramid",
    "other",
    compare={"bins": (1, 2, 4)},
    example=Example((2, (1 + 4 + 16) * 16)),
)
def spatial_pyramid_pool(
    x: ArrayLike,
    bins: Levels,
    *,
    op: Literal["max", "avg"] = "max",
    axis: Ints | None = None,
) -> jax.Array:
    r"""Adaptive pools of several sizes, flattened: features of fixed length (SPP).

    .. math:: y = \big[\,y^{(1)}, \dots, y^{(L)}\big], \qquad
        y^{(l)}_o = \max_{i \in W_l(o)} x_i

    where level l has the bins :math:`W_l` of :func:`adaptive_max_pool`, or their means
    as in :func:`adaptive_avg_pool`. The levels follow each other; within one, bins in
    row-major order, each with all its channels. Gradient: that of each level.

    Args:
      x: `[B..., S..., C]`, real.
      bins: for each level the number of bins along the pooled axes: an int for all of
        them, or one for each. A single int is one level.
      op: `"max"` (the paper's) or `"avg"`.
      axis: the pooled axes. By default those before a trailing channel axis, as many as
        a level has numbers; with ints alone, all axes but the first and the last.
        Channels are the last axis that is not pooled.

    Returns:
      `[B..., bins * C]` with the bins of all levels, in any layout; maxima in the dtype
      of `x`, means of integers as floats.

    Raises:
      ValueError, TypeError: as in :func:`adaptive_max_pool`, and for another `op`.

    Example:
      The maximum of everything, then those of two halves:

      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.arange(4.0)[None, :, None]
      >>> jp.spatial_pyramid_pool(x, (1, 2))
      Array([[3., 1., 3.]], dtype=float32)
    """
    caller = "spatial_pyramid_pool"
    if not is_name(op, ("max", "avg")):
        raise fail(caller, "op", "must be 'max' or 'avg'", op)
    x = as_array(caller, x, ordered=True)
    features = []
    for geometry in _levels(caller, x, bins, axis):
        check_whole(caller, x, [channel_axis(x.ndim, geometry.pooled)])
        if op == "max":
            y = window_extremum(x, geometry, True)
        else:
            y = masked_mean(x, geometry, None, False).astype(mean_dtype(x.dtype))
        last = (*geometry.pooled, channel_axis(x.ndim, geometry.pooled))
        y = jnp.moveaxis(y, last, range(-len(last), 0))
        shape = y.shape[y.ndim - len(last) :]
        features.append(y.reshape(*y.shape[: y.ndim - len(last)], math.prod(shape)))
    return jnp.concatenate(features, -1)


@pool_op(
    "pyramid",
    "other",
    monotone=True,
    camel="SPPF",
    compare={"window_shape": (5, 5)},
    example=Example((2, 8, 8, 4 * 16)),
)
def sppf(
    x: ArrayLike,
    window_shape: Ints,
    *,
    depth: int = 3,
    axis: Ints | None = None,
) -> jax.Array:
    r"""Maxima of maxima of the same small window, and the input, on channels (SPPF).

    .. math:: y = \big[\,x,\ m(x),\ m(m(x)),\ \dots\big], \qquad
        m(x)_o = \max_{|i - o| \le (K - 1) / 2} x_i

    which are the maxima of windows of 1, K, 2K - 1, 3K - 2, ... around each place, at
    the cost of the smallest. What lies outside of the input never wins. Gradient: that
    of each stage, as in :func:`max_pool`, one after the other.

    Args:
      x: `[B..., S..., C]` as in :func:`max_pool`.
      window_shape: the window of a stage, as in :func:`max_pool`; odd, to be centred.
      depth: number of stages, at least 1.
      axis: the pooled axes, for any other layout. Channels are the last axis that is
        not among them.

    Returns:
      `[B..., S..., (1 + depth) * C]` in the dtype of `x`. The layers around it in
      YOLO, 1 x 1 convolutions, are not part of it.

    Raises:
      ValueError, TypeError: as in :func:`max_pool`, for even windows, and no depth.

    Example:
      The input, and the maxima of 3 and of 5:

      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> jp.sppf(jnp.arange(5.0)[:, None], (3,), depth=2).T
      Array([[0., 1., 2., 3., 4.],
             [1., 2., 3., 4., 4.],
             [2., 3., 4., 4., 4.]], dtype=float32)
    """
    depth = as_int("sppf", "depth", depth, 1)
    spec = (window_shape, None, "SAME", 1, False, axis)
    x, geometry, _ = laid("sppf", x, None, spec, ordered=True)
    if any(a.window % 2 == 0 for a in geometry.axes):
        raise fail("sppf", "window_shape", "must be odd", window_shape)
    stages = itertools.accumulate(
        range(depth), lambda x, _: window_extremum(x, geometry, True), initial=x
    )
    return _beside(stages, 1 + depth, channel_axis(x.ndim, geometry.pooled))


@pool_op(
    "pyramid", "other", linear=True, monotone=True, example=Example((2, 8, 8, 5 * 16))
)
def pyramid_pool(
    x: ArrayLike, bins: Levels = (1, 2, 3, 6), *, axis: Ints | None = None
) -> jax.Array:
    r"""Means of several adaptive sizes as large as the input, and the input (PSP).

    .. math:: y = \big[\,x,\ u(y^{(1)}), \dots, u(y^{(L)})\big], \qquad
        y^{(l)}_o = \frac{1}{|W_l(o)|} \sum_{i \in W_l(o)} x_i

    on channels, where level l has the bins :math:`W_l` of :func:`adaptive_avg_pool`,
    and u is linear interpolation along each axis from M bins to N places, whose first
    and last ones are the first and last bin (`align_corners`): place i reads at
    :math:`i (M - 1) / (N - 1)`, and at 0 where N is 1. One bin is the same everywhere.
    Gradient: that of the formula.

    Nothing here is learned. In the paper each level has a 1 x 1 convolution, norm and
    ReLU before it is interpolated; a convolution alone may follow just as well, since
    the two commute.

    Args:
      x: `[B..., S..., C]`, of any dtype.
      bins, axis: the levels and the pooled axes, as in :func:`spatial_pyramid_pool`.

    Returns:
      `[B..., S..., (1 + L) * C]` for L levels; floats in the dtype of `x` (half
      precision adds up in float32), integers as floats.

    Raises:
      ValueError, TypeError: as in :func:`adaptive_avg_pool`.

    Example:
      The mean of everything, and those of two halves, interpolated:

      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.array([0.0, 2.0, 4.0, 6.0])[None, :, None]
      >>> jp.pyramid_pool(x, (1, 2))[0, :, 1:].T.round(1)
      Array([[3. , 3. , 3. , 3. ],
             [1. , 2.3, 3.7, 5. ]], dtype=float32)
    """
    x = as_array("pyramid_pool", x)
    dtype, levels = mean_dtype(x.dtype), _levels("pyramid_pool", x, bins, axis)

    def parts():
        yield x.astype(dtype)
        for geometry in levels:
            y = masked_mean(x, geometry, None, False)
            for a in geometry.axes:
                y = _interpolate(y, a.axis, a.size)
            yield y.astype(dtype)

    return _beside(parts(), 1 + len(levels), channel_axis(x.ndim, levels[0].pooled))


@pool_op("pyramid", "other", linear=True, monotone=True, example=Example((2, 8, 8, 16)))
def strip_pool(
    x: ArrayLike,
    *,
    axis: Ints | None = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""Means over the strips through each place, one along each axis, added up.

    .. math:: y_i = \sum_a \frac{1}{n_a} \sum_{j : j_b = i_b \forall b \ne a} x_j

    In two dimensions: the mean of its row plus that of its column. Gradient: that of
    the formula. Nothing here is learned: the paper convolves each set of means along
    its strip before they are added, and multiplies the input by the sigmoid of a 1 x 1
    convolution of the result.

    Args:
      x: `[B..., S..., C]`, of any dtype.
      axis: the axes to pool along, by default all but the first and the last.
      where: boolean, broadcastable to `x`: only True elements take part.

    Returns:
      `[B..., S..., C]`, the shape of `x`; floats in the dtype of `x` (half precision
      adds up in float32), integers as floats. A strip without elements adds 0.

    Raises:
      ValueError, TypeError: as in :func:`global_avg_pool`.

    Example:
      At the top left, the row's mean 2 and the column's mean 3:

      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.array([[1.0, 3.0], [5.0, 7.0]])
      >>> jp.strip_pool(x, axis=(0, 1))
      Array([[ 5.,  7.],
             [ 9., 11.]], dtype=float32)
    """
    x, geometry, where = whole("strip_pool", x, where, axis)
    means = [masked_mean(x, Geometry((a,)), where, False) for a in geometry.axes]
    y = jnp.broadcast_to(functools.reduce(jnp.add, means), x.shape)
    return y.astype(mean_dtype(x.dtype))


def _beside(parts: Iterable[jax.Array], count: int, axis: int) -> jax.Array:
    """As many arrays of one shape, side by side along an axis.

    Each is written where it belongs as soon as it is made: what is concatenated has to
    be there all at once.
    """
    parts = iter(parts)
    first = next(parts)
    size = first.shape[axis]
    pads = [(0, 0, 0)] * first.ndim
    pads[axis] = (0, (count - 1) * size, 0)
    y = lax.pad(first, np.zeros((), first.dtype), pads)
    for k, part in enumerate(parts, 1):
        y = lax.dynamic_update_slice_in_dim(y, part, k * size, axis)
    return y


def _levels(
    caller: str, x: jax.Array, levels: Any, axis: Ints | None
) -> list[Geometry]:
    """The bins of each level, over the same axes."""
    levels = as_entries(caller, "bins", levels) if is_sequence(levels) else (levels,)
    if not levels:
        raise fail(caller, "bins", "must have at least one level", levels)
    if axis is None:
        lengths = {len(level) for level in levels if is_sequence(level)}
        if len(lengths) > 1:
            raise fail(caller, "bins", "must have equally many entries a level", levels)
        if not lengths and x.ndim < 3:
            rule = "must be given for an array without axes between the first and last"
            raise fail(caller, "axis", rule, axis)
        axis = range(-1 - lengths.pop() if lengths else 1 - x.ndim, -1)
        if len(axis) >= x.ndim or not axis:
            rule = f"must have between 1 and {x.ndim - 1} entries a level"
            raise fail(caller, "bins", rule, levels)
    return [adaptive_bins(caller, x, level, axis, "bins") for level in levels]


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _interpolate(x: jax.Array, axis: int, size: int) -> jax.Array:
    """`x` as `size` places along an axis, of which the outermost are its own."""
    terms = []
    for k, weight in enumerate(_weights(x.shape[axis], size).T):
        weight = weight.reshape([size if a == axis else 1 for a in range(-x.ndim, 0)])
        bin = lax.slice_in_dim(x, k, k + 1, axis=x.ndim + axis)
        # A bin that is not read here may be NaN.
        terms.append(jnp.where(weight > 0, weight.astype(x.dtype) * bin, 0))
    return functools.reduce(jnp.add, terms)


@_interpolate.defjvp
def _interpolate_jvp(axis, size, primals, tangents):
    (x,), (tangent,) = primals, tangents
    weights = jnp.asarray(_weights(x.shape[axis], size).astype(x.dtype))
    # A product with a matrix, whose transpose is one too: that of the terms above
    # writes out, on XLA's CPU backend, an array as large as the result for each.
    y = jnp.tensordot(weights, tangent, (1, axis), precision=lax.Precision.HIGHEST)
    return _interpolate(x, axis, size), jnp.moveaxis(y, 0, axis)


def _weights(count: int, size: int) -> np.ndarray:
    """`[size, count]`: what each place reads of each bin."""
    place = np.arange(size) * (count - 1) / max(size - 1, 1)
    return np.maximum(1 - np.abs(place[:, None] - np.arange(count)), 0)
