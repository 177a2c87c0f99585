"""Primitives that are linear in their first operand.

Rules are registered with `jax.extend` and `jax.interpreters`, as other libraries of
primitives do. Batch axes go in front, where a geometry does not look.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.jet import jet_rules
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxpool._core.sharding import vary_alike

__all__ = ["bind", "linear_primitive"]


def _barrier_jet(primals, series):
    terms = [list(lax.optimization_barrier(term)) for term in zip(*series, strict=True)]
    return lax.optimization_barrier(primals), list(zip(*terms, strict=True))


# JAX has none, and a sum over many elements is several stages with barriers between.
jet_rules.setdefault(lax.optimization_barrier_p, _barrier_jet)


def bind(primitive: Primitive, stage: Any, *operands: jax.Array) -> Any:
    """The result of a primitive, for operands that may vary over other mesh axes."""
    return primitive.bind(*vary_alike(*operands), stage=stage)


def linear_primitive(
    name: str,
    compute: Callable[..., jax.Array],
    shape_of: Callable[[Sequence[Any], Any], Sequence[Any]],
    derivative: Callable[..., Any] | None = None,
) -> Primitive:
    """The primitive of `compute(x, stage, *others)`, linear in `x`.

    Args:
      name: that it has in a jaxpr.
      compute: its value; `stage` is hashable.
      shape_of: the result's shape, of that of `x` and `stage`. It has the dtype of `x`.
      derivative: `derivative(primals, tangents, bind, stage)`, where it is not the map
        itself: for derivatives in the others too.

    Returns:
      The primitive, which has no transpose yet.
    """
    primitive = Primitive(name)

    def implementation(x, *others, stage):
        return compute(x, stage, *others)

    def abstract(x, *others, stage):
        return x.update(shape=shape_of(x.shape, stage), weak_type=False)

    def jvp(primals, tangents, *, stage):
        here = functools.partial(bind, primitive, stage)
        if derivative is not None:
            return derivative(primals, tangents, here, stage)
        (x, *others), tangent = primals, tangents[0]
        return here(x, *others), here(tangent, *others)

    def jet(primals, series, *, stage):
        x, *others = primals
        here = functools.partial(bind, primitive, stage)
        return here(x, *others), [here(term, *others) for term in series[0]]

    def batch(operands, axes, *, stage):
        size = next(
            operand.shape[axis]
            for operand, axis in zip(operands, axes, strict=True)
            if axis is not None
        )
        front = [
            jnp.broadcast_to(operand, (size, *operand.shape))
            if axis is None
            else jnp.moveaxis(operand, axis, 0)
            for operand, axis in zip(operands, axes, strict=True)
        ]
        return bind(primitive, stage, *front), 0

    jitted = jax.jit(implementation, static_argnames="stage")
    primitive.def_impl(jitted)
    primitive.def_abstract_eval(abstract)
    ad.primitive_jvps[primitive] = jvp
    jet_rules[primitive] = jet
    batching.primitive_batchers[primitive] = batch
    mlir.register_lowering(
        primitive, mlir.lower_fun(implementation, multiple_results=False)
    )
    return primitive
