r"""Adaptive pooling: the output's size is given, and the windows follow from it.

Output :math:`o` of :math:`O` along an axis of size :math:`L` pools the bin

.. math:: \{i : \lfloor o L / O \rfloor \le i < \lceil (o + 1) L / O \rceil\}

in exact integers (PyTorch's rule). Bins have one or two sizes, overlap where O does not
divide L, and repeat elements where O > L.
"""

from collections.abc import Sequence

import jax
from jax.typing import ArrayLike

from jaxpool._core.arguments import as_array, countable, output_axes
from jaxpool._core.engine import window_choice, window_extremum
from jaxpool._core.geometry import Geometry, adaptive_axis
from jaxpool._core.numerics import mean_dtype
from jaxpool._core.op import pool_op
from jaxpool._core.window import Ints
from jaxpool._ops.average import masked_mean

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
    x = as_array("adaptive_avg_pool", x)
    geometry = _bins("adaptive_avg_pool", x, output_shape, axis)
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
    """
    x = as_array("adaptive_max_pool", x, ordered=True)
    return window_extremum(x, _bins("adaptive_max_pool", x, output_shape, axis), True)


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
    caller = "adaptive_max_pool_with_argmax"
    x = as_array(caller, x, ordered=True)
    geometry = _bins(caller, x, output_shape, axis)
    countable(caller, geometry.sizes)
    return window_choice(x, geometry, True)


def _bins(
    caller: str, x: jax.Array, output_shape: OutputShape, axis: Ints | None
) -> Geometry:
    axes, sizes = output_axes(caller, output_shape, axis, x.ndim, x.shape)
    pairs = zip(axes, sizes, strict=True)
    return Geometry(tuple(adaptive_axis(a, x.shape[a], size) for a, size in pairs))
