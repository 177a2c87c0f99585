"""Order statistics: an element of each window by its rank, not by its value.

References:
  John Tukey: Exploratory Data Analysis, 1977 (running medians).
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxpool._core.arguments import laid
from jaxpool._core.engine import (
    MOST_MATCHED,
    identity,
    window_match,
    window_pad,
    window_sort,
)
from jaxpool._core.geometry import static_size
from jaxpool._core.numerics import accumulation_dtype, mean_dtype
from jaxpool._core.op import pool_op
from jaxpool._core.stages import large_and_whole
from jaxpool._core.window import Ints, Padding, fail
from jaxpool._ops.average import element_count

__all__ = ["median_pool"]


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
      >>> import jax.numpy as jnp
      >>> x = jnp.array([3.0, 1.0, 100.0, 2.0])[:, None]
      >>> median_pool(x, (3,))[:, 0]
      Array([3., 2.], dtype=float32)
    """
    caller = "median_pool"
    if interpolation not in ("lower", "midpoint"):
        rule = "must be 'lower' or 'midpoint'"
        raise fail(caller, "interpolation", rule, interpolation)
    spec = (window_shape, strides, padding, window_dilation, ceil_mode, axis)
    x, geometry, where = laid(caller, x, where, spec, ordered=True)
    for a in geometry.axes:
        static_size(caller, a.size)
    if geometry.taps > MOST_MATCHED and not large_and_whole(geometry):
        rule = f"must have at most {MOST_MATCHED} elements, or be the whole extent"
        raise fail(caller, "window_shape", rule, window_shape)
    dtype = x.dtype if interpolation == "lower" else mean_dtype(x.dtype)
    wide = x.astype(accumulation_dtype(dtype))
    count = element_count(np.int32, x.ndim, geometry, where, False)
    last = identity(wide.dtype, False)  # what the ranks below never reach
    wide, geometry, where = window_pad(wide, geometry, where, last)
    ordered = window_sort(wide, geometry)
    y = window_match(wide, _ranked(ordered, (count - 1) // 2), geometry, where)
    if interpolation == "midpoint":
        upper = window_match(wide, _ranked(ordered, count // 2), geometry, where)
        y = y / 2 + upper / 2
    if where is not None:
        y = jnp.where(count > 0, y, jnp.zeros((), y.dtype))
    return y.astype(dtype)


def _ranked(ordered: Any, rank: Any) -> jax.Array:
    """The element of each window whose rank, counted from 0, is given for each."""
    if isinstance(rank, np.ndarray) and rank.min() == rank.max() >= 0:
        return ordered[int(rank.min())]
    rank = jnp.maximum(jnp.asarray(rank, jnp.int32), 0)
    y = ordered[0]
    if isinstance(ordered, list):
        for k, element in enumerate(ordered):
            y = jnp.where(rank == k, element, y)
        return y
    rank = jnp.where(y == y, rank, 0)[None]  # laid out on devices as the elements
    return jnp.take_along_axis(ordered, rank, 0, mode="promise_in_bounds")[0]
