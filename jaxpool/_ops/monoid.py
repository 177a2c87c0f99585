"""Any monoid: Flax's `pool`, with derivatives."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jax.typing import ArrayLike

from jaxpool._core.arguments import as_array, laid
from jaxpool._core.engine import identity, window_extremum, window_fold
from jaxpool._core.op import Example, pool_op
from jaxpool._core.window import Ints, Padding, fail
from jaxpool._ops.average import masked_sum

__all__ = ["pool"]


@pool_op(
    "monoid",
    "window",
    example=Example(arguments="1.0, jnp.multiply, (2, 2), strides=(2, 2)"),
)
def pool(
    x: ArrayLike,
    init: ArrayLike,
    reduce_fn: Callable[[jax.Array, jax.Array], jax.Array],
    window_shape: Ints | None,
    strides: Ints | None = None,
    padding: Padding = "VALID",
    *,
    window_dilation: Ints = 1,
    ceil_mode: bool = False,
    axis: Ints | None = None,
) -> jax.Array:
    r"""Each window folded with any associative function; strides default to 1.

    .. math:: y_o = e \oplus x_{i_1} \oplus \dots \oplus x_{i_K}, \quad i_j \in W(o)

    in row-major order. Gradient: that of `reduce_fn` itself, in every mode and order;
    for a maximum, minimum or sum with its identity, that of :func:`max_pool`,
    :func:`min_pool`, :func:`sum_pool`.

    Args:
      x: `[B..., S..., C]` as in :func:`max_pool`.
      init: a scalar :math:`e`, with which padding is filled too: an identity of
        `reduce_fn`, if windows and padding are not to add anything of their own.
      reduce_fn: an associative function of two arrays, element by element.
      window_shape, strides, padding, window_dilation, ceil_mode, axis: the window, as
        in :func:`max_pool`.

    Returns:
      `[B..., O..., C]` in the dtype of `x`.

    Raises:
      ValueError, TypeError: as in :func:`max_pool`, and if `init` is not a scalar.

    Example:
      Products, with their derivatives:

      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.arange(1.0, 5.0)[:, None]
      >>> jp.pool(x, 1.0, jax.lax.mul, (2,), (2,), "VALID")[:, 0]
      Array([ 2., 12.], dtype=float32)
    """
    spec = (window_shape, strides, padding, window_dilation, ceil_mode, axis)
    x, geometry, _ = laid("pool", x, None, spec, reduction=True)
    if shape := as_array("pool", init, "init").shape:
        raise fail("pool", "init", "must be a scalar", shape)
    if not callable(reduce_fn):
        rule = "must be a function of two arrays"
        raise fail("pool", "reduce_fn", rule, reduce_fn, TypeError)
    if not isinstance(init, Tracer):
        if reduce_fn in (lax.max, jnp.maximum) and init == identity(x.dtype, True):
            return window_extremum(x, geometry, True)
        if reduce_fn in (lax.min, jnp.minimum) and init == identity(x.dtype, False):
            return window_extremum(x, geometry, False)
        if reduce_fn in (lax.add, jnp.add) and init == 0:
            return masked_sum(x, geometry, None).astype(x.dtype)
    return window_fold(x, init, reduce_fn, geometry)
