"""The linear pairs behind every derivative: each other's transposes.

`read` adds up windows, or reads one element of each that a code names, and `place` is
its transpose; `read_weighted` and `place_weighted` do so with weights that a softmax
over the window gives.

They are primitives because nothing else lets both directions be written by hand: the
tangent of a choice reads one element for each window, its transpose gathers for each
element the windows that chose it, and neither is what JAX derives from the other. All
orders and modes follow, since the derivative of a linear map is the map.
"""

import functools

import jax
from jax.interpreters import ad

from jaxpool._core import places, taps
from jaxpool._core.geometry import Geometry
from jaxpool._core.primitives import bind, linear_primitive

__all__ = ["place", "place_weighted", "read", "read_weighted"]


def read(x: jax.Array, stage: Geometry, code: jax.Array | None = None) -> jax.Array:
    """`taps.read`, linear in `x` with the transpose `place`."""
    return bind(_read_p, stage, x, *_given(code))


def place(y: jax.Array, stage: Geometry, code: jax.Array | None = None) -> jax.Array:
    """`places.place`, linear in `y` with the transpose `read`."""
    return bind(_place_p, stage, y, *_given(code))


def read_weighted(x: jax.Array, stage: Geometry, *weights: jax.Array) -> jax.Array:
    """`taps.read_weighted`, linear in `x` with the transpose `place_weighted`."""
    return bind(_read_weighted_p, stage, x, *weights)


def place_weighted(y: jax.Array, stage: Geometry, *weights: jax.Array) -> jax.Array:
    """`places.place_weighted`, linear in `y` with the transpose `read_weighted`."""
    return bind(_place_weighted_p, stage, y, *weights)


def _given(code):
    return () if code is None else (code,)


def _transpose_with(other):
    def transpose(cotangent, x, *others, stage):
        if type(cotangent) is ad.Zero:
            result = ad.Zero(x.aval)
        else:
            result = bind(other, stage, cotangent, *others)
        return [result, *[None] * len(others)]

    return transpose


def _out_shape(shape, stage):
    return stage.out_shape(shape)


def _in_shape(shape, stage):
    sizes = list(shape)
    for a in stage.axes:
        sizes[a.axis] = a.size
    return tuple(sizes)


def _dot(*pairs):
    """The sum of tangents, each times a factor if it has one; None for no tangent."""
    terms = [
        tangent if factor is None else tangent * factor
        for tangent, factor in pairs
        if type(tangent) is not ad.Zero
    ]
    return functools.reduce(jax.lax.add, terms) if terms else None


def _weighted_jvp(swapped):
    """The derivative of W x, or of its transpose, in all operands.

    The weights are w = exp(g - m - t) (a + c), with g and a an element's, m, t and c a
    window's, and a + c = 1 where they are not given. What is the operand's own (of
    x, an element's) goes inside, the others, constant in the sum, outside:

      d(W x) = W (dx + x dg) - (W x) dt + E (x da) + (E x) dc,  E = exp(g - m - t)

    m has none: what t is, is relative to it.
    """

    def derivative(primals, tangents, bind, stage):
        del stage
        x, g, m, t, *affine = primals
        dx, dg, _, dt, *daffine = tangents
        y = bind(x, g, m, t, *affine)
        own, other = (dg, x), (dt, -y)
        if swapped:
            own, other = (dt, -x), (dg, y)
        parts = [_dot(other)]
        inner = _dot((dx, None), own)
        if inner is not None:
            parts.append(bind(inner, g, m, t, *affine))
        if affine:
            own, other = daffine[::-1] if swapped else daffine
            inner = _dot((own, x))
            if inner is not None:
                parts.append(bind(inner, g, m, t))
            if type(other) is not ad.Zero:
                parts.append(other * bind(x, g, m, t))
        parts = [part for part in parts if part is not None]
        return y, functools.reduce(jax.lax.add, parts)

    return derivative


_read_p = linear_primitive("pool_read", taps.read, _out_shape)
_place_p = linear_primitive("pool_place", places.place, _in_shape)
ad.primitive_transposes[_read_p] = _transpose_with(_place_p)
ad.primitive_transposes[_place_p] = _transpose_with(_read_p)

_read_weighted_p = linear_primitive(
    "pool_read_weighted", taps.read_weighted, _out_shape, _weighted_jvp(False)
)
_place_weighted_p = linear_primitive(
    "pool_place_weighted", places.place_weighted, _in_shape, _weighted_jvp(True)
)
ad.primitive_transposes[_read_weighted_p] = _transpose_with(_place_weighted_p)
ad.primitive_transposes[_place_weighted_p] = _transpose_with(_read_weighted_p)
