"""Blends of maximum and mean, and of learned sums.

Mixed pooling weighs the two with numbers, fixed or learned; gated pooling computes the
weight from the window itself; a tree of such gates blends learned sums instead. The
global forms that classifiers use take half of each, or keep both side by side.

References:
  Chen-Yu Lee, Patrick Gallagher, Zhuowen Tu: Generalizing Pooling Functions in
  Convolutional Neural Networks: Mixed, Gated, and Tree, 2016.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.nn import initializers
from jax.typing import ArrayLike

from jaxpool._core.arguments import (
    as_array,
    as_parameter,
    kernel_shape,
    kernel_taps,
    laid,
    reduced,
    whole,
)
from jaxpool._core.engine import window_pad, window_taps
from jaxpool._core.geometry import Geometry
from jaxpool._core.numerics import mean_dtype
from jaxpool._core.op import Example, Weight, pool_op
from jaxpool._core.window import Ints, Padding, as_flag, as_int, fail
from jaxpool._ops.average import highest_and_mean, widened

__all__ = [
    "gated_pool",
    "global_avgmax_pool",
    "global_catavgmax_pool",
    "mixed_pool",
    "tree_pool",
]


@pool_op("blend", "window", learned=("alpha",))
def mixed_pool(
    x: ArrayLike,
    window_shape: Ints | None,
    strides: Ints | None = None,
    padding: Padding = "VALID",
    *,
    alpha: ArrayLike = 0.5,
    squash: bool = False,
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
      alpha: the weight of the maximum: a scalar, one value a channel `[C]` (in every
        layout), one a region `[O..., 1]`, or whatever else broadcasts to the result. It
        is not confined to [0, 1].
      squash: whether to take the logistic function of `alpha` instead, which is: then 0
        weighs both alike.

    Returns:
      `[B..., O..., C]`; floats in the dtype of `x`, integers as floats. A window
      without elements gives 0.

    Raises:
      ValueError, TypeError: as in :func:`max_pool`, and for an `alpha` that does not
        broadcast.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.array([0.0, 4.0])[:, None]
      >>> [jp.mixed_pool(x, (2,), alpha=alpha).item() for alpha in (0.0, 0.25, 1.0)]
      [2.0, 2.5, 4.0]
      >>> jp.mixed_pool(x, (2,), alpha=0.0, squash=True).item()
      3.0
    """
    caller = "mixed_pool"
    spec = (window_shape, strides, padding, window_dilation, ceil_mode, axis)
    x, geometry, where = laid(caller, x, where, spec, ordered=True)
    highest, mean = highest_and_mean(x, geometry, where)
    squash = as_flag(caller, "squash", squash)
    weight = as_parameter(
        caller, "alpha", alpha, highest, geometry.pooled, of_windows=True
    )
    y = _blended(jax.nn.sigmoid(weight) if squash else weight, highest, mean)
    return y.astype(mean_dtype(x.dtype))


def _gate(
    window_shape: Ints, *, axis: Ints | None = None, features: int | None = None
) -> dict[str, Weight]:
    """The gate starts at 0: half maximum, half mean.

    Args:
      features: channels C of the input, for a gate a channel; None for one for all.
    """
    shape = kernel_shape("GatedPool", window_shape, axis, features)
    return {"gate": (shape, initializers.zeros)}


