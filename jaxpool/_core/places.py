"""The transposes of what `taps` reads: each input gathers the windows it lies in.

Gathered, they are as many reads as windows overlap at an input; scattered, as their
definition has it, they would be one write for each element of each window.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxpool._core.geometry import Geometry
from jaxpool._core.stages import (
    MOST_TAPS,
    Block,
    blocks,
    covers,
    large_and_whole,
    taps_at,
)
from jaxpool._core.taps import (
    apart,
    filled,
    masked,
    positions,
    put_together,
    rows,
    share,
)

__all__ = ["place", "place_weighted"]

_NO_TAP = np.uint8(254)  # what no code equals


def place(y: jax.Array, stage: Geometry, code: jax.Array | None = None) -> jax.Array:
    """The transpose of `read`, gathered: each input adds up the windows it lies in.

    .. math:: x_i = \\sum_{o, k : o s - p + k d = i} [c_o = k] y_o

    An axis with a stride is seen as blocks of that many inputs, all of which lie in the
    same few windows; by which tap depends on the place within the block.
    """
    if large_and_whole(stage):
        shape = list(y.shape)
        for a in stage.axes:
            shape[a.axis] = a.size
        x = jnp.broadcast_to(y, shape)
        return x if code is None else masked(code == positions(x, stage), x)
    if stage.binned:
        return _place_bins(y, stage, code)
    # Interleaving is faster over several axes where no sums are needed, and several
    # times as slow where they are.
    disjoint = all(len(taps_at(a)) == 1 for a in stage.axes)
    few = math.prod(a.stride for a in stage.axes) <= MOST_TAPS
    several = sum(a.stride > 1 for a in stage.axes) > 1
    form = _interleaved if disjoint and few and several else _tabulated

    def region(runs: tuple[Block, ...]):
        if all(run.offsets for run in runs):
            return form(y, stage, code, runs)
        end, shape = list(y.shape), list(y.shape)
        for a, run in zip(stage.axes, runs, strict=True):
            end[a.axis], shape[a.axis] = 1, (run.end - run.begin) * run.width
        zeros = filled(lax.slice(y, [0] * y.ndim, end), 0)
        return jnp.broadcast_to(zeros, shape)

    return put_together(stage, blocks, region)


def place_weighted(
    y: jax.Array,
    stage: Geometry,
    logits: jax.Array,
    largest: jax.Array,
    excess: jax.Array,
    *affine: jax.Array,
) -> jax.Array:
    """The transpose of `read_weighted`, gathered as `place` is.

    .. math:: x_i = \\sum_{o : i \\in W(o)} e^{g_i - m_o - t_o} (a_i + c_o) y_o
    """
    if large_and_whole(stage):
        weight = share(logits, largest, excess)
        return weight * (affine[0] + affine[1]) * y if affine else weight * y

    def region(runs):
        here = _input_run(logits, stage, runs)
        if not all(run.offsets for run in runs):
            return filled(here, 0)
        blocked = _Blocked(here.shape, stage, runs)
        here, terms = blocked.split(here), []
        inner = [blocked.split(_input_run(a, stage, runs)) for a in affine[:1]]
        for _, none, spread in blocked.windows():
            term = share(here, spread(largest), spread(excess)) * spread(y)
            for a, c in zip(inner, affine[1:], strict=True):
                term = term * (a + spread(c))
            terms.append(masked(~none, term))
        return blocked.merged(functools.reduce(lax.add, terms))

    return put_together(stage, blocks, region)


def _input_run(x, stage, runs) -> jax.Array:
    """The part of an input that belongs to a region of blocks."""
    begin, end = [0] * x.ndim, list(x.shape)
    for a, run in zip(stage.axes, runs, strict=True):
        begin[a.axis] = run.begin * a.stride
        end[a.axis] = begin[a.axis] + (run.end - run.begin - 1) * a.stride + run.width
    return lax.slice(x, begin, end)


def _interleaved(y, stage, code, runs) -> jax.Array:
    """A region of disjoint windows: an array as large as `y` for each place."""

    def along(places):
        if len(places) == len(runs):
            return _one_window(y, stage, code, runs, places)
        axis, run = y.ndim + stage.axes[len(places)].axis, runs[len(places)]
        parts = [along((*places, place)) for place in range(run.width)]
        joined = jnp.stack(parts, axis + 1)
        shape = list(parts[0].shape)
        shape[axis] *= run.width
        return joined.reshape(shape)

    return along(())


def _one_window(y, stage, code, runs, places) -> jax.Array:
    """The one window that inputs at `places` within the blocks of `runs` lie in."""
    begin, end, tap, missing = [0] * y.ndim, list(y.shape), 0, False
    for a, run, place in zip(stage.axes, runs, places, strict=True):
        ((offset, table),) = taps_at(a).items()
        begin[a.axis], end[a.axis] = run.begin + offset, run.end + offset
        missing |= table[place] < 0
        tap = tap * a.window + int(table[place])
    term = lax.slice(y, begin, end)
    if missing:
        return filled(term, 0)
    if code is None:
        return term
    return masked(lax.slice(code, begin, end) == np.uint8(tap), term)


def _tabulated(y, stage, code, runs) -> jax.Array:
    """A region of any windows: a second axis for the places, and a table of taps."""
    shape = list(y.shape)
    for a, run in zip(stage.axes, runs, strict=True):
        shape[a.axis] = (run.end - run.begin) * run.width
    blocked, terms = _Blocked(shape, stage, runs), []
    for tap, none, spread in blocked.windows():
        if code is None:
            terms.append(masked(~none, spread(y)))
        else:
            wanted = np.where(none, _NO_TAP, tap).astype(np.uint8)
            terms.append(masked(spread(code) == wanted, spread(y)))
    return blocked.merged(functools.reduce(lax.add, terms))


class _Blocked:
    """A region of inputs, with an axis for the blocks and one for the place in them.

    They are one axis where one of them has size 1.
    """

    def __init__(self, shape, stage, runs):
        """Lays out a region of this shape."""
        self.final, self.stage, self.runs = list(shape), stage, runs
        self.spatial = {len(shape) + a.axis: i for i, a in enumerate(stage.axes)}
        self.shape, self.kept = [], []
        for d, size in enumerate(shape):
            self.kept.append(len(self.shape))
            sizes = [size]
            for run in [runs[self.spatial[d]]] if d in self.spatial else []:
                sizes = [run.end - run.begin, run.width] if self._two(run) else sizes
            self.shape += sizes

    @staticmethod
    def _two(run) -> bool:
        return run.end - run.begin > 1 and run.width > 1

    def split(self, x):
        """An array of the region's shape in this layout."""
        # A reshape of a sharded array may split one axis, with none of size 1 around.
        ones = [d for d in self.spatial if self.final[d] == 1]
        x = lax.squeeze(x, ones)
        for d, i in self.spatial.items():
            if self._two(self.runs[i]):
                two = self.kept[d] - sum(one < d for one in ones)
                sizes = self.shape[self.kept[d] : self.kept[d] + 2]
                x = x.reshape(*x.shape[:two], *sizes, *x.shape[two + 1 :])
        return lax.expand_dims(x, [self.kept[d] for d in ones])

    def windows(self):
        """For each window that the inputs may lie in: taps, which don't, and a reader.

        The reader lays an array of outputs out over the inputs that lie in them.
        """
        ndim = len(self.shape)
        for offsets in itertools.product(*(run.offsets for run in self.runs)):
            tap = np.zeros((1,) * ndim, np.int64)
            none = tap < 0
            for d, i in self.spatial.items():
                a, run = self.stage.axes[i], self.runs[i]
                row = taps_at(a)[offsets[i]][: run.width]
                within = self.kept[d] + self._two(run)
                row = row.reshape([-1 if e == within else 1 for e in range(ndim)])
                tap, none = tap * a.window + row, none | (row < 0)
            yield tap, none, functools.partial(self._spread, offsets)

    def _spread(self, offsets, y):
        begin, end = [0] * y.ndim, list(y.shape)
        for d, i in self.spatial.items():
            begin[d] = self.runs[i].begin + offsets[i]
            end[d] = self.runs[i].end + offsets[i]
        return lax.broadcast_in_dim(lax.slice(y, begin, end), self.shape, self.kept)

    def merged(self, x):
        """An array of the layout as one of the region's shape."""
        # A reshape of a sharded array may merge two axes, with none of size 1 around.
        ones = [d for d in self.spatial if self.final[d] == 1]
        x = lax.squeeze(x, [self.kept[d] for d in ones])
        merged = [size for d, size in enumerate(self.final) if d not in ones]
        for d, size in enumerate(merged):
            if x.shape[d] != size:
                x = x.reshape(*merged[: d + 1], *x.shape[d + 2 :])
        return lax.expand_dims(x, ones)


def _place_bins(y, stage, code) -> jax.Array:
    (bins,) = stage.axes
    if bins.axis == -1:
        # Rows are single elements here, and what made them is computed again for each.
        y = apart(y)
    shape = [bins.size if y.ndim + bins.axis == d else 1 for d in range(y.ndim)]
    terms = []
    for window, tap in covers(bins):
        term, tap = rows(y, bins.axis, window), tap.reshape(shape)
        if code is None:
            inside = tap >= 0
        else:
            wanted = np.where(tap >= 0, tap, _NO_TAP).astype(np.uint8)
            inside = rows(code, bins.axis, window) == wanted
        terms.append(masked(inside, term))
    return functools.reduce(lax.add, terms)
