"""How a window is taken apart: one stage after the other, each with few taps.

A maximum over 13 x 13 elements is a maximum over 13 in a row, then over 13 of those;
and one over 13 is one over 4, then over four of those, 3 apart. Each such stage is a
window of its own, with a geometry of its own, so everything that works on one stage
works on any window: values, choices, sums, and the way back.
"""

import functools
import itertools
import math
from dataclasses import dataclass, replace

import numpy as np

from jaxpool._core.geometry import Axis, Bins, Geometry

__all__ = [
    "Block",
    "Region",
    "axis_by_axis",
    "blocks",
    "covers",
    "holds_nothing",
    "large_and_whole",
    "regions",
    "stages",
    "sum_stages",
    "taps_at",
]

# Up to this many elements of a window are one stage, over several axes or along one,
# where the smaller number holds if most elements of a window lie in the next one too.
# With more, passes over memory are saved that cost less than reading so many taps, and
# the program grows: it has a region for each number of taps that padding leaves.
MOST_TAPS = 9
MOST_IN_A_ROW = 5


@dataclass(frozen=True)
class Region:
    """Outputs `[begin, end)` of an axis, whose windows hold the same taps."""

    begin: int
    end: int
    taps: tuple[int, ...]


@dataclass(frozen=True)
class Block:
    """Inputs of an axis that the same outputs reach, in `end - begin` strides.

    Input `b * stride + r`, with `begin <= b < end` and `0 <= r < width`, lies in
    windows `b + offset` for some of the `offsets`.
    """

    begin: int
    end: int
    width: int
    offsets: tuple[int, ...]


