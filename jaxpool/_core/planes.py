"""Windows as runtimes that are not XLA have them: 2-D, of four axes, without dilation.

A window of one axis is one of two, and a maximum or a mean over three is one over two
and then one over the third. Channels are last, or in front of the two where no axis
follows them.
"""

import math
from collections.abc import Iterator
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from jaxpool._core.geometry import Axis, Geometry

__all__ = ["cut", "fit", "pairs", "same"]


def fit(x: jax.Array, geometry: Geometry) -> bool:
    """Whether windows are made of such ones."""
    return (
        jnp.issubdtype(x.dtype, jnp.floating)
        and not geometry.binned
        and all(1 in (a.dilation, a.window) for a in geometry.axes)
    )


def pairs(geometry: Geometry) -> Iterator[tuple[Axis, ...]]:
    """The pooled axes, two at a time where they are adjacent, the last first."""
    axes = list(geometry.clipped.axes)
    while axes:
        pair = (axes.pop(),)
        if axes and axes[-1].axis == pair[0].axis - 1:
            pair = (axes.pop(), *pair)
        yield pair


def cut(
    x: jax.Array, pair: tuple[Axis, ...]
) -> tuple[jax.Array, Geometry, tuple[int, ...]]:
    """`x` with four axes, windows over two of them, and the shape of the result."""
    first, last = pair[0].axis + x.ndim, pair[-1].axis + x.ndim + 1
    before, after = x.shape[:first], x.shape[last:]
    plane = x.shape[first:last] + (1,) * (2 - len(pair))
    if after:
        shape, place = (math.prod(before), *plane, math.prod(after)), -3
    else:
        shape, place = (math.prod(before[:-1]), *(before[-1:] or (1,)), *plane), -2
    axes = tuple(replace(a, axis=place + i) for i, a in enumerate(pair))
    return x.reshape(shape), Geometry(axes), (*before, *(a.out for a in pair), *after)


def same(geometry: Geometry, counts: np.ndarray) -> bool:
    """Whether padding is that of "SAME", and `counts` leave it out."""
    for a in geometry.axes:
        total = max((a.out - 1) * a.stride + a.window - a.size, 0)
        if (a.low, a.high) != (total // 2, total - total // 2):
            return False
    inside = geometry.counts(counts.ndim, False)
    return bool(inside.min() < inside.max()) and np.array_equal(inside, counts)