@pool_op("blend", "other", arrays=_gate)
def gated_pool(
    x: ArrayLike,
    window_shape: Ints | None,
    strides: Ints | None = None,
    padding: Padding = "VALID",
    *,
    gate: ArrayLike,
    window_dilation: Ints = 1,
    ceil_mode: bool = False,
    axis: Ints | None = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""Maximum and mean of each window, blended by a gate; strides default to 1.

    .. math:: y_o = s_o \max_{i \in W(o)} x_i
        + (1 - s_o) \frac{1}{n_o} \sum_{i \in W(o)} x_i, \qquad
        s_o = \frac{1}{1 + e^{-z_o}}, \quad z_o = \sum_{i \in W(o)} \omega_i x_i

    with one weight :math:`\omega` for each place of the window. What is no element
    (padding, or hidden by a mask) adds nothing to :math:`z_o` and does not count in
    :math:`n_o`. Gradient: that of the formula, in the gate too; the maximum's goes to
    the first of equals.

    Args:
      x: `[B..., S..., C]` as in :func:`max_pool`.
      window_shape, strides, padding, window_dilation, ceil_mode, axis, where: the
        window, as in :func:`max_pool`.
      gate: :math:`\omega`, of the shape of the window, or `[*window, C]` with a gate a
        channel. 0 everywhere weighs maximum and mean alike.

    Returns:
      `[B..., O..., C]`; floats in the dtype of `x`, integers as floats. A window
      without elements gives 0.

    Raises:
      ValueError, TypeError: as in :func:`max_pool`, and for a gate of another shape.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.array([0.0, 4.0])[:, None]
      >>> jp.gated_pool(x, (2,), gate=jnp.array([0.0, 0.0])).item()
      3.0
      >>> jp.gated_pool(x, (2,), gate=jnp.array([0.0, 9.0])).item()
      4.0
    """
    caller = "gated_pool"
    spec = (window_shape, strides, padding, window_dilation, ceil_mode, axis)
    x, geometry, where = laid(caller, x, where, spec, ordered=True)
    dtype, x = mean_dtype(x.dtype), widened(x)
    kernel = kernel_taps(caller, "gate", gate, x, geometry, axis)
    (logit,) = _weighted_sums(x, geometry, where, kernel[None])
    y = _blended(jax.nn.sigmoid(logit), *highest_and_mean(x, geometry, where))
    return y.astype(dtype)


def _tree(
    window_shape: Ints,
    *,
    axis: Ints | None = None,
    depth: int = 2,
    features: int | None = None,
) -> dict[str, Weight]:
    """Leaves start at the mean plus Gaussian noise of deviation 0.1, gates at 0.

    The authors' code has that noise alone, in the gates too. Without any, all leaves
    would stay equal.

    Args:
      depth: how many gates lie above each leaf; there are `2**depth` leaves.
      features: channels C of the input, for a tree a channel; None for one for all.
    """
    caller = "TreePool"
    leaves = 2 ** as_int(caller, "depth", depth, 0)
    window = kernel_shape(caller, window_shape, axis, features)
    taps = math.prod(kernel_shape(caller, window_shape, axis))

    def noisy_mean(key, shape, dtype):
        return 1 / taps + 0.1 * jax.random.normal(key, shape, dtype)

    return {
        "leaves": ((leaves, *window), noisy_mean),
        "gates": ((leaves - 1, *window), initializers.zeros),
    }


@pool_op("blend", "other", arrays=_tree)
def tree_pool(
    x: ArrayLike,
    window_shape: Ints | None,
    strides: Ints | None = None,
    padding: Padding = "VALID",
    *,
    leaves: ArrayLike,
    gates: ArrayLike,
    window_dilation: Ints = 1,
    ceil_mode: bool = False,
    axis: Ints | None = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""Learned sums of each window, blended by a tree of gates; strides default to 1.

    .. math:: y_o = f_0, \qquad f_k = \begin{cases}
        s_k f_{2 k + 1} + (1 - s_k) f_{2 k + 2} & k < 2^d - 1 \\
        \sum_{i \in W(o)} v_{k - 2^d + 1, i} x_i & k \ge 2^d - 1 \end{cases}, \qquad
        s_k = \frac{1}{1 + e^{-z_k}}, \quad z_k = \sum_{i \in W(o)} \omega_{k, i} x_i

    for a tree of depth d, counted from its root level by level and from left to right:
    node k has the nodes 2 k + 1 (left) and 2 k + 2 (right) below it, and behind all
    gates :math:`\omega` come the leaves :math:`v`. What is no element (padding, or
    hidden by a mask) adds nothing to any sum. Gradient: that of the formula.

    Args:
      x: `[B..., S..., C]` as in :func:`max_pool`.
      window_shape, strides, padding, window_dilation, ceil_mode, axis, where: the
        window, as in :func:`max_pool`.
      leaves: :math:`v`, `[2**d, *window]`, or `[2**d, *window, C]` with a tree a
        channel.
      gates: :math:`\omega`, `[2**d - 1, *window]` or `[2**d - 1, *window, C]`.

    Returns:
      `[B..., O..., C]`; floats in the dtype of `x`, integers as floats. A window
      without elements gives 0.

    Raises:
      ValueError, TypeError: as in :func:`max_pool`, and for leaves or gates of other
        shapes.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.array([0.0, 4.0])[:, None]
      >>> leaves = jnp.array([[0.5, 0.5], [0.0, 1.0]])  # the mean, and the last
      >>> jp.tree_pool(x, (2,), leaves=leaves, gates=jnp.zeros((1, 2))).item()
      3.0
    """
    caller = "tree_pool"
    spec = (window_shape, strides, padding, window_dilation, ceil_mode, axis)
    x, geometry, where = laid(caller, x, where, spec, ordered=True)
    dtype, x = mean_dtype(x.dtype), widened(x)
    leaves = as_array(caller, leaves, "leaves", ordered=True)
    count = (*leaves.shape, 0)[0]
    if count < 1 or count & (count - 1):
        rule = "must have a power of two along its first axis"
        raise fail(caller, "leaves", rule, leaves.shape)
    kernels = [
        kernel_taps(caller, name, values, x, geometry, axis, (n,))
        for name, values, n in (("leaves", leaves, count), ("gates", gates, count - 1))
    ]
    nodes, logits = (_weighted_sums(x, geometry, where, k) for k in kernels)
    while len(nodes) > 1:  # the lowest level of gates is the last one
        pairs, logits = logits[-len(nodes) // 2 :], logits[: -len(nodes) // 2]
        shares = map(jax.nn.sigmoid, pairs)
        nodes = list(map(_blended, shares, nodes[::2], nodes[1::2]))
    return nodes[0].astype(dtype)


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

    Arguments and errors as in :func:`global_max_pool`. Gradient: half of that of each
    of the two.

    Returns:
      `[B, C]`, in the dtypes of :func:`avg_pool`; 0 where nothing takes part.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.array([[[1.0], [3.0], [8.0]]])  # mean 4, maximum 8
      >>> jp.global_avgmax_pool(x)
      Array([[6.]], dtype=float32)
    """
    x, geometry, where = whole("global_avgmax_pool", x, where, axis, ordered=True)
    highest, mean = highest_and_mean(x, geometry, where)
    y = ((highest + mean) / 2).astype(mean_dtype(x.dtype))
    return reduced("global_avgmax_pool", y, geometry, keepdims)


@pool_op("blend", "global", monotone=True, example=Example((2, 32)))
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
    Arguments and errors as in :func:`global_max_pool`. Gradient: that of each of the
    two.

    Returns:
      `[B, 2C]`, in the dtypes of :func:`avg_pool`; 0 where nothing takes part.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.array([[[1.0, 10.0], [3.0, 30.0], [8.0, 80.0]]])
      >>> jp.global_catavgmax_pool(x)
      Array([[ 4., 40.,  8., 80.]], dtype=float32)
    """
    caller = "global_catavgmax_pool"
    x, geometry, where = whole(caller, x, where, axis, ordered=True)
    highest, mean = highest_and_mean(x, geometry, where)
    channel = max(set(range(-x.ndim, 0)) - set(geometry.pooled))
    y = jnp.concatenate([mean, highest], channel).astype(mean_dtype(x.dtype))
    return reduced(caller, y, geometry, keepdims)


def _blended(share: jax.Array, first: jax.Array, second: jax.Array) -> jax.Array:
    return share * first + (1 - share) * second


def _weighted_sums(
    x: jax.Array, geometry: Geometry, where: jax.Array | None, kernels: jax.Array
) -> list[jax.Array]:
    """Each window's sums with several sets of weights, `[sets, taps, ...]`."""
    x, geometry, _ = window_pad(x, geometry, where, 0)
    return _sums_of_taps(x, geometry, kernels)


# Derivatives read the input again, rather than keep an array for each tap.
@functools.partial(jax.jit, static_argnums=1)
@functools.partial(jax.checkpoint, static_argnums=1)
def _sums_of_taps(x, geometry, kernels):
    if not geometry.whole:
        parts = window_taps(x, geometry)
        terms = [[w * part for w, part in zip(k, parts, strict=True)] for k in kernels]
        return [functools.reduce(lax.add, term) for term in terms]
    sums = []
    for k in kernels:
        k = jnp.squeeze(k, geometry.pooled)
        k = k.reshape(*geometry.sizes, *k.shape[1:])
        k = jnp.moveaxis(k, range(len(geometry.axes)), geometry.pooled)
        sums.append(jnp.sum(x * k, geometry.pooled, keepdims=True))
    return sums
