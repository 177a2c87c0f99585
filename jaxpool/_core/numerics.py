"""Dtypes to accumulate in, and arithmetic that stays exact where it looks easy."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxpool._core.plain import plain
from jaxpool._core.primitives import bind, linear_primitive

__all__ = [
    "accumulation_dtype",
    "at_least",
    "divide",
    "finite_or_zero",
    "hide",
    "mean_dtype",
    "power_of_two_near",
    "power_of_two_scale",
    "safe_power",
    "sum_dtype",
]


def accumulation_dtype(dtype: Any) -> Any:
    """The dtype to add in: float32 for half precision, else `dtype` itself."""
    narrow = jnp.issubdtype(dtype, jnp.floating) and np.dtype(dtype).itemsize < 4
    return np.dtype(np.float32) if narrow else np.dtype(dtype)


def sum_dtype(dtype: Any) -> Any:
    """The dtype of a sum: floats keep theirs, integers widen as `jnp.sum` does."""
    return jax.eval_shape(jnp.sum, jax.ShapeDtypeStruct((), dtype)).dtype


def mean_dtype(dtype: Any) -> Any:
    """The dtype of a mean: floats keep theirs, integers become floats."""
    return jax.eval_shape(jnp.mean, jax.ShapeDtypeStruct((), dtype)).dtype


def divide(total: jax.Array, count: ArrayLike) -> jax.Array:
    """Returns `total / count`, correctly rounded; only `total` has a derivative.

    XLA turns division by a constant, or by anything broadcast, into multiplication by
    its rounded inverse, and the mean of seven 3s into 3.0000002. That is exact for
    powers of two alone.
    """
    if not isinstance(count, jax.Array):
        if np.all(np.frexp(count)[0] == 0.5):
            return total * (1 / np.asarray(count)).astype(total.dtype)
    count = lax.stop_gradient(jnp.asarray(count).astype(total.dtype))
    if plain():
        return total / count
    total = jnp.broadcast_to(total, jnp.broadcast_shapes(total.shape, count.shape))
    count = lax.expand_dims(count, range(total.ndim - count.ndim))
    return bind(_divide_p, None, total, count)


def _divide(total, _, count):
    # XLA cannot see that both branches are the same, and the choice costs no memory.
    return total / jnp.where(total != 0, count, lax.optimization_barrier(count))


def _divide_jvp(primals, tangents, bind, _):
    return bind(*primals), tangents[0] / primals[1]


_divide_p = linear_primitive(
    "pool_divide", _divide, lambda shape, _: shape, _divide_jvp
)


def at_least(x: jax.Array, bound: float) -> jax.Array:
    """max(x, bound), with derivative 1 on both sides: what is learned can return."""
    return jnp.where(x < bound, bound + (x - lax.stop_gradient(x)), x)


def finite_or_zero(x: jax.Array) -> jax.Array:
    """`x` where it is finite: inf - inf would be NaN."""
    return jnp.where(jnp.isfinite(x), x, 0)


def hide(
    x: jax.Array, where: jax.Array | None, value: ArrayLike | None = None
) -> jax.Array:
    """Returns `x` with `value` (0) where the mask is False.

    What a mask hides must go before a formula sees it: the derivative of the formula
    at a hidden NaN or infinity, times 0, is NaN.
    """
    if where is None:
        return x
    return jnp.where(where, x, jnp.zeros((), x.dtype) if value is None else value)


def power_of_two_near(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A power of two near x >= 0, and its inverse; both 1 where x is no number.

    In whole numbers: XLA would keep the quotient that division makes in an array.
    """
    if plain():
        return jnp.ones_like(x), jnp.ones_like(x)
    info = jnp.finfo(x.dtype)
    integer = np.dtype(f"int{info.bits}")
    place = np.asarray(1 << info.nmant, integer)
    one = np.asarray(1 - info.minexp, integer)  # the exponent that stands for 0
    exponent = lax.bitcast_convert_type(x, integer) >> np.asarray(info.nmant, integer)
    number = exponent <= 2 * one
    exponent = lax.clamp(one // one, exponent, 2 * one - 1)
    exponent = jnp.where(number, exponent, one)
    numbers = [e * place for e in (exponent, 2 * one - exponent)]
    scale, inverse = (lax.bitcast_convert_type(n, x.dtype) for n in numbers)
    return scale, inverse


def power_of_two_scale(
    x: jax.Array, axes: Sequence[int], p: ArrayLike = 1
) -> jax.Array:
    """A power of two to divide x >= 0 by, so that sums of x**p stay representable.

    It is 1 unless the largest finite x along `axes` (kept, as size 1) is so far from 1
    that its power, or a derivative's, would come near overflow or vanish. Multiplying
    back changes no bit of a result. It carries no gradient.
    """
    if plain():
        return jnp.ones([1] * x.ndim, x.dtype)
    x, p = lax.stop_gradient(x), lax.stop_gradient(p)
    finite = jnp.where(jnp.isfinite(x), x, 0)
    largest = jnp.max(finite, axis=tuple(axes), keepdims=True, initial=0)
    _, exponent = jnp.frexp(largest)
    limit = 0.4 * float(jnp.finfo(x.dtype).maxexp) / jnp.maximum(p, 1)
    limit = jnp.floor(limit).astype(exponent.dtype)
    excess = exponent - jnp.clip(exponent, -limit, limit)
    return jnp.where(largest > 0, jnp.ldexp(jnp.ones((), x.dtype), excess), 1)


def safe_power(x: jax.Array, p: ArrayLike) -> jax.Array:
    """x**p for x >= 0, with value and gradient 0 at 0.

    The inner `where` matters: without it the power's infinite derivative at 0 meets the
    outer one's zero, and 0 * inf is NaN.
    """
    positive = x > 0
    power = jnp.where(positive, x, 1) ** jnp.asarray(p).astype(x.dtype)
    # `x * 0` rather than 0: NaN stays NaN.
    return jnp.where(positive, power, lax.stop_gradient(x * 0))
