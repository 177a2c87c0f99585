"""Pooling at random: what is drawn is an element, a rule, or the places of windows.

Drawn anew in each training step, all of it regularises; evaluation takes the
expectation, or averages several draws (`mean_over_keys`).

References:
  Matthew Zeiler, Rob Fergus: Stochastic Pooling for Regularization of Deep
  Convolutional Neural Networks, 2013.
  Dingjun Yu, Hanli Wang, Peiqiu Chen, Zhihua Wei: Mixed Pooling for Convolutional
  Neural Networks, 2014.
  Shuangfei Zhai, Hui Wu, Abhishek Kumar, Yu Cheng, Yongxi Lu, Zhongfei Zhang, Rogerio
  Feris: S3Pool: Pooling with Stochastic Spatial Sampling, 2017.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxpool._core.arguments import as_key, countable, laid
from jaxpool._core.draws import uniform, window_expectation, window_sample
from jaxpool._core.engine import window_extremum
from jaxpool._core.geometry import Geometry, static_size
from jaxpool._core.numerics import (
    accumulation_dtype,
    divide,
    hide,
    mean_dtype,
)
from jaxpool._core.op import pool_op
from jaxpool._core.order import MOST_MATCHED
from jaxpool._core.sharding import split_alike, vary_alike
from jaxpool._core.window import (
    Ints,
    Padding,
    Window,
    as_flag,
    as_int,
    as_ints,
    fail,
    is_name,
)
from jaxpool._ops.average import highest_and_mean, masked_mean

__all__ = ["mean_over_keys", "random_mixed_pool", "s3_pool", "stochastic_pool"]


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
      ValueError, TypeError: as in :func:`max_pool`, without a key to draw with, and
        for draws from planes of 2**31 elements by windows of more than 254.

    Example:
      The two positive elements are drawn, the larger one more often:

      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.array([0.0, 1.0, 3.0, -2.0])[:, None]
      >>> keys = [jax.random.key(seed) for seed in range(20)]
      >>> draws = [jp.stochastic_pool(x, (4,), key=key).item() for key in keys]
      >>> sorted(set(draws))
      [1.0, 3.0]
      >>> jp.stochastic_pool(x, (4,), key=keys[7]).item() == draws[7]
      True
      >>> jp.stochastic_pool(x, (4,), deterministic=True).item()
      2.5
    """
    caller = "stochastic_pool"
    spec = (window_shape, strides, padding, window_dilation, ceil_mode, axis)
    x, geometry, where = laid(caller, x, where, spec, ordered=True)
    dtype = mean_dtype(x.dtype)
    x = hide(x.astype(dtype), where)
    if as_flag(caller, "deterministic", deterministic):
        return window_expectation(x, geometry)
    if geometry.taps > MOST_MATCHED:
        countable(caller, geometry.sizes)
    return window_sample(x, geometry, as_key(caller, key))


