"""One stage as whole arrays: strided slices that XLA fuses into one vectorised loop.

A stage is a geometry with few taps. Every function here reads the input as one strided
slice for each tap, without padding: outputs are cut into regions whose windows have the
same elements inside, and put together by concatenation.

A choice of one element for each window is a code: the tap it stands at, counted in
row-major order, as uint8; `NONE` for a window without elements. One window over
everything is reduced instead, and its code, int32, may be as large as it is. Bins,
whose places follow no pattern, are read through tables, a row of the array for each.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxpool._core.geometry import Axis, Geometry
from jaxpool._core.numerics import accumulation_dtype
from jaxpool._core.stages import (
    MOST_TAPS,
    Block,
    Region,
    blocks,
    covers,
    large_and_whole,
    regions,
    taps_at,
)

__all__ = [
    "NONE",
    "apart",
    "binade",
    "choose",
    "combine",
    "draw",
    "draw_code",
    "excess",
    "expect",
    "finite_or_zero",
    "flat_positions",
    "fold",
    "keeping_nan",
    "log_mean",
    "log_of_mean",
    "place",
    "place_weighted",
    "power_mean",
    "read",
    "read_weighted",
    "softmax_mean",
    "weigh",
]

Parts = Sequence[jax.Array]
Fold = Callable[..., Any]

NONE = np.uint8(255)
_NO_TAP = np.uint8(254)  # what no code equals


def fold(
    x: jax.Array,
    stage: Geometry,
    op: Callable[[jax.Array, jax.Array], jax.Array],
    empty: Any,
) -> jax.Array:
    """Each window folded with `op`, a maximum or minimum, whose identity is `empty`.

    Half precision folds in float32: XLA would convert back and forth at each `op`.
    """
    if large_and_whole(stage):
        return _fold_whole(x, stage, op, empty)
    wide = accumulation_dtype(x.dtype)
    if stage.binned:
        # The last element of a shorter bin is read again, and changes nothing.
        rows = [part.astype(wide) for _, part in _bin_taps(x, stage)]
        return functools.reduce(op, rows).astype(x.dtype)

    def region(runs):
        slices = [part.astype(wide) for _, part in _taps(x, stage, runs)]
        if not slices:
            return _filled(_inputs(x, stage, runs), empty)
        return functools.reduce(op, slices).astype(x.dtype)

    return _put_together(stage, regions, region)


def choose(
    x: jax.Array, y: jax.Array, stage: Geometry, alive: jax.Array | None = None
) -> jax.Array:
    """The code of the first element of each window that equals `y`, its extremum.

    Where `y` is NaN that is the first NaN. Only elements that are `alive` count.
    """
    if large_and_whole(stage):
        return _choose_whole(x, y, stage, alive)
    wide = accumulation_dtype(x.dtype)

    def first(target, slices, masks):
        target = target.astype(wide)
        # The last one needs no test: if no other equals the extremum, it does.
        last = NONE if masks or not slices else np.uint8(slices[-1][0])
        code = _filled(target, last)
        masks = [mask for _, mask in masks] or [None] * len(slices)
        for (tap, part), mask in reversed(list(zip(slices, masks, strict=True))):
            if tap != last:
                part = part.astype(wide)
                hit = (part == target) | (part != part)
                hit = hit if mask is None else hit & mask
                code = jnp.where(hit, np.uint8(tap), code)
        return code

    if stage.binned:
        masks = [] if alive is None else _bin_taps(alive, stage)
        # Without the barrier XLA keeps the rows that `fold` has read, all of them.
        return first(y, _bin_taps(lax.optimization_barrier(x), stage), masks)

    def region(runs):
        masks = [] if alive is None else _taps(alive, stage, runs)
        return first(_outputs(y, stage, runs), _taps(x, stage, runs), masks)

    return _put_together(stage, regions, region)


def combine(
    formula: Callable[..., jax.Array], x: jax.Array, stage: Geometry, *outputs: Any
) -> jax.Array:
    """`formula` of the elements of each window, a list of arrays, and of `outputs`.

    Those have the output's shape. Half precision is computed in float32. A window
    without elements gives 0.
    """
    wide = accumulation_dtype(x.dtype)

    def region(runs):
        parts = [part.astype(wide) for _, part in _taps(x, stage, runs)]
        if not parts:
            return _filled(_inputs(x, stage, runs), 0)
        others = [_outputs(y, stage, runs) for y in outputs]
        return formula(parts, *others).astype(x.dtype)

    return _put_together(stage, regions, region)


def expect(parts: list[jax.Array]) -> jax.Array:
    """The expectation of `draw`."""
    _, weights, scale, total = _proportions(parts)
    squares = functools.reduce(lax.add, [w * w for w in weights])
    y = squares / jnp.where(total > 0, total, 1) / scale
    return jnp.where(jnp.isfinite(total), y, total)


def draw(parts: list[jax.Array], uniform: jax.Array) -> jax.Array:
    """The element where the running sum of positive ones passes uniform * sum.

    In row-major order; 0 if none is positive. NaN or infinity gives NaN or infinity.
    """
    parts, weights, _, total = _proportions(parts)
    y = parts[0]
    for part, passed in zip(parts[1:], _passed(weights, total * uniform), strict=True):
        y = jnp.where(passed, part, y)
    return jnp.where(jnp.isfinite(total), y, total)


def draw_code(x: jax.Array, uniform: jax.Array, stage: Geometry) -> jax.Array:
    """The code of the element that `draw` gives, `NONE` if it is no element."""
    wide = accumulation_dtype(x.dtype)

    def region(runs):
        u = _outputs(uniform, stage, runs)
        slices = _taps(x, stage, runs)
        if not slices:
            return _filled(u, NONE)
        parts = [part.astype(wide) for _, part in slices]
        _, weights, _, total = _proportions(parts)
        code = _filled(u, np.uint8(slices[0][0]))
        chosen = _passed(weights, total * u)
        for (tap, _), passed in zip(slices[1:], chosen, strict=True):
            code = jnp.where(passed, np.uint8(tap), code)
        return jnp.where((total > 0) & jnp.isfinite(total), code, NONE)

    return _put_together(stage, regions, region)


def _proportions(parts):
    """The positive parts, and weights: a power of two, of each window, times them.

    Neither the sum of weights, nor of their squares, nears overflow, or vanishes.
    """
    zero = np.zeros((), parts[0].dtype)
    parts = [jnp.where(part <= zero, zero, part) for part in parts]  # keeps NaN
    exponent = jnp.finfo(zero.dtype).maxexp
    far = np.asarray(2.0 ** int(0.35 * exponent), zero.dtype)
    back = np.asarray(2.0 ** int(0.7 * exponent), zero.dtype)
    one = np.ones((), zero.dtype)
    largest = functools.reduce(lax.max, parts)
    scale = jnp.where(largest > far, 1 / back, one)
    scale = jnp.where(largest < 1 / far, back, scale)
    weights = [part * scale for part in parts]
    return parts, weights, scale, functools.reduce(lax.add, weights)


def _passed(weights, threshold):
    """For each weight but the first: whether the sum of those before passes by it.

    The last for which that holds is the one that is drawn, and there is one, however
    the two sums round, unless the first is drawn, or no weight is positive.
    """
    below = weights[0]
    for weight in weights[1:]:
        yield (weight > 0) & (below <= threshold)
        below = below + weight


def read(x: jax.Array, stage: Geometry, code: jax.Array | None = None) -> jax.Array:
    """The sum of each window, or of the one element that its code names.

    .. math:: y_o = \\sum_k [c_o = k] x_{o s - p + k d}
    """
    if large_and_whole(stage):
        x = x if code is None else _where(code == _positions(x, stage), x)
        return jnp.sum(x, stage.pooled, dtype=x.dtype, keepdims=True)
    if stage.binned:
        counts = stage.counts(x.ndim, False)
        terms = [
            _where(counts > tap if code is None else code == tap, part)
            for tap, part in _bin_taps(x, stage)
        ]
        return functools.reduce(lax.add, terms)

    def region(runs):
        slices = _taps(x, stage, runs)
        if code is None:
            terms = [part for _, part in slices]
        else:
            codes = _outputs(code, stage, runs)
            terms = [_where(codes == np.uint8(tap), part) for tap, part in slices]
        if not terms:
            return _filled(_inputs(x, stage, runs), 0)
        return functools.reduce(lax.add, terms)

    return _put_together(stage, regions, region)


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
        return x if code is None else _where(code == _positions(x, stage), x)
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
        zeros = _filled(lax.slice(y, [0] * y.ndim, end), 0)
        return jnp.broadcast_to(zeros, shape)

    return _put_together(stage, blocks, region)


def weigh(x: jax.Array, logits: jax.Array, stage: Geometry) -> jax.Array:
    """The mean of each window, weighted by the softmax of its logits.

    .. math:: y_o = \\sum_k \\operatorname{softmax}_k(g_{o, k}) x_{o, k}
    """
    return _folded(softmax_mean, stage, (x, logits))


def softmax_mean(parts: Parts, logits: Parts, fold: Fold = functools.reduce):
    """As `weigh`, for one array for each tap.

    What has no weight may be infinite or NaN, and an infinite logit decides.
    """
    _, shares = _shares(logits, fold)
    terms = [e * jnp.where(e > 0, x, 0) for e, x in zip(shares, parts, strict=True)]
    weighted, total = fold(lax.add, terms), fold(lax.add, shares)
    mean = weighted / jnp.where(total > 0, total, 1)
    return jnp.where(total < np.inf, mean, weighted)


def log_mean(
    x: jax.Array, r: jax.Array, count: jax.Array, stage: Geometry
) -> jax.Array:
    """The logarithm, by r, of each window's sum of exponentials by its count.

    .. math:: y_o = m_o
        + \\frac{1}{r} \\log \\frac{1}{n_o} \\sum_k e^{r (x_{o, k} - m_o)}

    with the largest element m; -inf for no element. `r` is above 0.
    """
    return _folded(log_of_mean, stage, (x,), (r, count), nothing=-np.inf)


def log_of_mean(parts: Parts, r: Any, count: Any, fold: Fold = functools.reduce):
    """As `log_mean`, for one array for each tap."""
    largest = finite_or_zero(lax.stop_gradient(fold(lax.max, parts)))
    total = fold(lax.add, [jnp.exp(r * (part - largest)) for part in parts])
    none = total == 0
    mean = jnp.where(none, 1, total) / count
    return jnp.where(none, -np.inf, largest + jnp.log(mean) / r)


def excess(logits: jax.Array, largest: jax.Array, stage: Geometry) -> jax.Array:
    """How far the logarithm of the sum of exponentials is above the largest logit."""

    def formula(parts, largest, fold):
        total = fold(lax.add, [jnp.exp(part - largest) for part in parts])
        return jnp.log(jnp.where((total > 0) & (total < np.inf), total, 1))

    return _folded(formula, stage, (logits,), (largest,))


def _shares(logits, fold):
    """The largest logit, if it is finite, and exponentials relative to it."""
    largest = finite_or_zero(lax.stop_gradient(fold(lax.max, logits)))
    return largest, [jnp.exp(part - largest) for part in logits]


def finite_or_zero(x: jax.Array) -> jax.Array:
    """`x` where it is finite: inf - inf would be NaN."""
    return jnp.where(jnp.isfinite(x), x, 0)


def power_mean(x: jax.Array, p: Any, count: jax.Array, stage: Geometry) -> jax.Array:
    """(sum of x**p / count)**(1 / p) of each window, for x >= 0.

    .. math:: y_o = s_o \\Big(\\frac{1}{n_o} \\sum_k (x_{o, k} / s_o)^p\\Big)^{1/p}

    with the largest element s, so that no power overflows; or, for a small int `p`,
    which is taken by multiplication, a power of two near it, so that nothing rounds.
    """

    def formula(parts, count, fold):
        largest = fold(lax.max, parts)
        if isinstance(p, int):
            scale, inverse = binade(largest)
            powers = [lax.integer_pow(part * inverse, p) for part in parts]
        else:
            usual = (largest >= np.finfo(x.dtype).tiny) & (largest < np.inf)
            scale = jnp.where(usual, largest, 1)
            powers = [jnp.exp(p * jnp.log(part / scale)) for part in parts]
        return scale * _root(fold(lax.add, powers) / count, p)

    return _folded(formula, stage, (x,), (count,))


def _folded(formula, stage, arrays, outputs=(), nothing: float = 0):
    """`formula(*parts, *outputs, fold)`, with the elements of each window of `arrays`.

    `fold` folds them with `lax.add` or `lax.max`. `outputs` have a value for each
    window, or for all along an axis; a window without elements gives `nothing`.
    """
    if large_and_whole(stage):
        over = {lax.add: jnp.sum, lax.max: jnp.max}

        def fold(op, parts):
            return over[op](parts[0], stage.pooled, keepdims=True)

        return formula(*([x] for x in arrays), *outputs, fold)

    def region(runs):
        parts = [[part for _, part in _taps(x, stage, runs)] for x in arrays]
        if not parts[0]:
            return _filled(_inputs(arrays[0], stage, runs), nothing)
        others = [_outputs_that_vary(y, stage, runs) for y in outputs]
        return formula(*parts, *others, functools.reduce)

    return _put_together(stage, regions, region)


def binade(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A power of two near x >= 0, and its inverse; both 1 where x is no number.

    In whole numbers: XLA would keep the quotient that division makes in an array.
    """
    info = jnp.finfo(x.dtype)
    integer = np.dtype(f"int{info.bits}")
    place = np.asarray(1 << info.nmant, integer)
    one = np.asarray(1 - info.minexp, integer)  # the exponent that stands for 0
    exponent = lax.bitcast_convert_type(x, integer) >> np.asarray(info.nmant, integer)
    number = exponent <= 2 * one
    exponent = lax.clamp(one // one, exponent, 2 * one - 1)
    exponent = jnp.where(number, exponent, one)
    numbers = [e * place for e in (exponent, 2 * one - exponent)]
    scale, inverse = (lax.bitcast_convert_type(n, x.dtype) for n in numbers)
    return scale, inverse


def _root(x, p):
    """x**(1 / p) for x >= 0 that is neither large nor, but for 0, small."""
    if isinstance(p, int) and p < 3:
        return lax.sqrt(x) if p == 2 else x
    # XLA's own roots are several times as slow, and it would keep the powers.
    return jnp.exp(jnp.log(x) * (1 / p))


def _outputs_that_vary(y, stage, runs):
    """As `_outputs`, of an array that may have size 1 along an axis."""
    begin, end = [0] * y.ndim, list(y.shape)
    for a, run in zip(stage.axes, runs, strict=True):
        if y.shape[a.axis] > 1:
            begin[a.axis], end[a.axis] = run.begin, run.end
    return lax.slice(y, begin, end)


def read_weighted(
    x: jax.Array,
    stage: Geometry,
    logits: jax.Array,
    largest: jax.Array,
    excess: jax.Array,
    *affine: jax.Array,
) -> jax.Array:
    """The sum of each window, weighted by its softmax, and by an affine factor.

    .. math:: y_o = \\sum_k e^{g_{o, k} - m_o - t_o} (a_{o, k} + c_o) x_{o, k}

    where m is the largest logit, and `excess` is t, what the logarithm of the sum has
    more: apart they are exact where their sum is large. `affine` is a and c, or
    nothing: then the factor is 1.
    """
    if large_and_whole(stage):
        weight = _share(logits, largest, excess)
        weight = weight * (affine[0] + affine[1]) if affine else weight
        return jnp.sum(weight * x, stage.pooled, keepdims=True)

    def region(runs):
        beside = [_outputs(y, stage, runs) for y in (largest, excess)]
        parts = [_taps(a, stage, runs) for a in (x, logits)]
        weights = [_share(part, *beside) for _, part in parts[1]]
        if affine:
            inner, outer = _taps(affine[0], stage, runs), affine[1]
            factors = [a + _outputs(outer, stage, runs) for _, a in inner]
            weights = [w * f for w, f in zip(weights, factors, strict=True)]
        terms = [w * part for w, (_, part) in zip(weights, parts[0], strict=True)]
        if not terms:
            return _filled(_inputs(x, stage, runs), 0)
        return functools.reduce(lax.add, terms)

    return _put_together(stage, regions, region)


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
        weight = _share(logits, largest, excess)
        return weight * (affine[0] + affine[1]) * y if affine else weight * y

    def region(runs):
        here = _input_run(logits, stage, runs)
        if not all(run.offsets for run in runs):
            return _filled(here, 0)
        blocked = _Blocked(here.shape, stage, runs)
        here, terms = blocked.split(here), []
        inner = [blocked.split(_input_run(a, stage, runs)) for a in affine[:1]]
        for _, none, spread in blocked.windows():
            term = _share(here, spread(largest), spread(excess)) * spread(y)
            for a, c in zip(inner, affine[1:], strict=True):
                term = term * (a + spread(c))
            terms.append(_where(~none, term))
        return blocked.merged(functools.reduce(lax.add, terms))

    return _put_together(stage, blocks, region)


def _share(logit, largest, excess):
    # An infinite one would be NaN where nothing comes back to it.
    most = np.asarray(np.log(np.finfo(logit.dtype).max) - 1, logit.dtype)
    return jnp.exp(lax.min(logit - largest - excess, most))


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
        return _filled(term, 0)
    if code is None:
        return term
    return _where(lax.slice(code, begin, end) == np.uint8(tap), term)


def _tabulated(y, stage, code, runs) -> jax.Array:
    """A region of any windows: a second axis for the places, and a table of taps."""
    shape = list(y.shape)
    for a, run in zip(stage.axes, runs, strict=True):
        shape[a.axis] = (run.end - run.begin) * run.width
    blocked, terms = _Blocked(shape, stage, runs), []
    for tap, none, spread in blocked.windows():
        if code is None:
            terms.append(_where(~none, spread(y)))
        else:
            wanted = np.where(none, _NO_TAP, tap).astype(np.uint8)
            terms.append(_where(spread(code) == wanted, spread(y)))
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
        for d, i in self.spatial.items():  # sharded arrays split one axis at a time
            if self._two(self.runs[i]):
                two, after = self.kept[d], x.shape[self.kept[d] + 1 :]
                x = x.reshape(*self.shape[: two + 2], *after)
        return x

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


def _bin_taps(x: jax.Array, stage: Geometry) -> list[tuple[np.uint8, jax.Array]]:
    """(code, elements) of each tap of the bins; the last element in place of none."""
    (bins,) = stage.axes
    start, last = np.asarray(bins.start), np.asarray(bins.end) - 1
    return [
        (np.uint8(tap), _rows(x, bins.axis, np.minimum(start + tap, last)))
        for tap in range(bins.window)
    ]


def _place_bins(y, stage, code) -> jax.Array:
    (bins,) = stage.axes
    if bins.axis == -1:
        # Rows are single elements here, and what made them is computed again for each.
        y = apart(y)
    shape = [bins.size if y.ndim + bins.axis == d else 1 for d in range(y.ndim)]
    terms = []
    for window, tap in covers(bins):
        term, tap = _rows(y, bins.axis, window), tap.reshape(shape)
        if code is None:
            inside = tap >= 0
        else:
            wanted = np.where(tap >= 0, tap, _NO_TAP).astype(np.uint8)
            inside = _rows(code, bins.axis, window) == wanted
        terms.append(_where(inside, term))
    return functools.reduce(lax.add, terms)


def _rows(x, axis, index) -> jax.Array:
    """Rows of `x`, which must be there."""
    return jnp.take(x, index, x.ndim + axis, mode="clip")


def keeping_nan(
    x: jax.Array,
    extremum: Callable[[jax.Array], jax.Array],
    maximum: Callable[[jax.Array], jax.Array],
) -> jax.Array:
    """`extremum(x)`, a reduction by XLA; `maximum` is the same one for int8.

    Since jax 0.10, XLA's CPU backend drops every NaN from reductions whose windows do
    not overlap: there it is looked for apart.
    """

    def apart(x):
        nan = maximum((x != x).astype(np.int8)) > 0
        return jnp.where(nan, np.array(np.nan, x.dtype), extremum(x))

    if not jnp.issubdtype(x.dtype, jnp.floating):
        return extremum(x)
    return lax.platform_dependent(x, cpu=apart, default=extremum)


def _fold_whole(x, stage, op, empty) -> jax.Array:
    over = {"axis": stage.pooled, "keepdims": True}
    reduce = jnp.max if op is lax.max else jnp.min
    return keeping_nan(
        x,
        functools.partial(reduce, **over, initial=empty),
        functools.partial(jnp.max, **over),
    )


def _choose_whole(x, y, stage, alive) -> jax.Array:
    """The first position, counted over the pooled axes; a larger number for none."""
    hit = (x == y) | (x != x)
    hit = hit if alive is None else hit & alive
    # XLA's CPU backend finds the least of floats 2 to 4 times as fast as of integers.
    few = not stage.symbolic and stage.taps < 2**24
    none = np.float32(2**24) if few else np.int32(2**31 - 1)
    position = jnp.where(hit, _positions(x, stage).astype(none.dtype), none)
    return jnp.min(position, stage.pooled, keepdims=True).astype(np.int32)


def _positions(x, stage) -> jax.Array:
    """`flat_positions` of the pooled axes, with 1 for all others."""
    shape = [1] * x.ndim
    for a in stage.axes:
        shape[a.axis] = a.size
    return flat_positions(shape, stage.pooled)


def flat_positions(shape: Sequence[Any], axes: Sequence[int]) -> jax.Array:
    """The flat index, int32 of `shape`, of each element's position along `axes`."""
    index = jnp.zeros(shape, jnp.int32)
    for a in axes:
        # The size may be symbolic: nothing that NumPy knows.
        size = jnp.asarray(shape[a], jnp.int32)
        index = index * size + lax.broadcasted_iota(jnp.int32, shape, len(shape) + a)
    return index


def apart(x: jax.Array) -> jax.Array:
    """Returns `x`, which XLA then computes once, and keeps, not what it is made of.

    XLA's CPU backend drops barriers before it fuses. What it can't see through is a
    condition that holds, but might not.
    """

    def behind_condition(x):
        always = lax.rng_uniform(np.float32(0), np.float32(1), ()) < 2
        return lax.cond(always, lambda x: x, jnp.zeros_like, x)

    return lax.platform_dependent(
        x, cpu=behind_condition, default=lax.optimization_barrier
    )


def _put_together(
    stage: Geometry,
    cut: Callable[[Axis], Sequence[Any]],
    region: Callable[[tuple[Any, ...]], jax.Array],
) -> jax.Array:
    """Concatenates `region(runs)` over all combinations of the axes' runs."""

    def along(axes, runs):
        if not axes:
            return region(runs)
        parts = [along(axes[1:], (*runs, run)) for run in cut(axes[0])]
        if len(parts) == 1:
            return parts[0]
        return lax.concatenate(parts, parts[0].ndim + axes[0].axis)

    return along(stage.axes, ())


def _taps(
    x: jax.Array, stage: Geometry, runs: tuple[Region, ...]
) -> list[tuple[int, jax.Array]]:
    """(code, elements) of each tap of the windows in a region, in row-major order."""
    taps = []
    for combination in itertools.product(*(run.taps for run in runs)):
        begin, end, step, code = [0] * x.ndim, list(x.shape), [1] * x.ndim, 0
        for a, run, tap in zip(stage.axes, runs, combination, strict=True):
            start = run.begin * a.stride - a.low + tap * a.dilation
            begin[a.axis] = start
            end[a.axis] = start + (run.end - run.begin - 1) * a.stride + 1
            step[a.axis] = a.stride
            code = code * a.window + tap
        taps.append((code, lax.slice(x, begin, end, step)))
    return taps


def _outputs(y: jax.Array, stage: Geometry, runs: tuple[Region, ...]) -> jax.Array:
    """The part of an output that belongs to a region."""
    begin, end = [0] * y.ndim, list(y.shape)
    for a, run in zip(stage.axes, runs, strict=True):
        begin[a.axis], end[a.axis] = run.begin, run.end
    return lax.slice(y, begin, end)


def _inputs(x: jax.Array, stage: Geometry, runs: tuple[Region, ...]) -> jax.Array:
    """Any array with the shape of a region's output, made of `x`."""
    begin, end = [0] * x.ndim, list(x.shape)
    shape = list(x.shape)
    for a, run in zip(stage.axes, runs, strict=True):
        end[a.axis], shape[a.axis] = 1, run.end - run.begin
    return jnp.broadcast_to(lax.slice(x, begin, end), shape)


def _filled(like: jax.Array, value: Any) -> jax.Array:
    """A constant, laid out on devices as `like` is; XLA sees that both are the same."""
    value = np.asarray(value)
    value = value.astype(value.dtype if value.dtype == np.uint8 else like.dtype)
    return jnp.where(like == like, value, value)


def _where(condition: jax.Array | np.ndarray, x: jax.Array) -> jax.Array:
    if isinstance(condition, np.ndarray) and condition.all():
        return x
    return jnp.where(condition, x, np.array(0, x.dtype))
