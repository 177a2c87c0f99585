"""Primitives that no node is, as functions of those that some are."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxpool.deploy.agreement import DeployError
from jaxpool.deploy.onnx_graph import Graph, Rule, Value, astype, is_constant
from jaxpool.deploy.onnx_program import rewritten, traced

__all__ = ["RULES"]


def _log1p(x: Any, **unused: Any) -> Any:
    # What 1 + x loses of x, the quotient gives back.
    u = 1 + x
    off = (u == 1) | jnp.isinf(u)
    exact = jnp.log(u) * (x / jnp.where(off, 1, u - 1))
    return jnp.where(off, x, exact)


def _expm1(x: Any, **unused: Any) -> Any:
    u = jnp.exp(x)
    log = jnp.log(u)
    off = (log == 0) | jnp.isinf(log)
    exact = (u - 1) * (x / jnp.where(off, 1, log))
    return jnp.where(u == 1, x, jnp.where(off, u - 1, exact))


def _atan2(y: Any, x: Any) -> Any:
    turn = jnp.where(y < 0, -np.pi, np.pi).astype(x.dtype)
    angle = jnp.arctan(y / jnp.where(x == 0, 1, x))
    angle = jnp.where(x < 0, angle + turn, angle)
    return jnp.where(x == 0, jnp.where(y == 0, 0, turn / 2), angle)


def _reduce_precision(x: Any, exponent_bits: int, mantissa_bits: int) -> Any:
    kinds = {(5, 10): jnp.float16, (8, 7): jnp.bfloat16, (8, 23): jnp.float32}
    kind = kinds.get((exponent_bits, mantissa_bits))
    if kind is None:
        rule = "`reduce_precision` must be to that of a dtype"
        raise DeployError(f"`to_onnx`: {rule}; got {exponent_bits, mantissa_bits}.")
    return lax.convert_element_type(lax.convert_element_type(x, kind), x.dtype)


def _cumulative(op: Callable[..., Any]) -> Rule:
    return rewritten(
        lambda x, axis, reverse: lax.associative_scan(op, x, reverse=reverse, axis=axis)
    )


def _shift(g: Graph, eqn: Any, x: Value, n: Value) -> Value:
    """By powers of two: to the right it rounds down, as it does with bits."""
    name = eqn.primitive.name
    if not is_constant(n):
        raise DeployError(f"`to_onnx`: `{name}` must be by a constant.")
    power = np.int64(1) << np.asarray(n.data, np.int64)

    def shifted(y):
        y = y.astype(jnp.int64)
        if name == "shift_left":
            return y * power
        if name == "shift_right_logical":
            y = jnp.where(y < 0, y + 2 ** (8 * x.dtype.itemsize), y)
        by = jnp.broadcast_to(power, y.shape)
        rest = lax.rem(y, by)
        return lax.div(y - jnp.where(rest < 0, rest + by, rest), by)

    return astype(g, traced(g, shifted, x)[0], x.dtype)


def _bits(x: Any, new_dtype: Any) -> Any:
    """The bits of float32 as integers, and back: by arithmetic, in float64."""
    kinds = (np.dtype(x.dtype), np.dtype(new_dtype))
    place, whole = 2.0**23, 2.0**32
    if kinds[0] == np.float32 and kinds[1] in (np.int32, np.uint32):
        size = jnp.abs(x.astype(jnp.float64))
        normal = jnp.isfinite(size) & (size > 0)
        size = jnp.where(normal, size, 1)
        e = jnp.floor(jnp.log(size) / np.log(2.0))
        e = jnp.where(2.0**e > size, e - 1, e)  # the quotient may be off by a bit
        e = jnp.maximum(jnp.where(2.0 ** (e + 1) <= size, e + 1, e), -126.0)
        bits = (e + 126) * place + size * 2.0 ** (23 - e)
        special = jnp.where(x == 0, 0.0, jnp.where(x == x, 255.0, 255.5)) * place
        bits = jnp.where(normal, bits, special)
        negative = (x < 0) | ((x == 0) & (1 / x < 0))
        sign = whole / 2 if kinds[1] == np.uint32 else -whole / 2
        return jnp.where(negative, bits + sign, bits).astype(new_dtype)
    if kinds[0] in (np.int32, np.uint32) and kinds[1] == np.float32:
        n = x.astype(jnp.float64)
        n = n if kinds[0] == np.int32 else jnp.where(n < whole / 2, n, n - whole)
        negative = n < 0
        bits = jnp.where(negative, n + whole / 2, n)
        e = jnp.floor(bits / place)
        m = bits - e * place
        y = jnp.where(e == 0, m * 2.0**-149, (m + place) * 2.0 ** (e - 150))
        y = jnp.where(e == 255, jnp.where(m == 0, jnp.inf, jnp.nan), y)
        return jnp.where(negative, -y, y).astype(jnp.float32)
    rule = "bits must be those of float32 as integers of 32 bits, or back"
    raise DeployError(f"`to_onnx`: {rule}; got {kinds[0]} as {kinds[1]}.")


RULES = {
    "atan2": rewritten(_atan2),
    "bitcast_convert_type": rewritten(_bits),
    "cbrt": rewritten(lambda x, **unused: jnp.sign(x) * jnp.abs(x) ** (1 / 3)),
    "cumlogsumexp": _cumulative(jnp.logaddexp),
    "cummax": _cumulative(lax.max),
    "cummin": _cumulative(lax.min),
    "cumprod": _cumulative(lax.mul),
    "exp2": rewritten(lambda x, **unused: jnp.exp(x * np.log(2).astype(x.dtype))),
    "expm1": rewritten(_expm1),
    "log1p": rewritten(_log1p),
    "reduce_precision": rewritten(_reduce_precision),
    "shift_left": Rule(_shift),
    "shift_right_arithmetic": Rule(_shift),
    "shift_right_logical": Rule(_shift),
    "square": rewritten(lambda x: x * x),
}
