"""Elements named by a flat index: reading them, and writing them back.

A flat index counts elements in row-major order over some axes alone, so that those of a
plane are the same in every batch and channel; -1 names none. `take` and `put` are each
other's transpose.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from jaxpool._core.numerics import accumulation_dtype

__all__ = ["last_claims", "put", "take"]


def take(
    x: jax.Array, index: jax.Array, axes: Sequence[int], unique: bool = False
) -> jax.Array:
    """Reads one element of `x` for each entry of `index`: y_o = x[index_o].

    Linear in `x`, with the transpose `put`. `index` is flat over `axes` (negative,
    ascending) and as large as `x` along all others; an index of -1 reads 0. Where none
    stands twice in a plane they are `unique`: the transpose then adds in no order that
    threads could change.
    """
    flat, axis = _merge(x, axes)
    positions, _ = _merge(index, axes)
    along = (flat.ndim + axis,)
    others = tuple(d for d in range(flat.ndim) if d not in along)
    y = lax.gather(
        flat,
        # -1 must not reach the gather, whose indices are promised to be in bounds.
        jnp.maximum(positions, 0)[..., None],
        lax.GatherDimensionNumbers((), along, along, others, others),
        # Of nothing, jax 0.7 reads no more than nothing.
        slice_sizes=tuple(int(d in along or n != 0) for d, n in enumerate(flat.shape)),
        unique_indices=unique or positions.shape[axis] == 1,
        mode="promise_in_bounds",
    )
    y = jnp.where(positions >= 0, y, jnp.zeros((), y.dtype))
    return _split(y, axes, [index.shape[a] for a in axes])


def put(
    y: jax.Array, index: jax.Array, axes: Sequence[int], sizes: Sequence[int]
) -> jax.Array:
    """Adds each element of `y` up where `index` says: x_i = sum_{o: index_o = i} y_o.

    The transpose of `take`; `sizes` are those of the result along `axes`. An index of
    -1 adds nothing.
    """

    def in_plane(y, index):
        zeros = jnp.zeros(math.prod(sizes), accumulation_dtype(y.dtype))
        target = _within(index, sizes)
        return zeros.at[target].add(y.astype(zeros.dtype), mode="drop").astype(y.dtype)

    flat, axis = _merge(y, axes)
    positions, _ = _merge(index, axes)
    planes = jnp.vectorize(in_plane, signature="(n),(n)->(m)")
    x = planes(jnp.moveaxis(flat, axis, -1), jnp.moveaxis(positions, axis, -1))
    return _split(jnp.moveaxis(x, -1, axis), axes, sizes)


def last_claims(
    index: jax.Array, axes: Sequence[int], sizes: Sequence[int]
) -> jax.Array:
    """Whether each entry of `index` is the last, in row-major order, with its value.

    False for an index of -1; `sizes` bound the indices, as in `put`.
    """

    def in_plane(index):
        order = jnp.arange(index.size, dtype=jnp.int32)
        target = _within(index, sizes)
        last = jnp.full(math.prod(sizes), -1, jnp.int32)
        last = last.at[target].max(order, mode="drop")
        return (index >= 0) & (last.at[target].get(mode="clip") == order)

    flat, axis = _merge(index, axes)
    planes = jnp.vectorize(in_plane, signature="(n)->(n)")
    last = jnp.moveaxis(planes(jnp.moveaxis(flat, axis, -1)), -1, axis)
    return _split(last, axes, [index.shape[a] for a in axes])


def _within(index: jax.Array, sizes: Sequence[int]) -> jax.Array:
    """Moves -1, which scatter counts from the end, to where scatter drops it."""
    return jnp.where(index >= 0, index, math.prod(sizes))


def _merge(x: jax.Array, axes: Sequence[int]) -> tuple[jax.Array, int]:
    """Makes one of the pooled axes; returns the array and that (negative) axis."""
    if tuple(axes) != tuple(range(axes[0], axes[0] + len(axes))):
        x = jnp.moveaxis(x, axes, range(-len(axes), 0))
        axes = range(-len(axes), 0)
    begin, end = x.ndim + axes[0], x.ndim + axes[-1] + 1
    size = math.prod(x.shape[begin:end])
    return x.reshape(*x.shape[:begin], size, *x.shape[end:]), axes[-1]


def _split(y: jax.Array, axes: Sequence[int], sizes: Sequence[int]) -> jax.Array:
    """Undoes `_merge`, with new sizes of the pooled axes."""
    moved = tuple(axes) != tuple(range(axes[0], axes[0] + len(axes)))
    merged = y.ndim - 1 if moved else y.ndim + axes[-1]
    y = y.reshape(*y.shape[:merged], *sizes, *y.shape[merged + 1 :])
    return jnp.moveaxis(y, range(-len(axes), 0), axes) if moved else y
