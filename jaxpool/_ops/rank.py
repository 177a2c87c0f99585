"""Order statistics: the elements of each window by rank, not by place or value.

Nearly all are one formula, a sum over ranks with a weight for each, the largest element
first: :func:`rank_pool` takes any weights, the others name known ones. The rest take
one element of each window, whose rank is fixed (the median) or drawn.

References:
  John Tukey: Exploratory Data Analysis, 1977 (running medians).
  Zenglin Shi, Yangdong Ye, Yunpeng Wu: Rank-based Pooling for Deep Convolutional Neural
  Networks, 2016 (means of the k largest, geometric weights, and draws by rank).
  Haibing Wu, Xiaodong Gu: Max-Pooling Dropout for Regularization of Convolutional
  Neural Networks, 2015.
  Adrien Deliege, Maxime Istasse, Ashwani Kumar, Christophe De Vleeschouwer, Marc Van
  Droogenbroeck: Ordinal Pooling, 2019.
  Thibaut Durand, Taylor Mordan, Nicolas Thome, Matthieu Cord: WILDCAT: Weakly
  Supervised Learning of Deep ConvNets, 2017 (means of the k largest and smallest).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.nn import initializers
from jax.typing import ArrayLike

from jaxpool._core.arguments import Spec, as_array, as_key, countable, laid
from jaxpool._core.draws import uniform
from jaxpool._core.engine import few_regions, identity, window_pad
from jaxpool._core.geometry import Geometry, static_size
from jaxpool._core.numerics import accumulation_dtype, divide, mean_dtype
from jaxpool._core.op import Weight, pool_op
from jaxpool._core.order import (
    MOST_COMPARED,
    MOST_MATCHED,
    MOST_RANKED,
    window_descending,
    window_match,
    window_ranked,
)
from jaxpool._core.sharding import split_alike
from jaxpool._core.stages import large_and_whole
from jaxpool._core.weights import fit_shapes, read_params
from jaxpool._core.window import (
    Ints,
    Padding,
    as_flag,
    as_int,
    as_number,
    fail,
    is_name,
    is_sequence,
)
from jaxpool._ops.average import element_count

__all__ = [
    "dropout_max_pool",
    "median_pool",
    "ordinal_pool",
    "rank_pool",
    "rank_stochastic_pool",
    "rank_weighted_pool",
    "topk_avg_pool",
]


@pool_op("rank", "window", compare={"weights": (0.4, 0.3, 0.2, 0.1)})
def rank_pool(
    x: ArrayLike,
    window_shape: Ints | None,
    strides: Ints | None = None,
    padding: Padding = "VALID",
    *,
    weights: ArrayLike,
    normalize: bool = False,
    window_dilation: Ints = 1,
    ceil_mode: bool = False,
    axis: Ints | None = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""A weighted sum of each window's elements by rank; strides default to 1.

    With the window's m elements from large to small,
    :math:`x_{(1)} \ge \dots \ge x_{(m)}`,

    .. math:: y_o = \sum_{r=1}^{m} w_r x_{(r)}, \qquad
        y_o = \sum_{r=1}^{m} w_r x_{(r)} \Big/ \sum_{r=1}^{m} w_r
        \quad \text{(normalize)}

    Maximum, minimum, mean, median, and whatever lies between: what is special about a
    pool by rank is in its weights. Padding, and what a mask hides, is no element and
    has no rank: in a window of m < n elements the last n - m weights are left out, so
    that its sum is smaller, as that of :func:`sum_pool` is, or, with `normalize`, a
    mean over fewer.

    Gradient: to each element the weight of its rank, and to each weight the element of
    its rank; of equal elements the first in row-major order ranks first. All orders of
    derivatives follow.

    Args:
      x: `[B..., S..., C]` as in :func:`max_pool`.
      window_shape, strides, padding, window_dilation, ceil_mode, axis, where: the
        window, as in :func:`max_pool`. A window has n elements at most.
      weights: `[n]`, that of the largest element first; or `[n, C]`, or `[n, ...]` of
        whatever broadcasts to the result. Infinity times a weight of 0 is NaN.
      normalize: whether to divide by the sum of the weights; where that is 0, but for
        rounding, y is 0.

    Returns:
      `[B..., O..., C]`; floats in the dtype of `x` (half precision adds up in float32),
      integers as floats. A window with NaN gives NaN, and one without elements 0.

    Raises:
      ValueError, TypeError: as in :func:`max_pool`, and for other than n weights.

    Example:
      The scores of WILDCAT, the mean of the k largest plus alpha times that of the k
      smallest, halved, for k = 1 and alpha = 0.5:

      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.array([3.0, 1.0, 4.0, 2.0])[:, None]
      >>> jp.rank_pool(x, (4,), weights=[0.5, 0, 0, 0.25])[:, 0]
      Array([2.25], dtype=float32)
    """
    caller = "rank_pool"
    spec = (window_shape, strides, padding, window_dilation, ceil_mode, axis)
    x, geometry, where = _laid(caller, x, where, spec)
    weights = as_array(caller, weights, "weights", ordered=True)
    rule = f"must have {geometry.taps} entries, one for each element of a window"
    if weights.ndim == 0 or len(weights) != geometry.taps:
        raise fail(caller, "weights", rule, weights.shape)
    rest, out = weights.shape[1:], geometry.out_shape(x.shape)
    rest = (1,) * (x.ndim - len(rest)) + rest
    if len(rest) > x.ndim or any(
        m not in (1, n) for m, n in zip(rest, out, strict=True)
    ):
        rule = f"must have entries that broadcast to the result, whose shape is {out}"
        raise fail(caller, "weights", rule, weights.shape)
    weights = weights.reshape(len(weights), *rest)
    normalize = as_flag(caller, "normalize", normalize)
    return _weighted_sum(x, geometry, where, weights, normalize)


