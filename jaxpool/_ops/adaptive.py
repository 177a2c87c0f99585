r"""Adaptive pooling: the output's size is given, and the windows follow from it.

Output :math:`o` of :math:`O` along an axis of size :math:`L` pools the bin

.. math:: \{i : \lfloor o L / O \rfloor \le i < \lceil (o + 1) L / O \rceil\}

in exact integers (PyTorch's rule). Bins have one or two sizes, overlap where O does not
divide L, and repeat elements where O > L.

Classifiers take means, maxima or both from here; :func:`select_adaptive_pool` chooses
by name, and :func:`dense_head_pool` reads larger images than a classifier was made for.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxpool._core.arguments import (
    adaptive_bins,
    as_array,
    channel_axis,
    check_whole,
    countable,
    laid,
    output_axes,
)
from jaxpool._core.engine import window_choice, window_extremum
from jaxpool._core.geometry import Geometry
from jaxpool._core.numerics import accumulation_dtype, mean_dtype
from jaxpool._core.op import Example, pool_op
from jaxpool._core.window import Ints, Window, as_flag, fail, is_name, is_sequence
from jaxpool._ops.average import masked_mean

__all__ = [
    "adaptive_avg_pool",
    "adaptive_avgmax_pool",
    "adaptive_catavgmax_pool",
    "adaptive_max_pool",
    "adaptive_max_pool_with_argmax",
    "dense_head_pool",
    "feature_multiplier",
    "select_adaptive_pool",
]

OutputShape = int | None | Sequence[int | None]
PoolType = (
    Literal["avg", "max", "avgmax", "catavgmax", ""]
    | Literal["fast", "fastavg", "fastmax", "fastavgmax", "fastcatavgmax"]
)


@pool_op("adaptive", "adaptive", linear=True, monotone=True)
def adaptive_avg_pool(
    x: ArrayLike, output_shape: OutputShape, *, axis: Ints | None = None
) -> jax.Array:
    r"""The mean of each bin, for an output of the given size.

    .. math:: y_o = \frac{1}{|W(o)|} \sum_{i \in W(o)} x_i

    over the bins of this module's formula. Gradient: each element gets
    :math:`1 / |W(o)|` of that of every bin it lies in.

    Args:
      x: `[B..., S..., C]`, of any dtype.
      output_shape: the output's size for each pooled axis, at least 1; larger than the
        input's is allowed, None keeps it, and an int needs `axis=`.
      axis: the pooled axes, by default those before a trailing channel axis.

    Returns:
      `[B..., *output_shape, C]`; floats in the dtype of `x` (half precision adds up in
      float32), integers as floats.

    Raises:
      ValueError, TypeError: for arguments that break these rules, or empty axes.

    Example:
      Seven elements in three bins, of which neighbours share an element:

      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> jp.adaptive_avg_pool(jnp.arange(7.0)[:, None], (3,))[:, 0]
      Array([1., 3., 5.], dtype=float32)
    """
    x = as_array("adaptive_avg_pool", x)
    geometry = adaptive_bins("adaptive_avg_pool", x, output_shape, axis)
    return masked_mean(x, geometry, None, False).astype(mean_dtype(x.dtype))


@pool_op("adaptive", "adaptive", monotone=True)
def adaptive_max_pool(
    x: ArrayLike, output_shape: OutputShape, *, axis: Ints | None = None
) -> jax.Array:
    r"""The largest element of each bin, for an output of the given size.

    .. math:: y_o = \max_{i \in W(o)} x_i

    over the bins of this module's formula. Arguments and errors as in
    :func:`adaptive_avg_pool`, gradient as in :func:`max_pool`.

    Returns:
      `[B..., *output_shape, C]` in the dtype of `x`, which must be real.

    Example:
      One size is given, the other kept:

      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.arange(8.0).reshape(2, 4, 1)
      >>> jp.adaptive_max_pool(x, (None, 2))[..., 0]
      Array([[1., 3.],
             [5., 7.]], dtype=float32)
    """
    x = as_array("adaptive_max_pool", x, ordered=True)
    return window_extremum(
        x, adaptive_bins("adaptive_max_pool", x, output_shape, axis), True
    )


@pool_op(
    "adaptive",
    "adaptive",
    outputs=2,
    compare="is another method with indices",
)
def adaptive_max_pool_with_argmax(
    x: ArrayLike, output_shape: OutputShape, *, axis: Ints | None = None
) -> tuple[jax.Array, jax.Array]:
    r"""The largest element of each bin and where it stands.

    .. math:: y_o = x_{a(o)}, \qquad a(o) = \min \arg\max_{i \in W(o)} x_i

    Arguments and errors as in :func:`adaptive_avg_pool`, gradient as in
    :func:`max_pool`.

    Returns:
      values: `[B..., *output_shape, C]` in the dtype of `x`, which must be real.
      indices: int32 of the same shape, counted as by :func:`max_pool_with_argmax`.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.array([1.0, 7.0, 2.0, 9.0, 3.0])[:, None]
      >>> values, indices = jp.adaptive_max_pool_with_argmax(x, (2,))
      >>> values[:, 0], indices[:, 0]
      (Array([7., 9.], dtype=float32), Array([1, 3], dtype=int32))
    """
    caller = "adaptive_max_pool_with_argmax"
    x = as_array(caller, x, ordered=True)
    geometry = adaptive_bins(caller, x, output_shape, axis)
    countable(caller, geometry.sizes)
    return window_choice(x, geometry, True)


@pool_op("adaptive", "adaptive", monotone=True)
def adaptive_avgmax_pool(
    x: ArrayLike, output_shape: OutputShape, *, axis: Ints | None = None
) -> jax.Array:
    r"""Half the mean and half the maximum of each bin, for an output of the given size.

    .. math:: y_o = \tfrac{1}{2} \Big(\max_{i \in W(o)} x_i
        + \frac{1}{|W(o)|} \sum_{i \in W(o)} x_i\Big)

    over the bins of this module's formula. Arguments, dtypes and errors as in
    :func:`adaptive_avg_pool`, for real `x`; gradient: half of that of each of the two.

    Returns:
      `[B..., *output_shape, C]`.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.array([0.0, 2.0, 4.0, 8.0])[:, None]  # means 1 and 6, maxima 2 and 8
      >>> jp.adaptive_avgmax_pool(x, (2,))[:, 0]
      Array([1.5, 7. ], dtype=float32)
    """
    x = as_array("adaptive_avgmax_pool", x, ordered=True)
    geometry = adaptive_bins("adaptive_avgmax_pool", x, output_shape, axis)
    mean, highest = _mean_and_highest(x, geometry)
    return ((mean + highest) / 2).astype(mean_dtype(x.dtype))


@pool_op("adaptive", "adaptive", monotone=True, example=Example((2, 4, 4, 32)))
def adaptive_catavgmax_pool(
    x: ArrayLike, output_shape: OutputShape, *, axis: Ints | None = None
) -> jax.Array:
    r"""Mean and maximum of each bin, side by side, for an output of the given size.

    .. math:: y_o = \Big[\frac{1}{|W(o)|} \sum_{i \in W(o)} x_i,\
        \max_{i \in W(o)} x_i\Big]

    over the bins of this module's formula. The means come first, then the maxima, along
    the last axis that is not pooled. Arguments, dtypes and errors as in
    :func:`adaptive_avg_pool`, for real `x`; gradient: that of each of the two.

    Returns:
      `[B..., *output_shape, 2C]`.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.array([0.0, 2.0, 4.0, 8.0])[:, None]
      >>> jp.adaptive_catavgmax_pool(x, (2,))
      Array([[1., 2.],
             [6., 8.]], dtype=float32)
    """
    x = as_array("adaptive_catavgmax_pool", x, ordered=True)
    geometry = adaptive_bins("adaptive_catavgmax_pool", x, output_shape, axis)
    pair = _mean_and_highest(x, geometry)
    y = jnp.concatenate(pair, channel_axis(x.ndim, geometry.pooled))
    return y.astype(mean_dtype(x.dtype))


_NAMED = {
    "avg": adaptive_avg_pool,
    "max": adaptive_max_pool,
    "avgmax": adaptive_avgmax_pool,
    "catavgmax": adaptive_catavgmax_pool,
}
_SELECT = {
    **_NAMED,
    "fast": adaptive_avg_pool,
    **{f"fast{name}": pool for name, pool in _NAMED.items()},
    "": None,
}


@pool_op(
    "adaptive",
    "other",
    compare="is another method by its argument",
    example=Example((2, 32), arguments='pool_type="catavgmax", flatten=True'),
)
def select_adaptive_pool(
    x: ArrayLike,
    output_shape: OutputShape = 1,
    *,
    pool_type: PoolType = "avg",
    flatten: bool = False,
    axis: Ints | None = None,
) -> jax.Array:
    r"""An adaptive pool by name, flattened on request: the head of timm's models.

    .. math:: y = f(x), \qquad f \in \{\text{avg}, \text{max}, \text{avgmax},
        \text{catavgmax}, \text{identity}\}

    Gradient: that of the pool chosen.

    Args:
      x: `[B..., S..., C]`, of any dtype that the pool takes.
      output_shape: as in :func:`adaptive_avg_pool`. An int without `axis=` pools all
        axes but the first and the last.
      pool_type: `"avg"`, `"max"`, `"avgmax"`, `"catavgmax"`: the op
        `adaptive_<pool_type>_pool`; the same with `"fast"` in front, or `"fast"` for
        the mean, for an output of size 1 alone; `""` leaves `x` as it is.
      flatten: whether to merge spatial axes and channels, in the order they stand in,
        into one axis behind the others.
      axis: the pooled axes, for any other layout.

    Returns:
      What the pool returns, or `[B..., features]`, where :func:`feature_multiplier`
      says how often each channel is a feature.

    Raises:
      ValueError, TypeError: as in :func:`adaptive_avg_pool`, and for other names.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.ones((2, 7, 7, 5))
      >>> jp.select_adaptive_pool(x, pool_type="catavgmax", flatten=True).shape
      (2, 10)
    """
    caller = "select_adaptive_pool"
    pool = _SELECT[_known(caller, pool_type)]
    x = as_array(caller, x, ordered=pool not in (None, adaptive_avg_pool))
    if axis is None and not is_sequence(output_shape):
        if x.ndim < 3:
            rule = "must be given for an array without axes between the first and last"
            raise fail(caller, "axis", rule, axis)
        axis = tuple(range(1, x.ndim - 1))
    axes, sizes = output_axes(caller, output_shape, axis, x.ndim, x.shape)
    if pool_type.startswith("fast") and set(sizes) != {1}:
        rule = f"must be 1 for {pool_type!r}; {pool_type[4:] or 'avg'!r} takes any size"
        raise fail(caller, "output_shape", rule, output_shape)
    y = x
    if pool is not None:
        check_whole(caller, x, axes)  # under this name, not the chosen one's
        y = pool(x, output_shape, axis=axis)
    if not as_flag(caller, "flatten", flatten):
        return y
    first = min(*axes, channel_axis(x.ndim, axes))
    return y.reshape(*y.shape[:first], math.prod(y.shape[first:]))


def feature_multiplier(pool_type: PoolType) -> int:
    r"""How many features :func:`select_adaptive_pool` makes of each channel.

    .. math:: \text{features} = k\, C\, \prod_a O_a, \qquad
        k = 2 \text{ for "catavgmax" and "fastcatavgmax"}, 1 \text{ for all others}

    Args:
      pool_type: as in :func:`select_adaptive_pool`.

    Returns:
      The factor k: the classifier behind has `k * C` inputs for an output of size 1.

    Raises:
      ValueError: for other names.

    Example:
      How wide the classifier behind 512 channels has to be:

      >>> import jaxpool as jp
      >>> 512 * jp.feature_multiplier("catavgmax")
      1024
    """
    return 2 if _known("feature_multiplier", pool_type).endswith("catavgmax") else 1


@pool_op(
    "adaptive",
    "other",
    example=Example((2, 10), arguments="(6, 6), classifier=lambda x: x[..., :10]"),
)
def dense_head_pool(
    x: ArrayLike,
    window_shape: Ints | None,
    *,
    classifier: Any,
    axis: Ints | None = None,
) -> jax.Array:
    r"""A classifier read at every place of an image larger than it was made for.

    .. math:: y = \tfrac{1}{2} \Big(\max_o z_o + \frac{1}{n} \sum_{o=1}^n z_o\Big),
        \qquad z_o = \text{classifier} \Big(\frac{1}{K} \sum_{i \in W(o)} x_i\Big)

    where windows :math:`W(o)` of the size K that the classifier used to see move by 1
    (timm's `TestTimePoolHead`). On an image of that size it is the classifier's answer.
    Gradient: that of the formula, the maximum's as in :func:`max_pool`.

    Args:
      x: `[B..., S..., C]`, real.
      window_shape: the extent that used to be averaged, as in :func:`avg_pool`.
      classifier: a function of `[..., C]`, such as a layer of Flax, or a pair of a
        kernel `[C, N]` and a bias `[N]` or None. Modules take a function or a layer.
        It sees float32 where `x` is half precision.
      axis: the pooled axes, for any other layout. Channels are the last axis that is
        not among them.

    Returns:
      `[B..., N]`; floats in the dtype of `x`, integers as floats.

    Raises:
      ValueError, TypeError: as in :func:`avg_pool`, and if the classifier is neither.

    Example:
      A classifier of 7 x 7 features, on features of 9 x 9:

      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> kernel, bias = jnp.ones((5, 10)), jnp.zeros(10)
      >>> x = jnp.ones((2, 9, 9, 5))
      >>> jp.dense_head_pool(x, (7, 7), classifier=(kernel, bias)).shape
      (2, 10)

    References:
      Karen Simonyan, Andrew Zisserman: Very Deep Convolutional Networks for Large-Scale
      Image Recognition, 2015 (dense evaluation).
    """
    caller = "dense_head_pool"
    spec = (window_shape, None, "VALID", 1, False, axis)
    x, geometry, _ = laid(caller, x, None, spec, ordered=True)
    dtype, channel = mean_dtype(x.dtype), channel_axis(x.ndim, geometry.pooled)
    y = jnp.moveaxis(masked_mean(x, geometry, None, False), channel, -1)
    z = _as_function(caller, classifier, y)(y)
    places = tuple(a - (a > channel) for a in geometry.pooled)
    over_all = Window.of(caller, None, axis=places)
    mean, highest = _mean_and_highest(z, Geometry.of(over_all, z.shape))
    return jnp.squeeze((mean + highest) / 2, places).astype(dtype)


def _as_function(
    caller: str, classifier: Any, y: jax.Array
) -> Callable[[jax.Array], Any]:
    """Returns the classifier of features `y` as a function."""
    if callable(classifier):
        return classifier
    try:
        kernel, bias = classifier
    except (TypeError, ValueError):
        rule = "must be a function or a pair of kernel and bias"
        raise fail(caller, "classifier", rule, classifier, TypeError) from None
    kernel = as_array(caller, kernel, "classifier").astype(y.dtype)
    if kernel.ndim != 2 or kernel.shape[0] != y.shape[-1]:
        rule = f"must have a kernel of shape ({y.shape[-1]}, N)"
        raise fail(caller, "classifier", rule, kernel.shape)
    if bias is None:
        return lambda y: jnp.dot(y, kernel)
    bias = as_array(caller, bias, "classifier").astype(y.dtype)
    if bias.shape != kernel.shape[1:]:
        rule = f"must have a bias of shape {kernel.shape[1:]}"
        raise fail(caller, "classifier", rule, bias.shape)
    return lambda y: jnp.dot(y, kernel) + lax.expand_dims(bias, range(y.ndim - 1))


def _known(caller: str, pool_type: str) -> str:
    if not is_name(pool_type, _SELECT):
        rule = f"must be one of {', '.join(map(repr, _SELECT))}"
        raise fail(caller, "pool_type", rule, pool_type)
    return pool_type


def _mean_and_highest(x: jax.Array, geometry: Geometry) -> tuple[jax.Array, jax.Array]:
    """Mean and maximum in the dtype that they add up in."""
    x = x.astype(accumulation_dtype(mean_dtype(x.dtype)))
    return masked_mean(x, geometry, None, False), window_extremum(x, geometry, True)
