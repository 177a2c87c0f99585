"""Boxes laid over feature maps: where their samples and bins fall, and reading those.

Rows and columns of a box do not know of each other: each is a `Samples` or a `Bins` of
one axis, and an element takes part if its row and its column do. What is read costs
memory in proportion to the output, whatever the boxes' sizes and the maps'.

Shapes: K boxes `[K, 4]` with h * w bins, over N images `[N, P, G, C]` whose P positions
are those of one or more feature maps, one after the other in row-major order, and
whose channels come in G groups: one for all bins, or one for each.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxpool._core.engine import identity
from jaxpool._core.numerics import divide
from jaxpool._core.plain import plain

__all__ = [
    "Bins",
    "Boxes",
    "Samples",
    "bin_sums",
    "bins",
    "interpolate",
    "lay",
    "maxima",
    "samples",
]


class Boxes(NamedTuple):
    """K boxes and, for each, the image and the feature map that it is laid over."""

    corners: jax.Array  # [K, 4]: x1, y1, x2, y2 in elements of the feature map
    image: jax.Array  # [K]: the index of the image
    known: jax.Array  # [K]: whether there is such an image
    first: jax.Array  # [K]: the position of the feature map's first element
    height: jax.Array  # [K]
    width: jax.Array  # [K]


class Samples(NamedTuple):
    """Elements and their weights, for each bin along one axis: all `[K, out, taps]`."""

    place: jax.Array
    weight: jax.Array
    inside: jax.Array


class Bins(NamedTuple):
    """The elements `start <= i < end` of each bin along one axis: both `[K, out]`."""

    start: jax.Array
    end: jax.Array


def lay(
    shapes: Sequence[tuple[Any, Any]],
    scales: Sequence[float],
    boxes: jax.Array,
    image: jax.Array,
    level: jax.Array,
    images: Any,
) -> Boxes:
    """Lays `boxes` over the feature maps, of which `level` `[K]` names theirs."""
    sizes = [h * w for h, w in shapes]
    firsts = [sum(sizes[:i]) for i in range(len(sizes))]

    def of_level(values):  # ints may be symbolic
        table = jnp.stack([jnp.asarray(v, jnp.int32) for v in values])
        return table[level]

    known = (image >= 0) & (image < images)
    return Boxes(
        boxes * jnp.asarray(scales, boxes.dtype)[level][:, None],
        jnp.where(known, image, 0),
        known,
        of_level(firsts),
        of_level([h for h, _ in shapes]),
        of_level([w for _, w in shapes]),
    )


def samples(
    start: jax.Array, extent: jax.Array, out: int, ratio: int, size: jax.Array
) -> Samples:
    """Where `ratio` evenly spaced points in each of `out` bins fall between elements.

    A point less than one element outside `[0, size - 1]` is moved to its edge; one
    that is farther out, or NaN, is not `inside`. The order of operations is that of
    the usual kernels, whose rounding decides on which side of an edge a point lies.
    """
    start, extent, size = (a[:, None, None] for a in (start, extent, size))
    steps = jnp.arange(out, dtype=start.dtype)[None, :, None]
    within = jnp.arange(ratio, dtype=start.dtype)[None, None, :] + 0.5
    step = divide(extent, out)
    point = start + steps * step + divide(within * step, ratio)
    last = (size - 1).astype(point.dtype)
    inside = (point >= -1) & (point <= last + 1)
    # The inner `where` keeps what is not finite out of the derivative and the index.
    point = jnp.clip(jnp.where(inside, point, 0), 0, last)
    low = jnp.floor(point)
    index = jnp.stack([low, jnp.minimum(low + 1, last)], -1).astype(jnp.int32)
    weight = jnp.stack([1 - (point - low), point - low], -1)
    inside = jnp.stack([inside, inside], -1)
    shape = (*point.shape[:2], 2 * ratio)
    return Samples(*(a.reshape(shape) for a in (index, weight, inside)))


def bins(
    low: jax.Array, extent: jax.Array, out: int, limit: jax.Array, known: jax.Array
) -> Bins:
    """The elements of `out` bins of `extent`, at least 1, from `low`, up to `limit`.

    Bin `o` is `[floor(o * extent / out), ceil((o + 1) * extent / out))`, computed in
    floating point as the usual kernels do. It is empty where a bound is NaN.
    """
    extent = jnp.maximum(extent, 1)
    low, extent, limit, known = (a[:, None] for a in (low, extent, limit, known))
    steps = jnp.arange(out, dtype=low.dtype)[None]
    size = divide(extent, out)
    limit = limit.astype(low.dtype)
    start = jnp.clip(jnp.floor(steps * size) + low, 0, limit)
    end = jnp.clip(jnp.ceil((steps + 1) * size) + low, 0, limit)
    sound = known & (start == start) & (end == end)
    start, end = (jnp.where(sound, a, 0).astype(jnp.int32) for a in (start, end))
    return Bins(start, jnp.maximum(start, end))


def interpolate(
    images: jax.Array, boxes: Boxes, rows: Samples, columns: Samples
) -> jax.Array:
    """The weighted sum of each bin's samples, `[K, h, w, C]`.

    One row of taps at a time, which keeps nothing of them; a derivative reads again.
    """
    width = boxes.width[:, None, None]

    def add_row(total, row):
        place, weight, inside = (a[:, :, None] for a in row)
        parts = []
        for j in range(columns.place.shape[-1]):
            column = Samples(*(a[:, None, :, j] for a in columns))
            known = inside & column.inside & boxes.known[:, None, None]
            value = _read(images, boxes, place * width + column.place, known)
            share = (weight * column.weight).astype(images.dtype)
            parts.append(value * share[..., None])
        # The row by itself: thousands of small terms, one after another, would drift.
        return total + functools.reduce(lax.add, parts), None

    one_by_one = Samples(*(jnp.moveaxis(a, -1, 0) for a in rows))
    place = rows.place[:, :, None, 0] * width + columns.place[:, None, :, 0]
    nothing = _nothing(lax.stop_gradient(images), boxes, place)
    step = jax.checkpoint(add_row, prevent_cse=False)
    return lax.scan(step, nothing, one_by_one, unroll=plain() or 1)[0]


@jax.custom_jvp
def maxima(images: jax.Array, boxes: Boxes, rows: Bins, columns: Bins) -> jax.Array:
    """The largest element of each bin, `[K, h, w, C]`; 0 for an empty one.

    Derivatives are those of the first in row-major order, or of the first NaN.
    """
    lowest = identity(images.dtype, True)
    start = rows.start[:, :, None] + columns.start[:, None, :]

    def larger(best, value, place, inside):
        return lax.max(best, jnp.where(inside, value, lowest))

    best = _nothing(images, boxes, start) + lowest
    best = _visit(images, boxes, rows, columns, larger, best)
    some = (rows.end > rows.start)[:, :, None] & (columns.end > columns.start)[:, None]
    return jnp.where(some[..., None], best, jnp.zeros((), best.dtype))


@maxima.defjvp
def _maxima_jvp(primals, tangents):
    y, (images, boxes, rows, columns) = maxima(*primals), primals
    best, none = lax.stop_gradient(y), np.int32(np.iinfo(np.int32).max)

    def earlier(first, value, place, inside):
        # Where the largest is not NaN, nothing is.
        holds = inside & ((value == best) | (value != value))
        return jnp.minimum(first, jnp.where(holds, place, none))

    first = (best != best).astype(jnp.int32) * 0 + none
    first = _visit(lax.stop_gradient(images), boxes, rows, columns, earlier, first)
    return y, _elements(tangents[0], boxes, first, first < none)


@functools.partial(jax.custom_jvp, nondiff_argnums=(4,))
def bin_sums(
    images: jax.Array,
    boxes: Boxes,
    rows: Bins,
    columns: Bins,
    shape: tuple[int, ...],
) -> jax.Array:
    """The sum of each bin over one map of `shape`, `[K, h, w, C]`."""
    start = rows.start[:, :, None] + columns.start[:, None, :]

    def add(total, value, place, inside):
        return total + value

    total = _nothing(images, boxes, start)
    return _visit(images, boxes, rows, columns, add, total)


@bin_sums.defjvp
def _bin_sums_jvp(shape, primals, tangents):
    _, boxes, rows, columns = primals
    # A loop of unknown length has no transpose; blocks have.
    tangent = _block_sums(tangents[0], boxes, rows, columns, shape)
    return bin_sums(*primals, shape), tangent


def _block_sums(images, boxes, rows, columns, shape):
    """As `bin_sums`, in as many steps for every size of bin.

    A bin is cut into blocks whose sides are powers of two, one for each bit of its
    height and width. All blocks of a size are one read from an array of their sums,
    which is the sum of two of half the size.
    """
    (height, width), parts = shape, []
    (top, tall), (left, wide) = ((a.start, a.end - a.start) for a in (rows, columns))
    for i in range(height.bit_length()):
        blocks = images
        for j in range(width.bit_length()):
            row = (top + (tall & (2**i - 1)))[:, :, None]
            column = (left + (wide & (2**j - 1)))[:, None, :]
            inside = (tall[:, :, None] & 2**i > 0) & (wide[:, None, :] & 2**j > 0)
            parts.append(_read(blocks, boxes, row * width + column, inside))
            if j + 1 < width.bit_length():
                blocks = blocks + _ahead(blocks, 2**j)
        if i + 1 < height.bit_length():
            images = images + _ahead(images, width * 2**i)
    return functools.reduce(lax.add, parts)


_COLUMNS = 4  # that a visit reads: the state is what costs


def _visit(
    images: jax.Array,
    boxes: Boxes,
    rows: Bins,
    columns: Bins,
    update: Callable[..., jax.Array],
    state: jax.Array,
) -> jax.Array:
    """Reads a few elements of every bin at a time, as often as the largest one needs.

    `update(state, value, place, inside)` gives the next state, all `[K, h, w, C]` or
    what broadcasts to it; a value that is not `inside` its bin is 0.
    """
    top, bottom = (a[:, :, None] for a in rows)
    left, right = (a[:, None, :] for a in columns)
    width = boxes.width[:, None, None]
    tall, wide = jnp.max(bottom - top, initial=0), jnp.max(right - left, initial=0)
    wide = (wide + (_COLUMNS - 1)) // _COLUMNS

    def visit(step, state):
        row, first = top + step // wide, left + step % wide * _COLUMNS
        for column in (first + i for i in range(_COLUMNS)):
            inside = (row < bottom) & (column < right)
            place = row * width + column
            value = _read(images, boxes, place, inside)
            state = update(state, value, place[..., None], inside[..., None])
        return state

    return lax.fori_loop(np.int32(0), tall * wide, visit, state)


def _elements(images, boxes, place, known):
    """The element at each position `[K, h, w, C]` in its box's map, or 0."""
    image, first = (
        jnp.broadcast_to(a[:, None, None, None], place.shape)
        for a in (boxes.image, boxes.first)
    )
    channel = lax.broadcasted_iota(jnp.int32, place.shape, 3)
    at = image, first + jnp.where(known, place, 0), jnp.zeros_like(channel), channel
    read = images.at[at].get(mode="promise_in_bounds")
    return jnp.where(known, read, jnp.zeros((), read.dtype))


def _nothing(images, boxes, place):
    """Zeros `[K, h, w, C]`, made of the images, so that devices hold them alike."""
    return _read(images, boxes, place, jnp.zeros_like(place, bool))


def _ahead(x, distance):
    """What stands `distance` positions later; 0 behind the end."""
    pads = [(0, 0, 0), (-distance, distance, 0), (0, 0, 0), (0, 0, 0)]
    return lax.pad(x, np.zeros((), x.dtype), pads)


def _read(images, boxes, place, inside):
    """The channels `[K, h, w, ..., C]` at positions in each box's map; else 0."""
    lead = (-1, *(1,) * (place.ndim - 1))
    place = jnp.where(inside, place, 0) + boxes.first.reshape(lead)
    image = jnp.broadcast_to(boxes.image.reshape(lead), place.shape)
    h, w = place.shape[1:3]
    # The bin's own group of channels, or the only one.
    group = jnp.arange(h * w, dtype=jnp.int32) % images.shape[2]
    group = group.reshape(1, h, w, *(1,) * (place.ndim - 3))
    group = jnp.broadcast_to(group, place.shape)
    read = images.at[image, place, group].get(mode="promise_in_bounds")
    return jnp.where(inside[..., None], read, jnp.zeros((), read.dtype))