@pool_op("rank", "window", monotone=True, compare={"k": 2})
def topk_avg_pool(
    x: ArrayLike,
    window_shape: Ints | None,
    strides: Ints | None = None,
    padding: Padding = "VALID",
    *,
    k: int,
    window_dilation: Ints = 1,
    ceil_mode: bool = False,
    axis: Ints | None = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""The mean of the k largest elements of each window; strides default to 1.

    .. math:: y_o = \frac{1}{\min(k, m)} \sum_{r=1}^{\min(k, m)} x_{(r)}

    for m elements :math:`x_{(1)} \ge \dots \ge x_{(m)}`: rank-based average pooling.
    k = 1 is the maximum, and k = n the mean. Gradient: an equal share to each of those
    k, of equal elements to the first in row-major order.

    Args:
      x: `[B..., S..., C]` as in :func:`max_pool`.
      window_shape, strides, padding, window_dilation, ceil_mode, axis, where: the
        window, as in :func:`max_pool`.
      k: how many elements, at least 1; all of a window that has fewer.

    Returns:
      As :func:`rank_pool`.

    Raises:
      ValueError, TypeError: as in :func:`max_pool`, and for a bad k.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.array([3.0, 1.0, 4.0, 2.0])[:, None]
      >>> jp.topk_avg_pool(x, (4,), k=2)[:, 0]
      Array([3.5], dtype=float32)
    """
    caller = "topk_avg_pool"
    spec = (window_shape, strides, padding, window_dilation, ceil_mode, axis)
    x, geometry, where = _laid(caller, x, where, spec)
    k = min(as_int(caller, "k", k, 1), geometry.taps)
    return _weighted_sum(x, geometry, where, np.ones(k), True)


@pool_op("rank", "window", monotone=True)
def rank_weighted_pool(
    x: ArrayLike,
    window_shape: Ints | None,
    strides: Ints | None = None,
    padding: Padding = "VALID",
    *,
    alpha: float = 0.5,
    normalize: bool = True,
    window_dilation: Ints = 1,
    ceil_mode: bool = False,
    axis: Ints | None = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""Elements of each window with weights that fall geometrically by rank.

    .. math:: y_o = \sum_{r=1}^{m} p_r x_{(r)} \Big/ \sum_{r=1}^{m} p_r, \qquad
        p_r = \alpha (1 - \alpha)^{r-1}

    for m elements :math:`x_{(1)} \ge \dots \ge x_{(m)}`. Strides default to 1.
    :math:`\alpha = 1` is the maximum, :math:`\alpha \to 0` the mean. Gradient: its
    weight to each element, of equal ones to the first in row-major order first.

    Args:
      x: `[B..., S..., C]` as in :func:`max_pool`.
      window_shape, strides, padding, window_dilation, ceil_mode, axis, where: the
        window, as in :func:`max_pool`.
      alpha: a number with 0 < alpha <= 1.
      normalize: whether to divide by the sum of the weights. The authors' code does
        not, and is lower by a factor of :math:`1 - (1 - \alpha)^m`.

    Returns:
      As :func:`rank_pool`.

    Raises:
      ValueError, TypeError: as in :func:`max_pool`, and for a bad alpha.

    Example:
      4 / 2 + 3 / 4 + 2 / 8 + 1 / 16:

      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.array([3.0, 1.0, 4.0, 2.0])[:, None]
      >>> jp.rank_weighted_pool(x, (4,), alpha=0.5, normalize=False)[:, 0]
      Array([3.0625], dtype=float32)
    """
    caller = "rank_weighted_pool"
    spec = (window_shape, strides, padding, window_dilation, ceil_mode, axis)
    x, geometry, where = _laid(caller, x, where, spec)
    alpha = _as_alpha(caller, alpha)
    weights = _geometric(alpha, geometry.taps)
    normalize = as_flag(caller, "normalize", normalize)
    return _weighted_sum(x, geometry, where, weights, normalize)


def _ordinal_weights(features: int, window_shape: Sequence[int]) -> dict[str, Weight]:
    """Logits start at 0, so that the pool starts as the mean.

    Args:
      features: channels C of the input.
      window_shape: the window, of n elements; a sequence.
    """
    caller = "OrdinalPool"
    features = as_int(caller, "features", features, 1)
    if not is_sequence(window_shape):
        rule = "must be a sequence, to say how many weights there are"
        raise fail(caller, "window_shape", rule, window_shape)
    sizes = [as_int(caller, "window_shape", size, 1) for size in window_shape]
    return {"logits": ((math.prod(sizes), features), initializers.zeros)}


@pool_op("rank", "other", weights=_ordinal_weights)
def ordinal_pool(
    x: ArrayLike,
    window_shape: Ints | None,
    strides: Ints | None = None,
    padding: Padding = "VALID",
    *,
    params: Mapping[str, ArrayLike],
    window_dilation: Ints = 1,
    ceil_mode: bool = False,
    axis: Ints | None = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""Elements of each window with a learned weight for each rank and channel.

    .. math:: y_o = \sum_{r=1}^{m} w_r x_{(r)}, \qquad
        w = \operatorname{softmax}(l_1, \dots, l_m)

    for the m elements :math:`x_{(1)} \ge \dots \ge x_{(m)}` of a window of one
    channel. Strides default to 1. Logits of 0 give the mean, with which a module
    starts. The authors keep weights positive, of sum 1, by a projection after each
    step; softmax does so by itself. Gradient: as in :func:`rank_pool`.

    Args:
      x: `[B..., S..., C]` as in :func:`max_pool`; with `axis`, channels are the last of
        the other axes.
      window_shape, strides, padding, window_dilation, ceil_mode, axis, where: the
        window, as in :func:`max_pool`, of n elements at most.
      params: `logits` `[n, C]`, those of the largest elements first.

    Returns:
      As :func:`rank_pool`.

    Raises:
      ValueError, TypeError: as in :func:`max_pool`, and for bad logits.

    Example:
      Before any training it is the mean:

      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.array([3.0, 1.0, 4.0, 2.0])[:, None]
      >>> jp.ordinal_pool(x, (4,), params={"logits": jnp.zeros((4, 1))})[:, 0]
      Array([2.5], dtype=float32)
      >>> logits = jnp.array([[9.0], [0.0], [0.0], [0.0]])
      >>> jp.ordinal_pool(x, (4,), params={"logits": logits})[:, 0].round(1)
      Array([4.], dtype=float32)
    """
    caller = "ordinal_pool"
    spec = (window_shape, strides, padding, window_dilation, ceil_mode, axis)
    x, geometry, where = _laid(caller, x, where, spec)
    given = read_params(caller, params, ("logits",))
    others = [d for d in range(-x.ndim, 0) if d not in geometry.pooled]
    channel = others[-1] if others else None
    features = 1 if channel is None else x.shape[channel]
    fit_shapes(caller, given, {"logits": "kc"}, {"k": geometry.taps, "c": features})
    shape = [features if d == channel else 1 for d in range(-x.ndim, 0)]
    wide = given["logits"].astype(accumulation_dtype(mean_dtype(x.dtype)))
    weights = jax.nn.softmax(wide, 0).reshape(geometry.taps, *shape)
    return _weighted_sum(x, geometry, where, weights, True)


@pool_op("rank", "window", takes_key=True)
def rank_stochastic_pool(
    x: ArrayLike,
    window_shape: Ints | None,
    strides: Ints | None = None,
    padding: Padding = "VALID",
    *,
    alpha: float = 0.5,
    key: Any = None,
    deterministic: bool = False,
    window_dilation: Ints = 1,
    ceil_mode: bool = False,
    axis: Ints | None = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""One element of each window, drawn by its rank; strides default to 1.

    .. math:: y_o = x_{(l)}, \quad P(l = r) = p_r \Big/ \sum_{q=1}^{m} p_q, \quad
        p_r = \alpha (1 - \alpha)^{r-1} \quad \text{(training)}, \qquad
        y_o = \mathbb{E}[x_{(l)}] \quad \text{(deterministic)}

    for m elements :math:`x_{(1)} \ge \dots \ge x_{(m)}`; the second is
    :func:`rank_weighted_pool`. Windows draw independently of each other, also where
    they overlap. Gradient: in training to the drawn element alone, the first in
    row-major order of those equal to it; what was drawn has none.

    Args:
      x: `[B..., S..., C]` as in :func:`max_pool`.
      window_shape, strides, padding, window_dilation, ceil_mode, axis, where: the
        window, as in :func:`max_pool`; to draw, of at most 254 elements, unless it is
        the whole extent.
      alpha: a number with 0 < alpha <= 1; 1 is the maximum.
      key: a PRNG key, typed or raw; the same key draws the same elements.
      deterministic: whether to return the expectation, which needs no key.

    Returns:
      As :func:`rank_pool`.

    Raises:
      ValueError, TypeError: as in :func:`max_pool`, for a bad alpha, for larger
        windows, and without a key to draw with.

    Example:
      The larger of two is drawn with the odds 2 to 1:

      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.array([3.0, 1.0])[:, None]
      >>> keys = [jax.random.key(seed) for seed in range(20)]
      >>> draws = [jp.rank_stochastic_pool(x, (2,), key=key).item() for key in keys]
      >>> sorted(set(draws)), draws.count(3.0) > 10
      ([1.0, 3.0], True)
      >>> jp.rank_stochastic_pool(x, (2,), key=keys[7]).item() == draws[7]
      True
    """
    caller = "rank_stochastic_pool"
    spec = (window_shape, strides, padding, window_dilation, ceil_mode, axis)
    x, geometry, where = _laid(caller, x, where, spec)
    alpha = _as_alpha(caller, alpha)
    if as_flag(caller, "deterministic", deterministic):
        weights = _geometric(alpha, geometry.taps)
        return _weighted_sum(x, geometry, where, weights, True)
    return _draw(caller, x, geometry, where, alpha, as_key(caller, key), always=True)


@pool_op("rank", "window", takes_key=True, compare={"rate": 0.5})
def dropout_max_pool(
    x: ArrayLike,
    window_shape: Ints | None,
    strides: Ints | None = None,
    padding: Padding = "VALID",
    *,
    rate: float,
    key: Any = None,
    deterministic: bool = False,
    window_dilation: Ints = 1,
    ceil_mode: bool = False,
    axis: Ints | None = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""The maximum of what dropout leaves of each window; strides default to 1.

    With :math:`a = \max(x, 0)`, :math:`a_{(1)} \ge \dots \ge a_{(m)}`, and the rate
    :math:`\rho`,

    .. math:: y_o = \max_{i \in W(o)} b_i a_i, \quad P(b_i = 0) = \rho
        \quad \text{(training)}, \qquad
        y_o = \sum_{r=1}^{m} (1 - \rho) \rho^{r-1} a_{(r)}
        \quad \text{(deterministic)}

    The second is the expectation of the first. What is dropped counts as 0, and nothing
    is scaled up to make up for it; so it is made for activations that are not negative,
    and negative ones count as 0 too. Each window drops on its own, also where they
    overlap: by one number a window, which decides the rank of the largest that is left.

    Gradient: in training to the element taken alone, if it is positive, and the first
    in row-major order of those equal to it; in evaluation the weight of its rank to
    each positive element.

    Args:
      x: `[B..., S..., C]` as in :func:`max_pool`.
      window_shape, strides, padding, window_dilation, ceil_mode, axis, where: the
        window, as in :func:`max_pool`; to draw, of at most 254 elements, unless it is
        the whole extent.
      rate: the probability to drop an element, 0 <= rate < 1.
      key: a PRNG key, typed or raw; the same key draws the same elements.
      deterministic: whether to return the expectation, which needs no key.

    Returns:
      As :func:`rank_pool`; 0 where all elements are dropped.

    Raises:
      ValueError, TypeError: as in :func:`max_pool`, for a bad rate, for larger
        windows, and without a key to draw with.

    Example:
      The expectation is 3 / 2 + 2 / 4 + 1 / 8:

      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.array([0.0, 1.0, 2.0, 3.0])[:, None]
      >>> jp.dropout_max_pool(x, (4,), rate=0.5, deterministic=True)[:, 0]
      Array([2.125], dtype=float32)
      >>> key = jax.random.key(0)
      >>> y = jp.dropout_max_pool(x, (4,), rate=0.5, key=key)
      >>> y.item() in (0.0, 1.0, 2.0, 3.0)
      True
    """
    caller = "dropout_max_pool"
    spec = (window_shape, strides, padding, window_dilation, ceil_mode, axis)
    x, geometry, where = _laid(caller, x, where, spec)
    rate = as_number(caller, "rate", rate, "must be a number")
    if not 0 <= rate < 1:
        raise fail(caller, "rate", "must be at least 0 and less than 1", rate)
    if as_flag(caller, "deterministic", deterministic):
        weights = _geometric(1 - rate, geometry.taps)
        x = x.astype(mean_dtype(x.dtype))
        x = jnp.where(x <= 0, jnp.zeros((), x.dtype), x)  # unlike max, it keeps NaN
        return _weighted_sum(x, geometry, where, weights, False)
    key = as_key(caller, key)
    return _draw(caller, x, geometry, where, 1 - rate, key, always=False)


@pool_op("rank", "window", monotone=True)
def median_pool(
    x: ArrayLike,
    window_shape: Ints | None,
    strides: Ints | None = None,
    padding: Padding = "VALID",
    *,
    interpolation: Literal["lower", "midpoint"] = "lower",
    window_dilation: Ints = 1,
    ceil_mode: bool = False,
    axis: Ints | None = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""The median of each window; strides default to 1.

    With the window's elements in order, :math:`x_{(1)} \le \dots \le x_{(n)}`,

    .. math:: y_o = x_{(\lfloor (n + 1) / 2 \rfloor)} \quad \text{(lower)}, \qquad
        y_o = \tfrac{1}{2} \big(x_{(\lfloor (n + 1) / 2 \rfloor)}
        + x_{(\lfloor n / 2 \rfloor + 1)}\big) \quad \text{(midpoint)}

    Both are the middle one where n is odd. Padding is no element. Gradient: to the
    first element in row-major order that equals the median; for the midpoint, half to
    that of each of the two.

    A border that is reflected, as timm's `MedianPool2d` has it, is a step before:
    `median_pool(jnp.pad(x, widths, mode="reflect"), ...)`.

    Args:
      x: `[B..., S..., C]` as in :func:`max_pool`.
      window_shape, strides, padding, window_dilation, ceil_mode, axis, where: the
        window, as in :func:`max_pool`; of at most 254 elements, unless it is the whole
        extent.
      interpolation: for an even number of elements, the `"lower"` one of the two in
        the middle, or their mean, `"midpoint"`.

    Returns:
      `[B..., O..., C]` in the dtype of `x`; the midpoint of integers as floats. A
      window with NaN gives NaN, and one without elements 0.

    Raises:
      ValueError, TypeError: as in :func:`max_pool`, and for larger windows.

    Example:
      One outlier does not matter:

      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.array([3.0, 1.0, 100.0, 2.0])[:, None]
      >>> jp.median_pool(x, (3,))[:, 0]
      Array([3., 2.], dtype=float32)
    """
    caller = "median_pool"
    if not is_name(interpolation, ("lower", "midpoint")):
        rule = "must be 'lower' or 'midpoint'"
        raise fail(caller, "interpolation", rule, interpolation)
    spec = (window_shape, strides, padding, window_dilation, ceil_mode, axis)
    x, geometry, where = _laid(caller, x, where, spec)
    dtype = x.dtype if interpolation == "lower" else mean_dtype(x.dtype)
    wide = x.astype(accumulation_dtype(dtype))
    count = _count(x, geometry, where)
    ranks = [count // 2] if interpolation == "lower" else [count // 2, (count - 1) // 2]
    bounds = range(1, geometry.taps)
    middle = _passing(caller, wide, geometry, where, bounds, ranks)
    y = middle[0] if len(middle) == 1 else middle[0] / 2 + middle[1] / 2
    if where is not None:
        y = jnp.where(count > 0, y, jnp.zeros((), y.dtype))
    return y.astype(dtype)


def _laid(
    caller: str, x: ArrayLike, where: ArrayLike | None, spec: Spec
) -> tuple[jax.Array, Geometry, jax.Array | None]:
    """As `laid`, for windows whose elements are to be put in order."""
    array, geometry, mask = laid(caller, x, where, spec, ordered=True)
    for a in geometry.axes:
        static_size(caller, a.size)
    return array, geometry, mask


def _as_alpha(caller: str, value: Any) -> float:
    alpha = as_number(caller, "alpha", value, "must be a number")
    if not 0 < alpha <= 1:
        raise fail(caller, "alpha", "must be greater than 0 and at most 1", value)
    return alpha


def _count(x: jax.Array, geometry: Geometry, where: jax.Array | None) -> Any:
    return element_count(np.int32, x.ndim, geometry, where, False)


def _geometric(p: float, count: int) -> np.ndarray:
    """p (1 - p)^r for the ranks r from 0, as far as it is not 0."""
    return np.trim_zeros(p * (1 - p) ** np.arange(count), "b")


def _weighted_sum(
    x: jax.Array,
    geometry: Geometry,
    where: jax.Array | None,
    weights: np.ndarray | jax.Array,
    normalize: bool,
) -> jax.Array:
    """The sum of each window's elements, the largest first, by weight; or their mean.

    `weights` are `[R]`, known and positive, or `[R, ...]` with all axes of `x` behind.
    Elements that rank behind R have none.
    """
    dtype = mean_dtype(x.dtype)
    wide = accumulation_dtype(dtype)
    count = _count(x, geometry, where)
    known = isinstance(weights, np.ndarray)
    weights = weights.astype(wide)

    # Kept for the derivative is the input alone, not every window's elements in order.
    @jax.checkpoint
    def weigh(x, weights):
        lowest = identity(wide, True)
        x, inside, _ = window_pad(x.astype(wide), geometry, where, lowest)
        ordered = _existing(window_descending(x, inside)[: len(weights)], count)
        if not isinstance(ordered, list):
            return _total(_column(weights, x.ndim) * ordered)
        return _total([w * e for w, e in zip(weights, ordered, strict=True)])

    y = weigh(x, weights)
    if normalize:
        total, size = (_total_of(w, x.ndim, count) for w in (weights, abs(weights)))
        nothing = abs(total) <= len(weights) / 2 * jnp.finfo(wide).eps * size
        divisor = jnp.where(nothing, 1, total)
        # The mean of equals is exact where weights are equal.
        y = divide(y, divisor) if known else y / divisor
        y = jnp.where(nothing, 0, y)
    return y.astype(dtype)


def _column(values: Any, ndim: int) -> Any:
    return values.reshape(len(values), *values.shape[1:] or (1,) * ndim)


def _total(values: Any) -> Any:
    return sum(values) if isinstance(values, list) else jnp.sum(values, 0)


def _total_of(weights: Any, ndim: int, count: Any) -> Any:
    """The sum of those weights that a window of `count` elements has."""
    few = len(weights) <= MOST_RANKED
    each = list(weights) if few else _column(weights, ndim)
    return _total(_existing(each, count))


def _existing(values: Any, count: Any) -> Any:
    """`values` by rank, with 0 for those that a window of `count` elements lacks."""
    if isinstance(count, np.ndarray) and count.min() >= len(values):
        return values
    if isinstance(values, list):
        return [jnp.where(r < count, value, 0) for r, value in enumerate(values)]
    return jnp.where(
        _column(np.arange(len(values)), values.ndim - 1) < count[None], values, 0
    )


def _draw(
    caller: str,
    x: jax.Array,
    geometry: Geometry,
    where: jax.Array | None,
    alpha: float,
    key: jax.Array,
    *,
    always: bool,
) -> jax.Array:
    """The largest element of each window that is taken, as each is by a chance alpha.

    If none is, or only one below 0, that is 0; or, `always`, it happens under the
    condition that one is. One number u for each window decides: the r largest are
    passed over if none of them is taken, where u >= 1 - (1 - alpha)^r.
    """
    dtype = mean_dtype(x.dtype)
    x, wide = x.astype(dtype), accumulation_dtype(dtype)
    fall = math.log1p(-alpha) if alpha < 1 else -1e3
    some = -np.expm1(np.arange(geometry.taps + 1) * fall)  # that one of r is taken
    if always:
        some /= some[-1]  # however small alpha is
    count = _count(x, geometry, where)
    bounds, some = some[1:-1].tolist(), some.astype(wide)
    some = some[count] if where is None else jnp.take(some, count, mode="clip")
    shape = geometry.out_shape(x.shape)
    u = split_alike(uniform(key, shape, wide), shape, x)
    if always:
        u *= some  # stays below it, rounded too: only elements are passed over

    def nothing(y):
        return count == 0 if always else (u >= some) | (y <= 0)

    return _passing(caller, x, geometry, where, bounds, [u], nothing)[0]


def _passing(
    caller: str,
    x: jax.Array,
    geometry: Geometry,
    where: jax.Array | None,
    bounds: Sequence[float],
    places: Sequence[Any],
    nothing: Callable[[jax.Array], Any] | None = None,
) -> list[jax.Array]:
    """For each of `places`, the largest element of each window that is not passed over.

    As many are passed over as there are bounds, which ascend, at most that place; the
    bounds 1, 2, ... make it a rank, counted from 0. 0 where that is to be `nothing`.
    """
    if geometry.taps > MOST_MATCHED:
        if not large_and_whole(geometry):
            sizes = tuple(a.window for a in geometry.axes)
            rule = f"must have at most {MOST_MATCHED} elements, or be the whole extent"
            raise fail(caller, "window_shape", rule, sizes)
        countable(caller, geometry.sizes)
    lay = few_regions if geometry.taps <= MOST_COMPARED else window_pad
    x, geometry, where = lay(x, geometry, where, identity(x.dtype, True))
    still, found = lax.stop_gradient(x), []
    for place in places:
        if isinstance(place, np.ndarray) and place.min() == place.max():
            rank = int(np.searchsorted(bounds, place.min(), "right"))
            y = window_ranked(still, geometry, rank)
        else:
            y = window_ranked(still, geometry, tuple(bounds), jnp.asarray(place))
        none = None
        if nothing:
            none = jnp.broadcast_to(nothing(y), y.shape)
            y = jnp.where(none, jnp.zeros((), y.dtype), y)
        found.append(window_match(x, y, geometry, where, none))
    return found