@functools.lru_cache(4096)
def regions(axis: Axis) -> tuple[Region, ...]:
    """The outputs of `axis`, in order, in runs whose windows hold the same taps."""
    start = np.arange(axis.out) * axis.stride - axis.low
    first = np.maximum(-(start // axis.dilation), 0)
    last = np.minimum((axis.size - 1 - start) // axis.dilation, axis.window - 1)
    pairs = np.stack([first, np.maximum(last + 1, first)], 1)
    cuts = np.flatnonzero(np.any(pairs[1:] != pairs[:-1], 1)) + 1
    edges = [0, *cuts.tolist(), axis.out]
    return tuple(
        Region(begin, end, tuple(range(*pairs[begin].tolist())))
        for begin, end in itertools.pairwise(edges)
    )


@functools.lru_cache(4096)
def taps_at(axis: Axis) -> dict[int, np.ndarray]:
    """For each offset, the tap by which input `b * stride + r` lies in `b + offset`.

    `[stride]`, -1 for those r that do not lie in that window.
    """
    table: dict[int, np.ndarray] = {}
    for tap in range(axis.window):
        back, r = divmod(tap * axis.dilation - axis.low, axis.stride)
        row = table.setdefault(-back, np.full(axis.stride, -1))
        row[r] = tap
    return dict(sorted(table.items()))


@functools.lru_cache(4096)
def blocks(axis: Axis) -> tuple[Block, ...]:
    """The inputs of `axis`, in order, in runs that the same outputs reach."""
    table = taps_at(axis)
    count, tail = divmod(axis.size, axis.stride)
    edges = {0, count, count + (tail > 0)}
    for offset in table:
        edges |= {min(max(b - offset, 0), count) for b in (0, axis.out)}
    runs = []
    for begin, end in itertools.pairwise(sorted(edges)):
        width = axis.stride if end <= count else tail
        offsets = tuple(
            offset
            for offset, taps in table.items()
            if 0 <= begin + offset < axis.out and (taps[:width] >= 0).any()
        )
        runs.append(Block(begin, end, width, offsets))
    return tuple(runs)


@functools.lru_cache(4096)
def covers(bins: Bins) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """(window, tap) for each place in the list of windows that an input lies in.

    Both `[size]`; -1 for the tap of those inputs whose list is shorter.
    """
    inputs = np.arange(bins.size)
    first = np.searchsorted(bins.end, inputs, "right")
    last = np.searchsorted(bins.start, inputs, "right") - 1
    table = []
    for place in range((last - first).max() + 1):
        window = np.minimum(first + place, last)
        tap = inputs - np.take(bins.start, window)
        # int32 always: JAX remembers what it made of an array, with x64 or without.
        window = window.astype(np.int32)
        table.append((window, np.where(first + place <= last, tap, -1)))
    return tuple(table)


def axis_by_axis(geometry: Geometry) -> bool:
    """Whether each axis has stages of its own, however few elements a window has.

    Bins have. So have windows that move by one along the axis whose elements are
    neighbours in memory, as channels first have it: regions along it leave short loops,
    and a stage over that axis alone has the fewest.
    """
    last = geometry.axes[-1]
    if geometry.binned:
        return True
    return last.axis == -1 and last.stride == 1 and min(last.window, last.out) > 1


def large_and_whole(stage: Geometry) -> bool:
    """Whether a stage is one window over everything, reduced and not unrolled."""
    return stage.whole and (stage.symbolic or stage.taps > MOST_TAPS)


def holds_nothing(stage: Geometry) -> bool:
    """Whether some window of the stage may have no elements: it steps over them."""
    if stage.symbolic:
        return any(a.dilation > 1 for a in stage.axes)
    plain = [a for a in stage.axes if isinstance(a, Axis)]
    return any(not run.taps for a in plain for run in regions(a))


@functools.lru_cache(4096)
def stages(geometry: Geometry) -> tuple[Geometry, ...]:
    """Stages that choose one element: the last axis first, so ties stay row-major."""
    geometry = geometry.clipped
    if large_and_whole(geometry):
        return (geometry,)
    axes = tuple(a for a in geometry.axes if not _idle(a))
    if geometry.taps <= MOST_TAPS and not axis_by_axis(geometry):
        return (Geometry(axes),) if axes else ()
    chain = [part for a in reversed(axes) for part in _chain(a, overlap=True)]
    return tuple(Geometry((part,)) for part in chain)


@functools.lru_cache(4096)
def sum_stages(geometry: Geometry) -> tuple[tuple[tuple[Geometry, ...], ...], ...]:
    """Stages that add up: for each group of axes, the chains whose results add up.

    A sum must not count an element twice, so its chains do not overlap: a window whose
    size is no product of small factors is the largest such window, and the rest.
    """
    geometry = geometry.clipped
    if large_and_whole(geometry):
        return (((geometry,),),)
    axes = tuple(a for a in geometry.axes if not _idle(a))
    if geometry.taps <= MOST_TAPS and not geometry.binned:
        return (((Geometry(axes),),),) if axes else ()
    groups = []
    for a in reversed(axes):
        chains = []
        if isinstance(a, Bins):
            inner, a = _small_bins(a)
            groups.append(((Geometry((inner,)),),))
            if a is None:
                continue
        for size in _summands(a.window, _step(a), a.dilation)[1]:
            chain = _chain(replace(a, window=size), overlap=False)
            chains.append(tuple(Geometry((part,)) for part in chain))
            a = replace(a, low=a.low - size * a.dilation)
        groups.append(tuple(chains))
    return tuple(groups)


def _idle(axis: Axis | Bins) -> bool:
    """Whether a window takes each element of the axis as it is."""
    return isinstance(axis, Axis) and (
        (axis.window, axis.stride, axis.low, axis.out) == (1, 1, 0, axis.size)
    )


def _small_bins(bins: Bins) -> tuple[Bins, Axis | None]:
    """`bins` as bins of few elements, and windows of as many of these each, if any."""
    count = -(-bins.window // MOST_TAPS)
    if count == 1:
        return bins, None
    parts = np.arange(count + 1) * bins.counts(False)[:, None] // count
    edges = np.asarray(bins.start)[:, None] + parts
    start, end = edges[:, :-1].ravel().tolist(), edges[:, 1:].ravel().tolist()
    inner = Bins(bins.axis, bins.size, tuple(start), tuple(end))
    size = inner.out
    return inner, Axis(bins.axis, size, count, count, 1, 0, 0, 0, bins.out)


def _chain(axis: Axis | Bins, overlap: bool) -> tuple[Axis | Bins, ...]:
    """`axis` as windows of windows, the innermost first."""
    if isinstance(axis, Bins):
        inner, rest = _small_bins(axis)
        return (inner, *_chain(rest, overlap)) if rest else (inner,)
    count, step = _cover(axis.window, _step(axis), axis.dilation, overlap)[1:]
    if not count:
        return (axis,)
    width = axis.window - (count - 1) * step
    # Inner windows start wherever an outer one has a tap: every `stride` elements.
    hop = step * axis.dilation
    stride = hop if axis.out == 1 else math.gcd(axis.stride, hop)
    per_window = 0 if axis.out == 1 else axis.stride // stride
    last = (axis.out - 1) * per_window + (count - 1) * (hop // stride)
    # Those that hold nothing but padding are left out: no tap of the outer ones.
    span = (width - 1) * axis.dilation + 1
    begin = max(-(-(axis.low - span + 1) // stride), 0)
    end = min((axis.low + axis.size - 1) // stride, last) + 1
    if begin >= end:
        return (axis,)  # no window has an element
    low = axis.low - begin * stride
    inner = replace(axis, window=width, stride=stride, low=low, out=end - begin)
    outer = replace(
        axis,
        size=inner.out,
        window=count,
        stride=per_window or 1,
        dilation=hop // stride,
        low=begin,
    )
    return (*_chain(inner, overlap), outer)


def _step(axis: Axis) -> int:
    """The stride, and 0 where nothing follows the first output."""
    return 0 if axis.out == 1 else axis.stride


@functools.cache
def _cover(
    window: int, stride: int, dilation: int, overlap: bool
) -> tuple[float, int, int]:
    """How to cover a window with `count` smaller ones, `step` apart, at what cost.

    Returns (cost, count, step), in passes over memory, of which a tap is a third, for
    one output in `stride` elements (0 for one in all); a count of 0 is the window in
    one piece. Neighbours may overlap for a maximum, which does not mind: of two equal
    ones the first is the same element.
    """
    outputs = _outputs(stride)
    whole = ((window / 3 + 1) * outputs, 0, 0)
    if window <= 3:
        return whole
    reused = 0 < 2 * stride < window  # by the next output
    choices: list[tuple[float, int, int]] = []
    if window <= (MOST_IN_A_ROW if reused else MOST_TAPS):
        choices.append(whole)
    for count in range(2, min(MOST_IN_A_ROW, window // 2) + 1):
        largest = window // count
        if overlap:
            # Inner windows begin wherever outer ones have a tap: a step that shares a
            # factor with the stride may make them longer, but fewer.
            steps = {largest // factor * factor for factor in _factors(stride)}
        else:
            steps = {largest} if window % count == 0 else set()
        for step in steps:
            if 2 * step > largest:
                hop = math.gcd(stride, step * dilation)
                inner = _cover(window - (count - 1) * step, hop, dilation, overlap)[0]
                choices.append((inner + (count / 3 + 1) * outputs, count, step))
    return min(choices, default=whole)


@functools.cache
def _summands(window: int, stride: int, dilation: int) -> tuple[float, tuple[int, ...]]:
    """How to split a window into such as have a cover without overlap, at what cost.

    Returns (cost, sizes), as `_cover` counts it.
    """
    if not window:
        return 0.0, ()
    choices = []
    sizes = (size for size in range(window, 0, -1) if _is_product(size))
    for size in itertools.islice(sizes, 4):
        cost = _cover(size, stride, dilation, False)[0]
        rest, others = _summands(window - size, stride, dilation)
        if others:
            cost += _outputs(stride)  # to add them
        choices.append((cost + rest, (size, *others)))
    return min(choices)


def _outputs(stride: int) -> float:
    """Number of outputs for each element; one in all is as good as none."""
    return 1 / stride if stride else 0.0


def _factors(number: int) -> set[int]:
    """All factors of `number`, and 1."""
    small = {n for n in range(1, math.isqrt(number) + 1) if number % n == 0}
    return {1} | small | {number // n for n in small}


def _is_product(window: int) -> bool:
    """Whether windows of windows, each one stage, make up `window`.

    A prime up to 13 in a row is cheaper than two passes and a sum of both.
    """
    for factor in range(2, MOST_IN_A_ROW + 1):
        while window % factor == 0:
            window //= factor
    return window <= 13