@pool_op("stochastic", "window", takes_key=True)
def random_mixed_pool(
    x: ArrayLike,
    window_shape: Ints | None,
    strides: Ints | None = None,
    padding: Padding = "VALID",
    *,
    per: Literal["layer", "channel", "map", "region"] = "channel",
    key: Any = None,
    deterministic: bool = False,
    window_dilation: Ints = 1,
    ceil_mode: bool = False,
    axis: Ints | None = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""Maximum or mean of each window, as a coin falls; strides default to 1.

    .. math:: y_o = \lambda \max_{i \in W(o)} x_i
        + (1 - \lambda) \frac{1}{n_o} \sum_{i \in W(o)} x_i, \qquad
        \lambda \sim \operatorname{Bernoulli}(1/2) \quad \text{(training)}, \qquad
        \lambda = 1/2 \quad \text{(deterministic)}

    where :math:`n_o` counts the window's elements (padding not). The second is the
    expectation of the first; the paper takes instead, for each map, the rule that was
    drawn more often in training. Gradient: that of the rule drawn, or half of each.

    Args:
      x: `[B..., S..., C]` as in :func:`max_pool`.
      window_shape, strides, padding, window_dilation, ceil_mode, axis, where: the
        window, as in :func:`max_pool`.
      per: what has a coin of its own: "layer" (one coin for all of `x`), "channel"
        (the last axis that is not pooled; the same for all samples), "map" (a channel
        of a sample) or "region" (each element of the result).
      key: a PRNG key, typed or raw; the same key draws the same rules.
      deterministic: whether to return the expectation, which needs no key.

    Returns:
      `[B..., O..., C]`; floats in the dtype of `x`, integers as floats. A window
      without elements gives 0.

    Raises:
      ValueError, TypeError: as in :func:`max_pool`, and without a key to draw with.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.array([0.0, 4.0])[:, None]
      >>> keys = [jax.random.key(seed) for seed in range(20)]
      >>> draws = [jp.random_mixed_pool(x, (2,), key=key).item() for key in keys]
      >>> sorted(set(draws))
      [2.0, 4.0]
      >>> jp.random_mixed_pool(x, (2,), key=keys[7]).item() == draws[7]
      True
      >>> jp.random_mixed_pool(x, (2,), deterministic=True).item()
      3.0
    """
    caller = "random_mixed_pool"
    spec = (window_shape, strides, padding, window_dilation, ceil_mode, axis)
    x, geometry, where = laid(caller, x, where, spec, ordered=True)
    others = [a for a in range(-x.ndim, 0) if a not in geometry.pooled]
    own = {
        "layer": [],
        "channel": others[-1:],
        "map": others,
        "region": range(-x.ndim, 0),
    }
    if not is_name(per, own):
        raise fail(caller, "per", f"must be one of {', '.join(own)}", per)
    highest, mean = highest_and_mean(x, geometry, where)
    if as_flag(caller, "deterministic", deterministic):
        y = (highest + mean) / 2
    else:
        shape = [highest.shape[a] if a in own[per] else 1 for a in range(-x.ndim, 0)]
        # Few numbers are drawn apart: fused, each element would draw its own again.
        draw = uniform if per == "region" else jax.random.uniform
        heads = draw(as_key(caller, key), shape, jnp.float32) < 0.5
        y = jnp.where(split_alike(heads, mean.shape, mean), highest, mean)
    return y.astype(mean_dtype(x.dtype))


@pool_op("stochastic", "other", takes_key=True, camel="S3Pool")
def s3_pool(
    x: ArrayLike,
    window_shape: Ints,
    strides: Ints | None = None,
    padding: Padding = "SAME",
    *,
    grid_shape: Ints | None = None,
    key: Any = None,
    deterministic: bool = False,
    shared: bool | Literal["channels"] = True,
    axis: Ints | None = None,
) -> jax.Array:
    r"""Maxima of neighbours, thinned out at random places (S3Pool); strides are 1.

    .. math:: h_i = \max_{j \in W(i)} x_j, \qquad
        y_o = h_{r_o} \quad \text{(training)}, \qquad
        y_o = \frac{1}{s} \sum_{t=0}^{s-1} h_{o s + t} \quad \text{(deterministic)}

    along each axis of h, the maxima with stride 1. In training, h is cut into strips of
    g rows, of which g / s, drawn without replacement, stay in their order; the last
    strip has the rest, and gives what is missing of the :math:`\lfloor n / s \rfloor`
    rows that come back. Columns alike. With g = s and a size n that s divides, the
    second form is the expectation of the first; with a larger g it is near it. (The
    authors' code takes g / s rows of the last strip too, so that less may come back,
    and has half a stride of padding, not counted, in evaluation.)

    Gradient: that of :func:`max_pool` at the places that stay, or its mean.

    Args:
      x: `[B..., S..., C]` as in :func:`max_pool`, real.
      window_shape, padding: the window of the maxima, as in :func:`max_pool`; "SAME"
        keeps the size, as in the paper.
      strides: s, how many times smaller the result is, for each pooled axis.
      grid_shape: g, a multiple of s for each pooled axis, by default s itself, with
        which places move least; with the size of the axis, they move most.
      key: a PRNG key, typed or raw; the same key draws the same places.
      deterministic: whether to average instead, which needs no key.
      shared: what has the same places: True for everything, `"channels"` for the
        channels of a sample, the last axis that is not pooled, or False for nothing:
        every plane has its own.
      axis: the pooled axes, by default those before a trailing channel axis.

    Returns:
      `[B..., O..., C]`; floats in the dtype of `x`, integers as floats.

    Raises:
      ValueError, TypeError: for arguments that break these rules, or without a key to
        draw with.

    Example:
      Of the maxima 1, 2, 3, 3 one of each pair is drawn, or their mean taken:

      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.arange(4.0)[:, None]
      >>> y = jp.s3_pool(x, (2,), (2,), key=jax.random.key(0))[:, 0].tolist()
      >>> y in ([1.0, 3.0], [2.0, 3.0])
      True
      >>> jp.s3_pool(x, (2,), (2,), deterministic=True)[:, 0]
      Array([1.5, 3. ], dtype=float32)
    """
    caller = "s3_pool"
    spec = (window_shape, None, padding, 1, False, axis)
    x, geometry, _ = laid(caller, x, None, spec, ordered=True)
    given = Window.of(caller, window_shape, strides, axis=axis)
    axes, steps = given.resolve(x.ndim), given.strides
    grids = steps if grid_shape is None else grid_shape
    grids = as_ints(caller, "grid_shape", grids, len(axes), 1)
    if any(g % s for g, s in zip(grids, steps, strict=True)):
        rule = f"must be a multiple of the strides {steps}"
        raise fail(caller, "grid_shape", rule, grid_shape)
    if not (isinstance(shared, bool) or is_name(shared, ("channels",))):
        raise fail(caller, "shared", "must be True, False or 'channels'", shared)
    dtype = mean_dtype(x.dtype)
    x = window_extremum(x, geometry, True).astype(dtype)
    sizes = [static_size(caller, x.shape[a]) for a in axes]
    cells = Geometry.of(Window.of(caller, steps, steps, axis=axes), x.shape)
    if as_flag(caller, "deterministic", deterministic):
        return masked_mean(x, cells, None, False).astype(dtype)
    others = [a for a in range(-x.ndim, 0) if a not in axes]
    own = [] if shared is True else others if shared is False else others[:-1]
    shape = [x.shape[a] if a in own else 1 for a in range(-x.ndim, 0)]
    keys = jax.random.split(as_key(caller, key), len(axes))
    for each, a, n, s, g in zip(keys, axes, sizes, steps, grids, strict=True):
        index = _places(each, shape, n, s, g)
        index = jnp.squeeze(jnp.swapaxes(index, a - 1, -1), -1)
        x = jnp.take_along_axis(x, index, a, mode="promise_in_bounds")
    return x


def _places(
    key: jax.Array, shape: list[int], size: int, stride: int, grid: int
) -> jax.Array:
    """Ascending places `[*shape, size // stride]` along an axis cut into strips."""
    strips = max(size // grid, 1) - 1  # without the last
    split, taken = strips * grid, strips * (grid // stride)
    bits = jax.random.bits(key, (*shape, size), jnp.uint32)

    def pick(bits, count):
        # Not `argsort`, whose places do not vary over devices as the bits do.
        place = lax.broadcasted_iota(jnp.int32, bits.shape, bits.ndim - 1)
        order = lax.sort(vary_alike(bits, place), num_keys=1)[1]
        return jnp.sort(order[..., :count], -1)

    first = pick(bits[..., :split].reshape(*shape, strips, grid), grid // stride)
    first += jnp.arange(0, split, grid, jnp.int32).reshape(*[1] * len(shape), -1, 1)
    last = pick(bits[..., split:], size // stride - taken) + split
    return jnp.concatenate([first.reshape(*shape, taken), last], -1)


def mean_over_keys(f: Callable[[jax.Array], Any], key: Any, passes: int) -> Any:
    r"""The mean of a random function's results over several keys.

    .. math:: y = \frac{1}{n} \sum_{i=1}^n f(k_i), \qquad
        k_1, \dots, k_n = \operatorname{split}(k)

    How fractional max pooling is evaluated (Graham), and "Stochastic-N" of stochastic
    pooling (Zeiler and Fergus): a whole network, with dropout too, is run several times
    and its predictions averaged. One pass follows the other, so memory does not grow
    with their number; nor does that of the derivative, which runs each pass again.

    Args:
      f: a function of a key, which returns an array or a tree of arrays.
      key: a PRNG key, typed or raw.
      passes: n, how many keys to split it into, at least 1.

    Returns:
      What `f` returns; floats in their dtype (half precision adds up in float32),
      integers as floats.

    Raises:
      ValueError, TypeError: for fewer than 1 pass, no key, or an `f` that is no
        function.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.array([1.0, 3.0])[:, None]
      >>> def draw(key):
      ...     return jp.stochastic_pool(x, (2,), key=key)
      >>> jp.mean_over_keys(draw, jax.random.key(0), 4).item() in (1, 1.5, 2, 2.5, 3)
      True

    References:
      Benjamin Graham: Fractional Max-Pooling, 2014.
    """
    caller = "mean_over_keys"
    if not callable(f):
        raise fail(caller, "f", "must be a function of a key", f, TypeError)
    n = as_int(caller, "passes", passes, 1)
    keys = jax.random.split(as_key(caller, key), n)

    def wide(y):
        return jnp.asarray(y).astype(accumulation_dtype(mean_dtype(jnp.result_type(y))))

    @jax.checkpoint
    def add(total, key):
        return jax.tree.map(lambda t, y: t + wide(y), total, f(key)), None

    first = f(keys[0])
    total, _ = lax.scan(add, jax.tree.map(wide, first), keys[1:])
    return jax.tree.map(
        lambda t, y: divide(t, n).astype(mean_dtype(jnp.result_type(y))), total, first
    )
