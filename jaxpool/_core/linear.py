"""The linear pair behind every derivative: `read` and `place`, each other's transpose.

They are primitives because nothing else lets both directions be written by hand: the
tangent of a choice reads one element for each window, its transpose gathers for each
element the windows that chose it, and neither is what JAX derives from the other. All
orders and modes follow, since the derivative of a linear map is the map.

Rules are registered with `jax.extend` and `jax.interpreters`, as other libraries of
primitives do. Batch axes go in front, where a geometry does not look.
"""

import functools

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxpool._core import taps
from jaxpool._core.geometry import Geometry

__all__ = ["place", "read"]


def read(x: jax.Array, stage: Geometry, code: jax.Array | None = None) -> jax.Array:
    """`taps.read`, linear in `x` with the transpose `place`."""
    return _read_p.bind(x, *_given(code), stage=stage)


def place(y: jax.Array, stage: Geometry, code: jax.Array | None = None) -> jax.Array:
    """`taps.place`, linear in `y` with the transpose `read`."""
    return _place_p.bind(y, *_given(code), stage=stage)


def _given(code):
    return () if code is None else (code,)


def _primitive(name, compute, shape_of):
    """The primitive of `compute(x, stage, code)`; its transpose is set below."""
    primitive = Primitive(name)

    def implementation(x, *code, stage):
        return compute(x, stage, *code)

    def abstract(x, *code, stage):
        return x.update(shape=shape_of(x.shape, stage), weak_type=False)

    def jvp(primals, tangents, *, stage):
        (x, *code), tangent = primals, tangents[0]
        bind = functools.partial(primitive.bind, stage=stage)
        return bind(x, *code), bind(tangent, *code)

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
        return primitive.bind(*front, stage=stage), 0

    jitted = jax.jit(implementation, static_argnames="stage")
    primitive.def_impl(jitted)
    primitive.def_abstract_eval(abstract)
    ad.primitive_jvps[primitive] = jvp
    batching.primitive_batchers[primitive] = batch
    mlir.register_lowering(
        primitive, mlir.lower_fun(implementation, multiple_results=False)
    )
    return primitive


def _transpose_with(other):
    def transpose(cotangent, x, *code, stage):
        if type(cotangent) is ad.Zero:
            result = ad.Zero(x.aval)
        else:
            result = other.bind(cotangent, *code, stage=stage)
        return [result, *[None] * len(code)]

    return transpose


def _out_shape(shape, stage):
    return stage.out_shape(shape)


def _in_shape(shape, stage):
    sizes = list(shape)
    for a in stage.axes:
        sizes[a.axis] = a.size
    return tuple(sizes)


_read_p = _primitive("pool_read", taps.read, _out_shape)
_place_p = _primitive("pool_place", taps.place, _in_shape)
ad.primitive_transposes[_read_p] = _transpose_with(_place_p)
ad.primitive_transposes[_place_p] = _transpose_with(_read_p)
