"""Arrays that meet agree in how they lie on devices, where JAX's types say how.

Within `jax.shard_map` a type says over which mesh axes an array varies, and on a mesh
of explicit axes how it is split. `lax` makes its operands agree; a primitive has to do
so itself. That is no formality: the transpose of letting an array vary is a sum over
devices, which its gradient would lack.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

__all__ = ["split_alike", "vary_alike", "vary_as_tangent"]


def vary_alike(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Returns the arrays, each varying over all mesh axes that any varies over."""
    varying = [_varying(x) for x in arrays]
    every = frozenset().union(*varying)
    pairs = zip(arrays, varying, strict=True)
    return tuple(_vary(x, tuple(every - own)) for x, own in pairs)


def vary_as_tangent(x: jax.Array) -> jax.Array:
    """Returns `x`, varying over the same mesh axes as its tangent.

    `jax.jvp` takes one that varies over fewer or more, and some rules, JAX's own among
    them, do not.
    """
    mapped = jax.sharding.get_abstract_mesh().manual_axes
    return _agreeing(x) if mapped and jnp.issubdtype(x.dtype, jnp.inexact) else x


@jax.custom_jvp
def _agreeing(x):
    return x


@_agreeing.defjvp
def _agreeing_jvp(primals, tangents):
    x, tangent = vary_alike(*primals, *tangents)
    return x, tangent


def split_alike(values: jax.Array, shape: Sequence[Any], x: jax.Array) -> jax.Array:
    """Returns `values`; of this shape and sharded as `x`, where that is explicit.

    JAX wants arrays that meet to be sharded alike there, and broadcasts none to that.
    """
    spec = jax.typeof(x).sharding.spec
    if all(part is None for part in spec):
        return values
    return jax.sharding.reshard(jnp.broadcast_to(values, shape), spec)


def _varying(x: jax.Array) -> frozenset[Any]:
    of: Any = jax.typeof(x)
    # What JAX 0.7 calls `vma`.
    return of.manual_axis_type.varying if hasattr(of, "manual_axis_type") else of.vma


def _vary(x: jax.Array, axes: tuple[Any, ...]) -> jax.Array:
    if not axes:
        return x
    if not hasattr(lax, "pcast"):  # JAX 0.7
        return getattr(lax, "pvary")(x, axes)  # noqa: B009
    return lax.pcast(x, axes, to="varying")
