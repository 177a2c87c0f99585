"""Windows over parts of an image: the pooled mask, or weight, comes with the values.

A window without elements gives 0, and False or 0 beside it, so that nothing infinite
travels on and the next layer knows what to leave out. A mask alone is pooled by
:func:`max_pool` (any element) or :func:`min_pool` (all of them).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxpool._core.arguments import as_array, laid, over
from jaxpool._core.engine import window_extremum, window_sum
from jaxpool._core.geometry import Geometry
from jaxpool._core.numerics import accumulation_dtype, divide, hide, mean_dtype
from jaxpool._core.op import Example, pool_op
from jaxpool._core.window import Ints, Padding, fail, is_name
from jaxpool._ops.average import masked_mean

__all__ = [
    "masked_avg_pool",
    "masked_max_pool",
    "weighted_avg_pool",
    "weighted_max_pool",
]

_UNMASKED = "is another method without a mask"


@pool_op(
    "masked",
    "window",
    outputs=2,
    compare=_UNMASKED,
    example=Example(
        [(2, 4, 4, 16), (2, 4, 4, 1)],
        {"x": "jnp.ones((2, 8, 8, 16))", "where": "jnp.ones((2, 8, 8, 1), bool)"},
    ),
)
def masked_max_pool(
    x: ArrayLike,
    window_shape: Ints | None,
    strides: Ints | None = None,
    padding: Padding = "VALID",
    *,
    rule: str = "any",
    window_dilation: Ints = 1,
    ceil_mode: bool = False,
    axis: Ints | None = None,
    where: ArrayLike | None = None,
) -> tuple[jax.Array, jax.Array]:
    r"""The largest True element of each window, and the mask of windows that have one.

    With the mask :math:`m`,

    .. math:: M_o = \bigvee_{i \in W(o)} m_i, \qquad
        y_o = \max_{i \in W(o),\, m_i} x_i \text{ where } M_o, \text{ else } 0

    or, with `rule="all"`, :math:`M_o = \bigwedge_{i \in W(o)} m_i`: windows that a mask
    cuts, or leaves empty, are False. Padding is no element and counts for neither.
    Gradient as in :func:`max_pool`, and none where the mask is False.

    Args:
      x: `[B..., S..., C]` as in :func:`max_pool`.
      window_shape, strides, padding, window_dilation, ceil_mode, axis: the window, as
        in :func:`max_pool`.
      rule: whether `"any"` or `"all"` of its elements make a window's mask True.
      where: the mask, boolean and broadcastable to `x`; None is True everywhere.

    Returns:
      values: `[B..., O..., C]` in the dtype of `x`; 0 where the mask is False.
      mask: boolean, with as many axes; of size 1 along each axis along which `where`
        is, unless it is pooled, so that it masks any number of channels.

    Raises:
      ValueError, TypeError: as in :func:`max_pool`, and for another rule.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = -jnp.arange(1.0, 7.0)[:, None]
      >>> where = jnp.array([True, True, False, True, False, False])[:, None]
      >>> y, mask = jp.masked_max_pool(x, (2,), strides=(2,), where=where)
      >>> y[:, 0], mask[:, 0]
      (Array([-1., -4.,  0.], dtype=float32), Array([ True,  True, False], dtype=bool))
    """
    caller = "masked_max_pool"
    spec = (window_shape, strides, padding, window_dilation, ceil_mode, axis)
    x, geometry, where = laid(caller, x, where, spec, ordered=True)
    y = window_extremum(x, geometry, True, where)
    return _masked(caller, y, x, geometry, where, rule)


@pool_op(
    "masked",
    "window",
    outputs=2,
    linear=True,
    compare=_UNMASKED,
    example=Example(
        [(2, 4, 4, 16), (2, 4, 4, 1)],
        {"x": "jnp.ones((2, 8, 8, 16))", "where": "jnp.ones((2, 8, 8, 1), bool)"},
    ),
)
def masked_avg_pool(
    x: ArrayLike,
    window_shape: Ints | None,
    strides: Ints | None = None,
    padding: Padding = "VALID",
    *,
    rule: str = "any",
    window_dilation: Ints = 1,
    ceil_mode: bool = False,
    axis: Ints | None = None,
    where: ArrayLike | None = None,
) -> tuple[jax.Array, jax.Array]:
    r"""The mean of each window's True elements, and the mask of windows that have some.

    .. math:: y_o = \frac{\sum_{i \in W(o)} m_i x_i}{\sum_{i \in W(o)} m_i}
        \text{ where } M_o, \text{ else } 0

    with the mask :math:`M` of :func:`masked_max_pool`, whose arguments, mask and errors
    it shares. Padding is not counted. Gradient: that of the formula, and none where the
    mask is False.

    Returns:
      values: `[B..., O..., C]` in the dtypes of :func:`avg_pool`; 0 where the mask is
        False.
      mask: as from :func:`masked_max_pool`.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.array([1.0, 3.0, 5.0, 99.0, 99.0, 99.0])[:, None]
      >>> y, mask = jp.masked_avg_pool(x, (2,), strides=(2,), where=x < 99)
      >>> y[:, 0], mask[:, 0]
      (Array([2., 5., 0.], dtype=float32), Array([ True,  True, False], dtype=bool))
    """
    caller = "masked_avg_pool"
    spec = (window_shape, strides, padding, window_dilation, ceil_mode, axis)
    x, geometry, where = laid(caller, x, where, spec)
    y = masked_mean(x, geometry, where, False).astype(mean_dtype(x.dtype))
    return _masked(caller, y, x, geometry, where, rule)


@pool_op(
    "masked",
    "other",
    inputs=("x", "weights"),
    outputs=2,
    linear=True,
    example=Example(
        [(2, 4, 4, 16), (2, 4, 4, 1)],
        {"x": "jnp.ones((2, 8, 8, 16))", "weights": "jnp.ones((2, 8, 8, 1))"},
    ),
)
def weighted_avg_pool(
    x: ArrayLike,
    weights: ArrayLike,
    window_shape: Ints | None,
    strides: Ints | None = None,
    padding: Padding = "VALID",
    *,
    window_dilation: Ints = 1,
    ceil_mode: bool = False,
    axis: Ints | None = None,
    where: ArrayLike | None = None,
) -> tuple[jax.Array, jax.Array]:
    r"""The weighted mean of each window, and its mean weight.

    .. math:: y_o = \frac{\sum_{i \in W(o)} w_i x_i}{\sum_{i \in W(o)} w_i}, \qquad
        v_o = \frac{1}{K} \sum_{i \in W(o)} w_i

    with the window's full size :math:`K` everywhere: padding has the weight 0. Pooled
    again with the weights :math:`v`, windows that do not overlap give the weighted mean
    of all that lies below. Gradient: that of the formula, to the weights too; where the
    sum of weights is 0, y and its gradients are 0.

    Args:
      x: `[B..., S..., C]` as in :func:`max_pool`; complex inputs are welcome.
      weights: real, at least 0, broadcastable to `x`. An element of weight 0 does not
        count, unless it is NaN or infinite: hide those with `where`.
      window_shape, strides, padding, window_dilation, ceil_mode, axis, where: the
        window, as in :func:`max_pool`. What a mask hides has the weight 0.

    Returns:
      values: `[B..., O..., C]`; floats in the dtype of `x` (half precision adds up in
        float32), integers as floats.
      pooled weights: with as many axes, of size 1 along each axis along which `weights`
        and `where` are, unless it is pooled; floats in the dtype of `weights`.

    Raises:
      ValueError, TypeError: as in :func:`max_pool`, and for weights that are complex or
        do not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x, weights = jnp.array([1.0, 5.0, 7.0, 9.0]), jnp.array([3.0, 1.0, 0.0, 0.0])
      >>> jp.weighted_avg_pool(x, weights, 2, strides=2, axis=0)
      (Array([2., 0.], dtype=float32), Array([2., 0.], dtype=float32))
    """
    caller = "weighted_avg_pool"
    spec = (window_shape, strides, padding, window_dilation, ceil_mode, axis)
    x, geometry, where = laid(caller, x, where, spec)
    dtype = mean_dtype(x.dtype)
    x = hide(x.astype(accumulation_dtype(dtype)), where)
    weight, weight_dtype = _as_weights(caller, weights, x, geometry)
    weight = hide(weight, where)
    total = window_sum(weight, geometry)
    sums = window_sum(x * weight.astype(x.dtype), geometry)
    # The inner `where` keeps 0 / 0 out of the gradient.
    some = total != 0
    y = jnp.where(some, sums / jnp.where(some, total, 1).astype(x.dtype), 0)
    pooled = divide(total, jnp.asarray(geometry.taps, total.dtype))
    return y.astype(dtype), pooled.astype(weight_dtype)


@pool_op(
    "masked",
    "other",
    inputs=("x", "weights"),
    outputs=2,
    monotone=True,
    example=Example(
        [(2, 4, 4, 16), (2, 4, 4, 1)],
        {"x": "jnp.ones((2, 8, 8, 16))", "weights": "jnp.ones((2, 8, 8, 1))"},
    ),
)
def weighted_max_pool(
    x: ArrayLike,
    weights: ArrayLike,
    window_shape: Ints | None,
    strides: Ints | None = None,
    padding: Padding = "VALID",
    *,
    window_dilation: Ints = 1,
    ceil_mode: bool = False,
    axis: Ints | None = None,
    where: ArrayLike | None = None,
) -> tuple[jax.Array, jax.Array]:
    r"""The largest weighted element of each window, and its largest weight.

    .. math:: y_o = \max_{i \in W(o),\, w_i > 0} w_i x_i, \qquad
        v_o = \max_{i \in W(o),\, w_i > 0} w_i

    Elements of weight 0 take no part; a window without any other gives 0 for both.
    Gradient: to the first maximal :math:`w_i x_i`, and to its weight. Arguments, shapes
    and errors as in :func:`weighted_avg_pool`; `x` must be real.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x, weights = jnp.array([1.0, 5.0, 7.0, 9.0]), jnp.array([3.0, 1.0, 0.0, 0.0])
      >>> jp.weighted_max_pool(x, weights, 2, strides=2, axis=0)
      (Array([5., 0.], dtype=float32), Array([3., 0.], dtype=float32))
    """
    caller = "weighted_max_pool"
    spec = (window_shape, strides, padding, window_dilation, ceil_mode, axis)
    x, geometry, where = laid(caller, x, where, spec, ordered=True)
    dtype = mean_dtype(x.dtype)
    x = x.astype(accumulation_dtype(dtype))
    weight, weight_dtype = _as_weights(caller, weights, x, geometry)
    counts = ~(weight <= 0)  # NaN counts
    counts = counts if where is None else counts & where
    some = window_extremum(counts, geometry, True)
    product = hide(x, counts) * weight.astype(x.dtype)
    y = hide(window_extremum(product, geometry, True, counts), some)
    weight, _ = jnp.broadcast_arrays(weight, counts)
    pooled = hide(window_extremum(weight, geometry, True, counts), some)
    return y.astype(dtype), pooled.astype(weight_dtype)


def _masked(
    caller: str,
    y: jax.Array,
    x: jax.Array,
    geometry: Geometry,
    where: jax.Array | None,
    rule: str,
) -> tuple[jax.Array, jax.Array]:
    """The values where the pooled mask is True, else 0, and that mask."""
    if not is_name(rule, ("any", "all")):
        raise fail(caller, "rule", "must be 'any' or 'all'", rule)
    given = where
    if where is None:
        sizes = [1] * x.ndim
        for a in geometry.axes:
            sizes[a.axis] = a.size
        where = jnp.ones(sizes, jnp.bool_)
    mask = window_extremum(where, geometry, True)
    if rule == "all":  # of no elements, all are True
        mask &= window_extremum(where, geometry, False)
    y = hide(y, mask)
    return y, jnp.broadcast_to(mask, y.shape) if given is None else mask


def _as_weights(
    caller: str, weights: ArrayLike, x: jax.Array, geometry: Geometry
) -> tuple[jax.Array, jax.typing.DTypeLike]:
    """The weights over the pooled axes, as wide as real `x` or wider; their dtype."""
    weights = as_array(caller, weights, "weights", ordered=True)
    dtype = mean_dtype(weights.dtype)
    weights = weights.astype(np.promote_types(x.real.dtype, accumulation_dtype(dtype)))
    return over(caller, "weights", weights, x, geometry.pooled), dtype
