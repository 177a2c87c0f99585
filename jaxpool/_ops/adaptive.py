r"""Adaptive pooling: the output's size is given, and the windows follow from it.

Output :math:`o` of :math:`O` along an axis of size :math:`L` pools the bin

.. math:: \{i : \lfloor o L / O \rfloor \le i < \lceil (o + 1) L / O \rceil\}

in exact integers (PyTorch's rule). Bins have one or two sizes, overlap where O does not
divide L, and repeat elements where O > L.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxpool._core.arguments import as_array, output_axes
from jaxpool._core.engine import (
    identity,
    take,
    window_choice,
    window_sum,
)
from jaxpool._core.geometry import Geometry, adaptive_axis, adaptive_bounds
from jaxpool._core.numerics import accumulation_dtype, divide, mean_dtype
from jaxpool._core.op import pool_op
from jaxpool._core.taps import flat_positions
from jaxpool._core.window import Ints

__all__ = ["adaptive_avg_pool", "adaptive_max_pool", "adaptive_max_pool_with_argmax"]

OutputShape = int | None | Sequence[int | None]


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
      >>> import jax.numpy as jnp
      >>> adaptive_avg_pool(jnp.arange(7.0)[:, None], (3,))[:, 0]
      Array([1., 3., 5.], dtype=float32)
    """
    caller = "adaptive_avg_pool"
    x = as_array(caller, x)
    dtype = mean_dtype(x.dtype)
    x = x.astype(accumulation_dtype(dtype))
    axes, sizes = output_axes(caller, output_shape, axis, x.ndim, x.shape)
    count = np.ones((1,) * x.ndim)
    for a, size in zip(axes, sizes, strict=True):
        regular = adaptive_axis(a, x.shape[a], size)
        if regular:
            x = window_sum(x, Geometry((regular,)))
            count = count * regular.window
        else:
            binned, inside = _bins(x, a, size)
            x = jnp.sum(jnp.where(inside, binned, 0), a, dtype=x.dtype)
            count = count * inside.sum(a)
    return divide(x, count).astype(dtype)


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
    """
    return _adaptive_max("adaptive_max_pool", x, output_shape, axis)[0]


@pool_op("adaptive", "adaptive", outputs=2)
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
    """
    return _adaptive_max("adaptive_max_pool_with_argmax", x, output_shape, axis)


def _adaptive_max(
    caller: str,
    x: ArrayLike,
    output_shape: OutputShape,
    axis: Ints | None,
) -> tuple[jax.Array, jax.Array]:
    x = as_array(caller, x, ordered=True)
    axes, sizes = output_axes(caller, output_shape, axis, x.ndim, x.shape)
    regular = [
        adaptive_axis(a, x.shape[a], size) for a, size in zip(axes, sizes, strict=True)
    ]
    if None not in regular:
        geometry = Geometry(tuple(a for a in regular if a))
        return window_choice(x, geometry, True)
    index = flat_positions(x.shape, axes)
    best = lax.stop_gradient(x)
    # The last axis first, so that the first of equals in row-major order stays first.
    for a, size in zip(reversed(axes), reversed(sizes), strict=True):
        binned, inside = _bins(best, a, size)
        # Behind the bin's own elements, what fills it up never wins a tie.
        binned = jnp.where(inside, binned, identity(x.dtype, True))
        winner = jnp.expand_dims(lax.argmax(binned, binned.ndim + a, np.int32), a)
        best = jnp.take_along_axis(binned, winner, a).squeeze(a)
        index = jnp.take_along_axis(_bins(index, a, size)[0], winner, a).squeeze(a)
    wide = x.astype(accumulation_dtype(x.dtype))
    return take(wide, index, axes).astype(x.dtype), index


def _bins(x: jax.Array, axis: int, out: int) -> tuple[jax.Array, np.ndarray]:
    """Lays out the bins along one (negative) axis: `[..., out, K, ...]` in its place.

    Returns that, with `K` the largest bin's size, and which of these elements belong to
    their bin, with 1 for all other axes.
    """
    size, before = x.shape[axis], x.ndim + axis
    start, end = adaptive_bounds(size, out)
    positions = start[:, None] + np.arange((end - start).max())
    inside = positions < end[:, None]
    if size % out == 0:
        shape = x.shape[:before] + positions.shape + x.shape[before + 1 :]
        binned = x.reshape(shape)
    else:
        binned = jnp.take(x, np.minimum(positions, size - 1), before, mode="clip")
    return binned, inside.reshape(inside.shape + (1,) * (x.ndim - before - 1))
