"""The elements of each window by rank, and their derivatives.

  window_sort         in ascending order
  window_descending   from large to small, differentiable
  window_ranked       the one of a given rank, which need not be the same for all
  window_match        the first element of each window that equals a given value

Few elements are sorted by a network of comparisons, which is one loop over the input.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxpool._core import taps
from jaxpool._core.engine import chosen, window_combine, window_stack, window_taps
from jaxpool._core.geometry import Geometry
from jaxpool._core.indices import take

__all__ = [
    "MOST_COMPARED",
    "MOST_MATCHED",
    "MOST_RANKED",
    "in_order",
    "window_descending",
    "window_match",
    "window_ranked",
    "window_sort",
]

# Up to this many elements of a window are sorted by comparing pairs of whole arrays,
# which XLA fuses: 100 times as fast as its own sort on a CPU, as the program grows.
MOST_COMPARED = 49
# Up to this many elements of a window have a code each.
MOST_MATCHED = int(taps.NONE) - 1
# Up to this many elements of a window are ranked, for derivatives, by comparing each
# with each; the number of elements to the square is what the program grows with.
MOST_RANKED = 16


def window_sort(x: jax.Array, geometry: Geometry) -> Sequence[jax.Array] | jax.Array:
    """The elements of each window in ascending order: `[taps]` of the output's shape.

    If one is NaN, all are. Windows must not hold padding (see `window_pad`). There is
    no derivative; `window_match` has it for one of them.
    """
    return _sorted(lax.stop_gradient(x), geometry)


@functools.partial(jax.jit, static_argnums=1)
def _sorted(x, geometry):
    if geometry.taps <= MOST_COMPARED:
        return in_order(window_taps(x, geometry))
    x = lax.sort(window_stack(x, geometry), dimension=0)  # NaN comes last
    return jnp.where(x[-1:] != x[-1:], x[-1:], x)


def in_order(parts: Sequence[jax.Array]) -> list[jax.Array]:
    """Arrays put in ascending order, element by element; NaN in one is NaN in all."""
    parts = list(parts)
    for i, j in _comparators(len(parts)):
        a, b = parts[i], parts[j]
        parts[i], parts[j] = lax.min(a, b), lax.max(a, b)
    return parts


def _comparators(count: int) -> Iterator[tuple[int, int]]:
    """The pairs that sort `count` values if each is put in order (Batcher, 1968)."""
    for p in (2**i for i in range((count - 1).bit_length())):
        for k in (p >> i for i in range(p.bit_length())):
            for i in range(k % p, count - k):
                within = (i - k % p) // k % 2 == 0
                if within and i // (2 * p) == (i + k) // (2 * p):
                    yield i, i + k


def window_match(
    x: jax.Array,
    y: jax.Array,
    geometry: Geometry,
    where: jax.Array | None = None,
    nothing: jax.Array | None = None,
) -> jax.Array:
    """Returns `y`, values of one element of each window, with that one's derivative.

    Of equal elements it is the first in row-major order, and the first NaN if `y` is
    NaN. Where it is `nothing`, `y` is no element. A window has at most `MOST_MATCHED`
    elements, or is the whole extent.
    """
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return y
    return _matched(x, y, where, nothing, geometry)


@functools.partial(jax.custom_jvp, nondiff_argnums=(4,))
def _matched(x, y, where, nothing, geometry):
    del x, where, nothing, geometry
    return y


@_matched.defjvp
def _matched_jvp(geometry, primals, tangents):
    x, y, where, nothing = primals
    code = _match_code(lax.stop_gradient(x), y, where, nothing, geometry)
    value = lambda x: chosen(x, y, (code,), geometry, "one stage")  # noqa: E731
    return jax.jvp(value, (x,), tangents[:1])


@functools.partial(jax.jit, static_argnums=4)
def _match_code(x, y, where, nothing, geometry):
    code = taps.choose(x, y, geometry, where)
    if nothing is not None:
        # NONE, or a place in front of the whole extent
        code = jnp.where(nothing, np.asarray(-1).astype(code.dtype), code)
    return taps.apart(code)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def window_descending(x: jax.Array, geometry: Geometry) -> Any:
    """The elements of each window, which holds no padding, from large to small.

    If one is NaN, all are. Derivatives follow the elements; of equal ones the first in
    row-major order comes first.
    """
    return window_sort(x, geometry)[::-1]


@window_descending.defjvp
def _descending_jvp(geometry, primals, tangents):
    (x,), (tangent,) = primals, tangents
    y = window_descending(x, geometry)
    x = lax.stop_gradient(x)
    if geometry.taps <= MOST_RANKED:
        ranks = _ranks(x, geometry)
        # Apart, so that the transpose computes each tap's gradient once, not again for
        # each element that it might belong to.
        parts = taps.apart(window_taps(tangent, geometry))
        pairs = list(zip(ranks, parts, strict=True))
        moved = [
            sum(jnp.where(rank == np.uint8(r), part, 0) for rank, part in pairs)
            for r in range(len(pairs))
        ]
        return y, moved
    x = window_stack(x, geometry)
    place = lax.broadcasted_iota(jnp.int32, x.shape, 0)
    place = jnp.where(x == x, place, place)  # laid out on devices as the elements
    order = lax.sort((-x, place), dimension=0, num_keys=1)[1]
    moved = take(window_stack(tangent, geometry), order, (-x.ndim,), unique=True)
    return y, list(moved) if isinstance(y, list) else moved


@functools.partial(jax.jit, static_argnums=1)
def _ranks(x: jax.Array, geometry: Geometry) -> list[jax.Array]:
    """The rank of each tap, uint8, from 0: how many elements come before it."""

    def before(j, k):
        a, b = parts[j], parts[k]
        return (a >= b if j < k else a > b).astype(x.dtype)

    x = taps.apart(x)  # padded once
    parts = window_taps(x, geometry)
    places = range(len(parts))
    none = (parts[0] < parts[0]).astype(x.dtype)  # 0, laid out on devices as the taps
    counts = [sum((before(j, k) for j in places if j != k), none) for k in places]
    return taps.apart([count.astype(np.uint8) for count in counts])


@functools.partial(jax.jit, static_argnums=(1, 2))
def window_ranked(
    x: jax.Array, geometry: Geometry, rank: int | tuple[float, ...], *place: jax.Array
) -> jax.Array:
    """The element of each window, which holds no padding, of a rank: 0 is the largest.

    Or, where `rank` is ascending bounds, of the rank that is the number of bounds, at
    most `place`, an array of the output's shape. There is no derivative; see
    `window_match`.
    """

    def pick(parts, *place):
        ordered = in_order(parts)[::-1]
        if isinstance(rank, int):
            return ordered[rank]
        y = ordered[0]
        for bound, element in zip(rank, ordered[1:], strict=False):
            y = jnp.where(place[0] >= bound, element, y)
        return y

    if geometry.taps <= MOST_COMPARED:
        return window_combine(pick, x, geometry, *place)
    ordered: Any = window_sort(x, geometry)[::-1]
    if isinstance(rank, int):
        return ordered[rank]
    bounds = np.asarray(rank, place[0].dtype).reshape(-1, *[1] * x.ndim)
    passed = jnp.sum(place[0][None] >= bounds, 0, dtype=np.int32)
    # Laid out on devices as the elements.
    passed = jnp.where(ordered[0] == ordered[0], passed, 0)[None]
    return jnp.take_along_axis(ordered, passed, 0, mode="promise_in_bounds")[0]
