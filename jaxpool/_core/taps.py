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
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxpool._core.geometry import Axis, Geometry
from jaxpool._core.numerics import accumulation_dtype
from jaxpool._core.stages import (
    Region,
    large_and_whole,
    regions,
)

__all__ = [
    "NONE",
    "apart",
    "choose",
    "combine",
    "derivatives_apart",
    "elements",
    "filled",
    "flat_positions",
    "fold",
    "folded",
    "keeping_nan",
    "masked",
    "outputs",
    "positions",
    "put_together",
    "read",
    "read_weighted",
    "rows",
    "share",
]

NONE = np.uint8(255)


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
        parts = [part.astype(wide) for _, part in _bin_taps(x, stage)]
        return functools.reduce(op, parts).astype(x.dtype)

    def region(runs):
        slices = [part.astype(wide) for _, part in elements(x, stage, runs)]
        if not slices:
            return filled(_inputs(x, stage, runs), empty)
        return functools.reduce(op, slices).astype(x.dtype)

    return put_together(stage, regions, region)


def choose(
    x: jax.Array,
    y: jax.Array,
    stage: Geometry,
    alive: jax.Array | None = None,
    kind: np.dtype = NONE.dtype,
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
        code = filled(target, last).astype(kind)
        masks = [mask for _, mask in masks] or [None] * len(slices)
        for (tap, part), mask in reversed(list(zip(slices, masks, strict=True))):
            if tap != last:
                part = part.astype(wide)
                hit = (part == target) | (part != part)
                hit = hit if mask is None else hit & mask
                code = jnp.where(hit, kind.type(tap), code)
        return code

    if stage.binned:
        masks = [] if alive is None else _bin_taps(alive, stage)
        # Without the barrier XLA keeps the rows that `fold` has read, all of them.
        return first(y, _bin_taps(lax.optimization_barrier(x), stage), masks)

    def region(runs):
        masks = [] if alive is None else elements(alive, stage, runs)
        return first(outputs(y, stage, runs), elements(x, stage, runs), masks)

    return put_together(stage, regions, region)


def combine(
    formula: Callable[..., jax.Array],
    stage: Geometry,
    arrays: Sequence[jax.Array],
    beside: Sequence[jax.Array] = (),
    nothing: float = 0,
) -> jax.Array:
    """`formula(*parts, *beside)`, with the elements of each window of `arrays`.

    Each of `parts` is a list of arrays. Arrays `beside` have a value for each window,
    or for all along an axis. Half precision is computed in float32; the result has the
    dtype of the first array. A window without elements gives `nothing`.
    """
    (first, *_), wide = arrays, [accumulation_dtype(x.dtype) for x in arrays]

    def region(runs):
        parts = [
            [part.astype(dtype) for _, part in elements(x, stage, runs)]
            for x, dtype in zip(arrays, wide, strict=True)
        ]
        if not parts[0]:
            return filled(_inputs(first, stage, runs), nothing)
        others = [outputs(y, stage, runs) for y in beside]
        return formula(*parts, *others).astype(first.dtype)

    return put_together(stage, regions, region)


def folded(
    formula: Callable[..., jax.Array],
    stage: Geometry,
    arrays: Sequence[jax.Array],
    beside: Sequence[jax.Array] = (),
    nothing: float = 0,
) -> jax.Array:
    """As `combine`, of a formula that only folds over the elements.

    It has one argument more, a function that folds them with `lax.add` or `lax.max`.
    """
    if large_and_whole(stage):
        over = {lax.add: jnp.sum, lax.max: jnp.max}

        def fold(op, parts):
            return over[op](parts[0], stage.pooled, keepdims=True)

        return formula(*([x] for x in arrays), *beside, fold)
    return combine(
        lambda *args: formula(*args, functools.reduce), stage, arrays, beside, nothing
    )


def read(x: jax.Array, stage: Geometry, code: jax.Array | None = None) -> jax.Array:
    """The sum of each window, or of the one element that its code names.

    .. math:: y_o = \\sum_k [c_o = k] x_{o s - p + k d}
    """
    if large_and_whole(stage):
        x = x if code is None else masked(code == positions(x, stage), x)
        return jnp.sum(x, stage.pooled, dtype=x.dtype, keepdims=True)
    if stage.binned:
        counts = stage.counts(x.ndim, False)
        terms = [
            masked(counts > tap if code is None else code == code.dtype.type(tap), part)
            for tap, part in _bin_taps(x, stage)
        ]
        return functools.reduce(lax.add, terms)

    def region(runs):
        slices = elements(x, stage, runs)
        if code is None:
            terms = [part for _, part in slices]
        else:
            codes = outputs(code, stage, runs)
            kind = codes.dtype.type
            terms = [masked(codes == kind(tap), part) for tap, part in slices]
        if not terms:
            return filled(_inputs(x, stage, runs), 0)
        return functools.reduce(lax.add, terms)

    return put_together(stage, regions, region)


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
        weight = share(logits, largest, excess)
        weight = weight * (affine[0] + affine[1]) if affine else weight
        return jnp.sum(weight * x, stage.pooled, keepdims=True)

    def region(runs):
        beside = [outputs(y, stage, runs) for y in (largest, excess)]
        parts = [elements(a, stage, runs) for a in (x, logits)]
        weights = [share(part, *beside) for _, part in parts[1]]
        if affine:
            inner, outer = elements(affine[0], stage, runs), affine[1]
            factors = [a + outputs(outer, stage, runs) for _, a in inner]
            weights = [w * f for w, f in zip(weights, factors, strict=True)]
        terms = [w * part for w, (_, part) in zip(weights, parts[0], strict=True)]
        if not terms:
            return filled(_inputs(x, stage, runs), 0)
        return functools.reduce(lax.add, terms)

    return put_together(stage, regions, region)


def share(logit: jax.Array, largest: jax.Array, excess: jax.Array) -> jax.Array:
    """The weight of an element, as `read_weighted` has it."""
    # An infinite one would be NaN where nothing comes back to it.
    most = np.asarray(np.log(np.finfo(logit.dtype).max) - 1, logit.dtype)
    return jnp.exp(lax.min(logit - largest - excess, most))


def _bin_taps(x: jax.Array, stage: Geometry) -> list[tuple[np.uint8, jax.Array]]:
    """(code, elements) of each tap of the bins; the last element in place of none."""
    (bins,) = stage.axes
    start, last = np.asarray(bins.start), np.asarray(bins.end) - 1
    return [
        (np.uint8(tap), rows(x, bins.axis, np.minimum(start + tap, last)))
        for tap in range(bins.window)
    ]


def rows(x: jax.Array, axis: int, index: np.ndarray) -> jax.Array:
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
    position = jnp.where(hit, positions(x, stage).astype(none.dtype), none)
    return jnp.min(position, stage.pooled, keepdims=True).astype(np.int32)


def positions(x: jax.Array, stage: Geometry) -> jax.Array:
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


def apart(x: Any) -> Any:
    """Returns `x`, which XLA then computes once, and keeps, not what it is made of.

    Several arrays, as a tree, go behind one condition, which compiles faster.

    XLA's CPU backend drops barriers before it fuses. What it can't see through is a
    condition that holds, but might not.
    """

    def behind_condition(x):
        always = lax.rng_uniform(np.float32(0), np.float32(1), ()) < 2
        zeros = functools.partial(jax.tree.map, jnp.zeros_like)
        return lax.cond(always, lambda x: x, zeros, x)

    return lax.platform_dependent(
        x, cpu=behind_condition, default=lax.optimization_barrier
    )


@jax.custom_jvp
def derivatives_apart(x: Any) -> Any:
    """Returns `x`, whose derivatives are `apart`.

    For what is read many times by a long formula: XLA would compute a gradient again
    for each element that it may belong to.
    """
    return x


@derivatives_apart.defjvp
def _derivatives_apart_jvp(primals, tangents):
    return derivatives_apart(*primals), apart(*tangents)


def put_together(
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


def elements(
    x: jax.Array, stage: Geometry, runs: tuple[Region, ...]
) -> list[tuple[int, jax.Array]]:
    """(code, elements) of each tap of the windows in a region, in row-major order."""
    parts = []
    for combination in itertools.product(*(run.taps for run in runs)):
        begin, end, step, code = [0] * x.ndim, list(x.shape), [1] * x.ndim, 0
        for a, run, tap in zip(stage.axes, runs, combination, strict=True):
            start = run.begin * a.stride - a.low + tap * a.dilation
            begin[a.axis] = start
            end[a.axis] = start + (run.end - run.begin - 1) * a.stride + 1
            step[a.axis] = a.stride
            code = code * a.window + tap
        parts.append((code, lax.slice(x, begin, end, step)))
    return parts


def outputs(y: jax.Array, stage: Geometry, runs: tuple[Region, ...]) -> jax.Array:
    """The part of an output that belongs to a region; all along an axis of size 1."""
    begin, end = [0] * y.ndim, list(y.shape)
    for a, run in zip(stage.axes, runs, strict=True):
        if y.shape[a.axis] != 1:
            begin[a.axis], end[a.axis] = run.begin, run.end
    return lax.slice(y, begin, end)


def _inputs(x: jax.Array, stage: Geometry, runs: tuple[Region, ...]) -> jax.Array:
    """Any array with the shape of a region's output, made of `x`."""
    begin, end = [0] * x.ndim, list(x.shape)
    shape = list(x.shape)
    for a, run in zip(stage.axes, runs, strict=True):
        end[a.axis], shape[a.axis] = 1, run.end - run.begin
    return jnp.broadcast_to(lax.slice(x, begin, end), shape)


def filled(like: jax.Array, value: Any) -> jax.Array:
    """A constant, laid out on devices as `like` is; XLA sees that both are the same."""
    value = np.asarray(value)
    value = value.astype(value.dtype if value.dtype == np.uint8 else like.dtype)
    return jnp.where(like == like, value, value)


def masked(condition: jax.Array | np.ndarray, x: jax.Array) -> jax.Array:
    """`x` where the condition holds, else 0."""
    if isinstance(condition, np.ndarray) and condition.all():
        return x
    return jnp.where(condition, x, np.array(0, x.dtype))
