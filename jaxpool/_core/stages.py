"""How a window is taken apart: one stage after the other, each with few taps.

A maximum over 13 x 13 elements is a maximum over 13 in a row, then over 13 of those;
and one over 13 is one over 5, then over three of those, 4 apart. Each such stage is a
window of its own, with a geometry of its own, so everything that works on one stage
works on any window: values, choices, sums, and the way back.
"""

import functools
import itertools
import math
from dataclasses import dataclass, replace

import numpy as np

from jaxpool._core.geometry import Axis, Geometry

__all__ = [
    "Block",
    "Region",
    "blocks",
    "holds_nothing",
    "regions",
    "stages",
    "sum_stages",
    "taps_at",
]

# Up to this many elements of a window are one stage, over several axes or along one.
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


def large_and_whole(stage: Geometry) -> bool:
    """Whether a stage is one window over everything, reduced and not unrolled."""
    return stage.whole and (stage.symbolic or stage.taps > MOST_TAPS)


def holds_nothing(stage: Geometry) -> bool:
    """Whether some window of the stage may have no elements: it steps over them."""
    if stage.symbolic:
        return any(a.dilation > 1 for a in stage.axes)
    return any(not run.taps for a in stage.axes for run in regions(a))


@functools.lru_cache(4096)
def stages(geometry: Geometry) -> tuple[Geometry, ...]:
    """Stages that choose one element: the last axis first, so ties stay row-major."""
    if large_and_whole(geometry):
        return (geometry,)
    axes = tuple(a for a in geometry.axes if not _idle(a))
    if math.prod(a.window for a in axes) <= MOST_TAPS:
        return (Geometry(axes),) if axes else ()
    chain = [part for a in reversed(axes) for part in _chain(a, overlap=True)]
    return tuple(Geometry((part,)) for part in chain)


@functools.lru_cache(4096)
def sum_stages(geometry: Geometry) -> tuple[tuple[tuple[Geometry, ...], ...], ...]:
    """Stages that add up: for each group of axes, the chains whose results add up.

    A sum must not count an element twice, so its chains do not overlap: a window whose
    size is no product of small factors is the largest such window, and the rest.
    """
    if large_and_whole(geometry):
        return (((geometry,),),)
    axes = tuple(a for a in geometry.axes if not _idle(a))
    if math.prod(a.window for a in axes) <= MOST_TAPS:
        return (((Geometry(axes),),),) if axes else ()
    groups = []
    for a in reversed(axes):
        chains = []
        while a.window:
            width = next(n for n in range(a.window, 0, -1) if _is_product(n))
            chain = _chain(replace(a, window=width), overlap=False)
            chains.append(tuple(Geometry((part,)) for part in chain))
            rest = a.low - width * a.dilation
            a = replace(a, window=a.window - width, low=rest)
        groups.append(tuple(chains))
    return tuple(groups)


def _idle(axis: Axis) -> bool:
    """Whether a window takes each element of the axis as it is."""
    return (axis.window, axis.stride, axis.low, axis.out) == (1, 1, 0, axis.size)


def _chain(axis: Axis, overlap: bool) -> tuple[Axis, ...]:
    """`axis` as windows of windows, the innermost first."""
    if overlap:
        count, step = _cover(axis.window)[1:]
    else:
        count = _factor(axis.window)
        step = axis.window // max(count, 1)
    if count in (0, axis.window):
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


@functools.cache
def _cover(window: int) -> tuple[float, int, int]:
    """How to cover a window with `count` smaller ones, `step` apart, at what cost.

    Returns (cost, count, step), in passes over memory, of which a tap is a third; a
    count of 0 is the window in one piece. Neighbours may overlap: a maximum does not
    mind, and of two equal ones the first is the same element.
    """
    choices = [(window / 3 + 1, 0, 0)]
    if window <= 3:
        return choices[0]
    if window > MOST_IN_A_ROW:
        choices = []
    for count in range(2, min(MOST_IN_A_ROW, window // 2) + 1):
        step = window // count
        inner = _cover(window - (count - 1) * step)[0]
        choices.append((inner + count / 3 + 1, count, step))
    return min(choices)


def _factor(window: int) -> int:
    """The largest factor of `window` that is one stage, 0 if there is none."""
    most = min(window, MOST_IN_A_ROW)
    return next((n for n in range(most, 1, -1) if window % n == 0), 0)


def _is_product(window: int) -> bool:
    """Whether windows of windows, each one stage, make up `window`.

    A prime up to 13 in a row is cheaper than two passes and a sum of both.
    """
    while _factor(window):
        window //= _factor(window)
    return window <= 13
