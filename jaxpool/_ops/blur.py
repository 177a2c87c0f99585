r"""Blurs: a binomial filter before the stride, against aliasing.

The filter of size m has the weights :math:`w_k = \binom{m - 1}{k} / 2^{m - 1}` along
each axis. Libraries differ in where they lay it and in what they take to lie behind the
border:

  ==================  =====================  ==================  =============
  library             `convention=`          `mode=`             filter size
  ==================  =====================  ==================  =============
  antialiased-cnns    `"antialiased"`        `"reflect"`         4
  timm                `"timm"`               `"reflect"`         3
  kornia              `"antialiased"`        `"constant"`        as given
  ==================  =====================  ==================  =============

Half precision is filtered in float32 and rounded once.

References:
  Richard Zhang: Making Convolutional Networks Shift-Invariant Again, 2019.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxpool._core.arguments import as_array, check_whole, laid
from jaxpool._core.engine import window_extremum
from jaxpool._core.geometry import Geometry, static_size
from jaxpool._core.numerics import accumulation_dtype, mean_dtype
from jaxpool._core.op import Example, pool_op
from jaxpool._core.window import (
    Ints,
    Padding,
    Window,
    as_int,
    as_ints,
    as_number,
    fail,
    is_name,
    is_sequence,
    resolve_axes,
)

__all__ = ["blur_pool", "edge_aware_blur_pool", "max_blur_pool"]

Convention = Literal["antialiased", "timm"]
Mode = Literal["reflect", "edge", "wrap", "constant"]

# (low, high) padding for a filter of size m and a stride s.
_PADDING = {
    "antialiased": lambda m, s: ((m - 1) // 2, m // 2),
    "timm": lambda m, s: ((m + s - 2) // 2,) * 2,
}
# How much smaller than the axis the padding has to be.
_MODES = {"reflect": 1, "wrap": 0, "edge": None, "constant": None}


@pool_op("blur", "other", linear=True, monotone=True)
def blur_pool(
    x: ArrayLike,
    strides: Ints,
    *,
    filter_size: Ints = 3,
    convention: Convention = "antialiased",
    mode: Mode = "reflect",
    axis: Ints | None = None,
) -> jax.Array:
    r"""Every s-th element of the input, blurred.

    .. math:: y_o = \sum_{k=0}^{m-1} w_k\, x_{o s - p + k}, \qquad
        w_k = \binom{m - 1}{k} 2^{1 - m}

    along each pooled axis, with filter size :math:`m`, stride :math:`s` and low padding
    :math:`p`. Linear; gradient: each element gets :math:`w_k` of that of every output
    that reads it, also by way of the border.

    Args:
      x: `[B..., S..., C]` with any leading axes, spatial axes and channels, of any
        dtype.
      strides: step between outputs for each spatial axis; an int needs `axis=`.
      filter_size: size of the filter: an int, or one for each pooled axis. 1 takes
        every s-th element as it is.
      convention: how far the input is padded. `"antialiased"` (antialiased-cnns and
        kornia) pads :math:`\lfloor (m-1)/2 \rfloor` in front and
        :math:`\lceil (m-1)/2 \rceil` behind, which gives :math:`\lceil L/s \rceil`
        outputs; `"timm"` pads :math:`\lfloor (m-1+s-1)/2 \rfloor` on both sides. They
        differ for even filters, and for strides above 2.
      mode: what is padded with, named as by `jnp.pad`: `"reflect"`, `"edge"`
        (replicate), `"wrap"` (circular) or `"constant"` (zeros).
      axis: the pooled axes, by default those before a trailing channel axis.

    Returns:
      `[B..., O..., C]`; floats in the dtype of `x`, integers as floats.

    Raises:
      ValueError, TypeError: for arguments that break these rules, and for axes that are
        too short to be reflected (no larger than the padding) or wrapped.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.array([0.0, 0.0, 8.0, 0.0, 0.0])[:, None]
      >>> jp.blur_pool(x, (1,))[:, 0], jp.blur_pool(x, (2,))[:, 0]
      (Array([0., 2., 4., 2., 0.], dtype=float32), Array([0., 4., 0.], dtype=float32))
    """
    x = as_array("blur_pool", x)
    axes, steps = _for_axes("blur_pool", x, "strides", strides, axis)
    return _blur("blur_pool", x, axes, steps, filter_size, convention, mode)


@pool_op("blur", "other", monotone=True)
def max_blur_pool(
    x: ArrayLike,
    window_shape: Ints,
    strides: Ints,
    padding: Padding = "VALID",
    *,
    filter_size: Ints = 3,
    convention: Convention = "antialiased",
    mode: Mode = "reflect",
    axis: Ints | None = None,
) -> jax.Array:
    r"""The largest element of windows one apart, blurred before every s-th is taken.

    .. math:: y = \operatorname{blur}_s(z), \qquad z_i = \max_{j \in W(i)} x_j

    where the windows :math:`W(i)` move by 1. Gradient: that of :func:`blur_pool`, then
    that of :func:`max_pool`. Rounding up (kornia's `ceil_mode`) would change nothing.

    Args:
      x: `[B..., S..., C]`, real.
      window_shape, padding: the windows of the maximum, as in :func:`max_pool`.
      strides, filter_size, convention, mode, axis: the blur, as in :func:`blur_pool`.

    Returns:
      `[B..., O..., C]`; floats in the dtype of `x`, integers as floats.

    Raises:
      ValueError, TypeError: as in :func:`max_pool` and :func:`blur_pool`.

    Example:
      A peak moves by one, and the result changes less than that of a maximum alone:

      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.array([[0, 8, 0, 0, 0, 0, 0.0], [0, 0, 8, 0, 0, 0, 0]])[..., None]
      >>> jp.max_pool(x, (2,), (2,))[..., 0]
      Array([[8., 0., 0.],
             [0., 8., 0.]], dtype=float32)
      >>> jp.max_blur_pool(x, (2,), (2,))[..., 0]
      Array([[8., 2., 0.],
             [4., 6., 0.]], dtype=float32)
    """
    caller = "max_blur_pool"
    spec = (window_shape, None, padding, 1, False, axis)
    x, geometry, _ = laid(caller, x, None, spec, ordered=True)
    axes = geometry.pooled if axis is None else resolve_axes(caller, axis, x.ndim)
    steps = as_ints(caller, "strides", strides, len(axes), 1)
    largest = window_extremum(x, geometry, True)
    return _blur(caller, largest, axes, steps, filter_size, convention, mode)


@pool_op(
    "blur", "other", compare={"filter_size": (3, 3)}, example=Example((2, 8, 8, 16))
)
def edge_aware_blur_pool(
    x: ArrayLike,
    filter_size: Ints,
    *,
    edge_threshold: float = 1.25,
    edge_dilation_kernel_size: int = 3,
    eps: float = 1e-6,
    axis: Ints | None = None,
) -> jax.Array:
    r"""The input, blurred where there is no edge; its size stays (kornia's filter).

    .. math:: y_i = \begin{cases} x_i & i \in E \\ \operatorname{blur}_1(x)_i
        & \text{otherwise} \end{cases}

    A position is an edge where, along some pooled axis :math:`a` with step
    :math:`e_a`, the mean over channels
    :math:`|\tfrac{1}{C} \sum_c \log_2 (x_{i + 2 e_a, c} + \epsilon)
    - \log_2 (x_{i - 2 e_a, c} + \epsilon)| > \log_2 t`; :math:`E` holds these and what
    lies within the same square of d x d. Borders are reflected. Where
    :math:`x + \epsilon` is not positive in some channel, nothing is an edge.

    Gradient: that of the branch taken; which one that is has none.

    Args:
      x: `[B..., S..., C]`, real, meant to be positive; all spatial axes of size 3 or
        more.
      filter_size: size of the blur's filter for each spatial axis; an int needs
        `axis=`.
      edge_threshold: the ratio :math:`t`, greater than 1.
      edge_dilation_kernel_size: :math:`d`, odd.
      eps: :math:`\epsilon`, in units of `x`.
      axis: the pooled axes, by default those before a trailing channel axis. Channels
        are the last axis that is not among them.

    Returns:
      An array of the shape of `x`; floats in its dtype, integers as floats.

    Raises:
      ValueError, TypeError: for arguments that break these rules.

    Example:
      The step stays, which a blur alone would smear:

      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.array([4.0, 4.0, 4.0, 4.0, 64.0, 64.0, 64.0, 64.0])[:, None]
      >>> jp.edge_aware_blur_pool(x, (3,))[2:6, 0]
      Array([ 4.,  4., 64., 64.], dtype=float32)
      >>> jp.blur_pool(x, (1,))[2:6, 0]
      Array([ 4., 19., 49., 64.], dtype=float32)
    """
    caller = "edge_aware_blur_pool"
    x = as_array(caller, x, ordered=True)
    axes, sizes = _for_axes(caller, x, "filter_size", filter_size, axis)
    spread = as_int(caller, "edge_dilation_kernel_size", edge_dilation_kernel_size, 1)
    if spread % 2 == 0:
        rule = "must be odd"
        raise fail(caller, "edge_dilation_kernel_size", rule, spread)
    rule = "must be greater than 1"
    threshold = as_number(
        caller, "edge_threshold", edge_threshold, rule, lambda n: n > 1
    )
    eps = as_number(caller, "eps", eps, "must be a number")
    x = x.astype(mean_dtype(x.dtype))
    once = (1,) * len(axes)
    blurred = _blur(caller, x, axes, once, sizes, "antialiased", "reflect")
    edges = _edges(caller, lax.stop_gradient(x), axes, math.log2(threshold), eps)
    near = Window.of(caller, spread, padding="SAME", axis=axes)
    edges = window_extremum(edges, Geometry.of(near, edges.shape), True)
    return jnp.where(edges, x, blurred)


def _edges(caller, x, axes, threshold, eps) -> jax.Array:
    """Whether each position is an edge; the axis of channels has size 1."""
    channel = max(set(range(-x.ndim, 0)) - set(axes))
    shifted = x.astype(accumulation_dtype(x.dtype)) + eps
    positive = shifted > 0
    # The difference of means is the mean difference: one channel from here on.
    brightness = jnp.log2(jnp.where(positive, shifted, 1))
    brightness = jnp.mean(brightness, channel, keepdims=True)
    positive = jnp.all(positive, channel, keepdims=True)
    edges = jnp.zeros_like(positive)
    for a in axes:
        ends, known = (
            pad_border(caller, y, a, (2, 2), "reflect") for y in (brightness, positive)
        )
        size = x.shape[a]

        def at(y, start, a=a, size=size):
            return lax.slice_in_dim(y, start, start + size, axis=y.ndim + a)

        contrast = jnp.abs(at(ends, 4) - at(ends, 0))
        edges |= (contrast > threshold) & at(known, 4) & at(known, 0)
    return edges


def _for_axes(
    caller: str, x: jax.Array, argument: str, value: Any, axis: Ints | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the pooled axes, negative, and the int that `value` has for each."""
    if axis is None:
        if not is_sequence(value):
            rule = "must be a sequence with one int for each pooled axis, unless"
            raise fail(caller, argument, f"{rule} `axis=` is given", value)
        count = len(value)
        if not 0 < count < x.ndim:
            rule = f"must have between 1 and {x.ndim - 1} entries to fit the array"
            raise fail(caller, argument, rule, value)
        axis = tuple(range(-1 - count, -1))
    axes = resolve_axes(caller, axis, x.ndim)
    check_whole(caller, x, axes)
    return axes, as_ints(caller, argument, value, len(axes), 1)


def _blur(
    caller: str,
    x: jax.Array,
    axes: Sequence[int],
    strides: Sequence[int],
    filter_size: Ints,
    convention: str,
    mode: str,
) -> jax.Array:
    """`x`, blurred along `axes`, floats in its dtype."""
    for name, value, table in (
        ("convention", convention, _PADDING),
        ("mode", mode, _MODES),
    ):
        if not is_name(value, table):
            raise fail(caller, name, f"must be one of {', '.join(table)}", value)
    sizes = as_ints(caller, "filter_size", filter_size, len(axes), 1)
    dtype = mean_dtype(x.dtype)
    y = x.astype(accumulation_dtype(dtype))
    for a, m, s in zip(axes, sizes, strides, strict=True):
        # As for windows: nothing must be computed again for each tap of a pass.
        y = lax.optimization_barrier(y)
        widths = _PADDING[convention](m, s)
        padded = _room(caller, y, a, widths, mode) + sum(widths)
        if padded < m:
            rule = f"leaves nothing along axis {a} of padded size {padded}"
            raise fail(caller, "filter_size", rule, filter_size)
        y = _blur_along(y, y.ndim + a, m, s, widths, mode)
    return y.astype(dtype)


def _room(
    caller: str, x: jax.Array, axis: int, widths: tuple[int, int], mode: str
) -> int:
    """The size of the axis, if it can be padded."""
    size, spare = static_size(caller, x.shape[axis]), _MODES[mode]
    least = 1 if spare is None else max(widths) + spare
    if size < max(least, 1):
        rule = f"must have at least {max(least, 1)} elements along axis {axis}"
        raise fail(caller, "x", f"{rule} for padding {widths} ({mode})", x.shape)
    return size


def pad_border(
    caller: str, x: jax.Array, axis: int, widths: tuple[int, int], mode: str
) -> jax.Array:
    """`x` with elements put before and behind an axis that is long enough for them."""
    _room(caller, x, axis, widths, mode)
    pads = [(0, 0)] * x.ndim
    pads[axis] = widths
    return jnp.pad(x, pads, mode=mode)


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4, 5))
def _blur_along(x, axis, size, stride, widths, mode):
    """The blur along an axis, apart for windows that reach over a border.

    Those read few rows, so that none need to be put in front of the whole input.
    """
    n, (low, high) = x.shape[axis], widths
    places = None if mode == "constant" else np.pad(range(n), widths, mode).tolist()

    def border(rows):
        if places is None:
            return [jnp.zeros_like(lax.slice_in_dim(x, 0, 1, axis=axis))] * len(rows)
        at = [places[low + row] for row in rows]
        return [lax.slice_in_dim(x, i, i + 1, axis=axis) for i in at]

    def blurred(first, end):
        """Outputs from the first to the end, of rows counted from where x begins."""
        begin, stop = first * stride - low, (end - 1) * stride - low + size
        rows = border(range(begin, min(stop, 0)))
        inside = max(begin, 0), min(stop, n)
        if inside[0] < inside[1]:
            rows.append(lax.slice_in_dim(x, *inside, axis=axis))
        rows += border(range(max(begin, n), stop))
        return _filter(lax.concatenate(rows, axis), axis, size, stride)

    outputs = (low + n + high - size) // stride + 1
    first = min(-(-low // stride), outputs)  # these begin in front of the input
    last = max((low + n - size) // stride + 1, first)  # from here on they end behind it
    cuts = itertools.pairwise((0, first, last, outputs))
    parts = [blurred(a, b) for a, b in cuts if a < b]
    return lax.concatenate(parts, axis)


def _filter(x, axis, size, stride):
    """Every `stride`-th of the weighted sums of `size` neighbours; there are some."""
    weights = [math.comb(size - 1, k) / 2 ** (size - 1) for k in range(size)]
    last = x.shape[axis] - size + 1
    terms = [
        lax.slice_in_dim(x, k, k + last, stride, axis) * np.asarray(weight, x.dtype)
        for k, weight in enumerate(weights)
    ]
    return functools.reduce(lax.add, terms)
