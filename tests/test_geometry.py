"""Windows, bins and sizes in plain ints, against enumeration of their positions."""

import itertools
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax

import jaxpool
from jaxpool._core.arguments import check_padding
from jaxpool._core.geometry import Geometry, adaptive_bounds
from jaxpool._core.window import Window

SIZES = range(13)
WINDOWS = range(1, 9)
STRIDES = range(1, 6)
DILATIONS = (1, 2, 3)
PADS = tuple(itertools.product(range(4), repeat=2))


def geometry_of(shape, *args, **kwargs):
    return Geometry.of(Window.of("pool", *args, **kwargs), shape)


def lay(window, size):
    """The geometry of an array with one pooled axis, or None where it is refused."""
    try:
        return Geometry.of(window, (size, 1))
    except ValueError:
        return None


def slide(size, window, stride, dilation, low, high, ceil_mode):
    """Positions of every window, found by moving it until it no longer counts.

    A window counts if it ends inside the padded input. Rounding up, it also counts if
    the one before ended there, short of the end, and it starts inside the input or the
    padding in front.
    """
    offsets = [k * dilation for k in range(window)]
    windows, start = [], -low
    while True:
        counts = start + offsets[-1] < size + high
        if ceil_mode:
            before = start - stride + offsets[-1]
            counts |= before < size + high - 1 and start < size
        if not counts:
            return windows
        windows.append([start + offset for offset in offsets])
        start += stride


def facts(geometry):
    """What the library says about an array with one pooled axis."""
    (a,) = geometry.axes
    return {
        "out": a.out,
        "low": a.low,
        "high": a.high,
        "elements": a.counts(False).tolist(),
        "counted": a.counts(True).tolist(),
        "whole": geometry.whole,
    }


def facts_by_hand(size, windows, low, high):
    """The same facts, by looking at every position of every window."""
    last = max(map(max, windows))
    inside, padded = range(size), range(-low, size + high)
    return {
        "out": len(windows),
        "low": low,
        "high": max(high, last + 1 - size),
        "elements": [sum(i in inside for i in w) for w in windows],
        "counted": [sum(i in padded for i in w) for w in windows],
        "whole": windows == [list(inside)],
    }


# One window on one axis.


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("dilation", DILATIONS)
def test_explicit_padding_equals_enumeration(dilation, ceil_mode):
    laid = refused = 0
    for k, stride, (low, high) in itertools.product(WINDOWS, STRIDES, PADS):
        window = Window.of("pool", (k,), stride, [(low, high)], dilation, ceil_mode)
        for size in SIZES:
            config = (size, k, stride, (low, high), dilation, ceil_mode)
            windows = slide(size, k, stride, dilation, low, high, ceil_mode)
            geometry = lay(window, size)
            assert (geometry is None) == (size == 0 or not windows), config
            if geometry is None:
                refused += 1
                continue
            laid += 1
            assert facts(geometry) == facts_by_hand(size, windows, low, high), config
    assert laid > 2000
    assert refused > 200


@pytest.mark.parametrize("ceil_mode", [False, True])
def test_valid_is_padding_of_zero(ceil_mode):
    for k, stride, dilation in itertools.product(WINDOWS, STRIDES, DILATIONS):
        rest = (dilation, ceil_mode)
        valid = Window.of("pool", (k,), stride, "VALID", *rest)
        zero = Window.of("pool", (k,), stride, 0, *rest)
        for size in SIZES:
            config = (size, k, stride, *rest)
            assert lay(valid, size) == lay(zero, size), config


def test_windows_of_nothing_but_padding_are_known():
    """Those that reach the input no more, unlike such that step over its elements."""
    refused = 0
    for k, stride, dilation, (low, high) in itertools.product(
        WINDOWS, STRIDES, DILATIONS, itertools.product(range(0, 9, 2), repeat=2)
    ):
        window = Window.of("pool", (k,), stride, [(low, high)], dilation)
        for size in (1, 2, 5):
            windows = slide(size, k, stride, dilation, low, high, False)
            if not windows:
                continue
            config = (size, k, stride, dilation, (low, high))
            outside = any(w[-1] < 0 or w[0] >= size for w in windows)
            refused += outside
            try:
                check_padding("pool", lay(window, size), window.padding)
            except ValueError:
                assert outside, config
            else:
                assert not outside, config
    assert refused > 200


@pytest.mark.parametrize("padding", ["SAME", "SAME_LOWER", "same", "same_lower"])
def test_same_padding_is_that_of_xla(padding):
    for k, stride, dilation in itertools.product(range(1, 15), STRIDES, DILATIONS):
        window = Window.of("pool", (k,), stride, padding, dilation)
        for size in SIZES:
            config = (size, k, stride, dilation)
            geometry = lay(window, size)
            if size == 0:
                assert geometry is None, config
                continue
            starts = range(0, size, stride)  # one window for every stride-th element
            span = 1 + (k - 1) * dilation
            missing = max(starts[-1] + span - size, 0)
            smaller, larger = missing // 2, missing - missing // 2
            low, high = smaller, larger
            if padding.upper() == "SAME_LOWER":
                low, high = larger, smaller
            (xla,) = lax.padtype_to_pads((size,), (span,), (stride,), padding.upper())
            assert (low, high) == tuple(xla), config
            windows = [[s - low + i * dilation for i in range(k)] for s in starts]
            assert facts(geometry) == facts_by_hand(size, windows, low, high), config


def test_ceil_mode_leaves_same_padding_alone():
    for size, k, stride in itertools.product(SIZES, WINDOWS, STRIDES):
        for padding in ("SAME", "SAME_LOWER"):
            floor, ceil = (
                Window.of("pool", (k,), stride, padding, 1, mode)
                for mode in (False, True)
            )
            assert lay(floor, size) == lay(ceil, size), (size, k, stride, padding)


def test_every_window_fits_and_starts_where_it_may():
    for k, stride, dilation in itertools.product(WINDOWS, STRIDES, DILATIONS):
        for padding, mode in itertools.product(
            ["VALID", "SAME", "SAME_LOWER", *([p] for p in PADS)], [False, True]
        ):
            if isinstance(padding, list) and max(padding[0]) > (k - 1) * dilation:
                continue
            window = Window.of("pool", (k,), stride, padding, dilation, mode)
            for size in (1, 2, 5, 12):
                geometry = lay(window, size)
                if geometry is None:
                    continue
                config = (size, k, stride, padding, dilation, mode)
                (a,) = geometry.axes
                last = (a.out - 1) * stride - a.low
                assert a.out >= 1, config
                assert last < size, config
                assert last + (k - 1) * dilation < size + a.high, config
                assert min(a.low, a.high, a.counted_high) >= 0, config
                assert a.high >= a.counted_high, config
                counted, elements = a.counts(True), a.counts(False)
                assert (counted >= elements).all(), config
                assert (counted <= k).all(), config
                if dilation == 1:  # else the input may lie between two elements
                    assert (elements >= 1).all(), config


# Values that have to be exactly these: the formulas above, worked out on paper.
WORKED = [
    # size, window, strides, padding, ceil_mode, out, low, high, counted, elements
    (5, 2, 2, "VALID", False, 2, 0, 0, [2, 2], [2, 2]),
    (5, 2, 2, "VALID", True, 3, 0, 1, [2, 2, 1], [2, 2, 1]),
    (5, 2, 2, "SAME", False, 3, 0, 1, [2, 2, 2], [2, 2, 1]),
    (5, 2, 2, "SAME_LOWER", False, 3, 1, 0, [2, 2, 2], [1, 2, 2]),
    (4, 3, 1, 1, False, 4, 1, 1, [3, 3, 3, 3], [2, 3, 3, 2]),
    # The overhang of ceil mode counts for nothing, the padding in front of it does.
    (6, 3, 2, 1, True, 4, 1, 2, [3, 3, 3, 2], [2, 3, 3, 1]),
    # A third window would start behind the input.
    (2, 2, 2, 1, True, 2, 1, 1, [2, 2], [1, 1]),
    (3, 1, 4, "VALID", True, 1, 0, 0, [1], [1]),
    # The window is larger than the input: refused, unless the size is rounded up.
    (2, 3, 2, "VALID", True, 1, 0, 1, [2], [2]),
]


@pytest.mark.parametrize("case", WORKED, ids=str)
def test_worked_examples(case):
    size, k, stride, padding, mode, out, low, high, counted, elements = case
    (a,) = lay(Window.of("pool", (k,), stride, padding, 1, mode), size).axes
    assert (a.out, a.low, a.high) == (out, low, high)
    assert a.counts(True).tolist() == counted
    assert a.counts(False).tolist() == elements


# Several axes.


def test_axes_are_independent():
    rng = random.Random(0)
    for _ in range(500):
        k, s, d, size = (
            [rng.randint(1, top) for _ in range(3)] for top in (4, 3, 2, 9)
        )
        spans = [1 + (a - 1) * b for a, b in zip(k, d, strict=True)]
        padding = [(rng.randrange(n), rng.randrange(n)) for n in spans]
        mode = rng.random() < 0.5
        config = (size, k, s, padding, d, mode)
        single = [
            lay(Window.of("pool", (k[i],), s[i], [padding[i]], d[i], mode), size[i])
            for i in range(3)
        ]
        window = Window.of("pool", k, s, padding, d, mode)
        shape = (7, *size, 5)
        if None in single:
            with pytest.raises(ValueError, match="leaves nothing to pool"):
                Geometry.of(window, shape)
            continue
        geometry = Geometry.of(window, shape)
        axes = [g.axes[0] for g in single]
        assert geometry.out_shape(shape) == (7, *(a.out for a in axes), 5), config
        pads = ((0, 0), *((a.low, a.high) for a in axes), (0, 0))
        assert geometry.pads(5) == pads, config
        assert geometry.full(5, "window", 1) == (1, *k, 1), config
        assert geometry.sizes == tuple(size), config
        assert geometry.pooled == (-4, -3, -2), config
        assert geometry.taps == k[0] * k[1] * k[2], config
        assert geometry.whole == all(g.whole for g in single), config
        for include_pad in (False, True):
            rows = [a.counts(include_pad) for a in axes]
            counts = np.einsum("i,j,k->ijk", *rows)[None, ..., None]
            got = geometry.counts(5, include_pad)
            np.testing.assert_array_equal(got, counts, err_msg=str(config))


def test_order_of_named_axes_does_not_matter():
    k, s, d, pads = (2, 4, 3), (2, 1, 3), (1, 2, 1), ((0, 1), (2, 3), (1, 0))
    shape = (11, 12, 13, 14)
    for named in itertools.permutations((0, 1, 3)):
        geometry = geometry_of(shape, k, s, pads, d, True, named)
        for order in itertools.permutations(range(3)):
            arguments = [[x[i] for i in order] for x in (k, s, pads, d)]
            axis = [named[i] for i in order]
            negative = [a - 4 for a in axis]
            for same in (axis, negative):
                other = geometry_of(shape, *arguments, True, same)
                assert other is geometry or other == geometry, (named, order)
                assert other.out_shape(shape) == geometry.out_shape(shape)
        assert geometry.pooled == (-4, -3, -1)
    swapped = geometry_of((1, 8, 9, 1), (3, 2), axis=(2, 1))
    assert swapped == geometry_of((1, 8, 9, 1), (2, 3), axis=(1, 2))
    assert swapped.out_shape((1, 8, 9, 1)) == (1, 7, 7, 1)


def test_default_axes_are_those_before_the_channels():
    for leading in range(4):
        shape = (*range(5, 5 + leading), 8, 9, 3)
        default = geometry_of(shape, (2, 3))
        assert default.pooled == (-3, -2)
        assert default == geometry_of(shape, (2, 3), axis=(-3, -2))
        assert default.out_shape(shape) == (*shape[:leading], 7, 7, 3)


def test_a_window_of_none_is_the_whole_extent():
    for axis in ((1,), (1, 2), (-2, 1), (0, 3), (0, 1, 2, 3)):
        shape = (2, 5, 1, 4)
        geometry = geometry_of(shape, None, axis=axis)
        assert geometry.whole
        out = tuple(1 if i in {a % 4 for a in axis} else n for i, n in enumerate(shape))
        assert geometry.out_shape(shape) == out
        window = tuple(shape[a] for a in geometry.pooled)
        assert geometry == geometry_of(shape, window, axis=geometry.pooled)
    with pytest.raises(ValueError, match="must have elements along the pooled axes"):
        geometry_of((2, 0, 3), None, axis=1)


# Bins of a given number.


def test_adaptive_bounds_equal_the_formula():
    for size, out in itertools.product(range(1, 65), repeat=2):
        start, end = adaptive_bounds(size, out)
        for o in range(out):
            # Element i is the interval [i, i + 1) and bin o is [o, o + 1) * size / out:
            # an element belongs to every bin that it overlaps.
            member = [
                i
                for i in range(size)
                if i * out < (o + 1) * size and (i + 1) * out > o * size
            ]
            config = (size, out, o)
            assert member == list(range(start[o], end[o])), config
        assert start[0] == 0, (size, out)
        assert end[-1] == size, (size, out)


# The same facts through the public function, and as keys of a cache.


def test_output_shape_is_that_of_the_op():
    rng = random.Random(1)
    checked = 0
    while checked < 150:
        rank = rng.randint(1, 3)
        k, s, d, size = (
            tuple(rng.randint(1, top) for _ in range(rank)) for top in (4, 3, 2, 9)
        )
        spans = [1 + (a - 1) * b for a, b in zip(k, d, strict=True)]
        explicit = [(rng.randrange(n), rng.randrange(n)) for n in spans]
        padding = rng.choice(["VALID", "SAME", "SAME_LOWER", explicit])
        shape = (*rng.choice([(), (2,), (2, 3)]), *size, 4)
        kwargs = {"window_dilation": d, "ceil_mode": rng.random() < 0.5}
        x = jax.ShapeDtypeStruct(shape, jnp.float32)
        try:
            expected = jaxpool.output_shape(shape, k, s, padding, **kwargs)
        except ValueError:
            with pytest.raises(ValueError, match="leaves nothing to pool"):
                jaxpool.max_pool(jnp.zeros(shape), k, s, padding, **kwargs)
            continue
        checked += 1
        y = jax.eval_shape(lambda x: jaxpool.max_pool(x, k, s, padding, **kwargs), x)  # noqa: B023
        assert y.shape == expected, (shape, k, s, padding, kwargs)


def test_one_object_for_the_same_request():
    def request():
        return geometry_of((2, 12, 13, 3), [3, 2], (2, 2), ((1, 0), (0, 1)), 1, True)

    window = Window.of("pool", (3, 2))
    assert request() is request()
    assert hash(request()) == hash(request())
    assert hash(window) == hash(Window.of("pool", [np.int64(3), 2], 1, "valid"))
    assert window == Window.of("pool", [np.int64(3), 2], 1, "valid")
    assert window != Window.of("pool", (2, 3))
    assert len({request(), request(), geometry_of((2, 12, 13, 3), (3, 2))}) == 2
    # Leading axes, channels and the name of the function that asks change nothing else.
    assert geometry_of((9, 9, 2, 12, 13, 7), (3, 2)) == geometry_of((12, 13, 1), (3, 2))


def test_axes_that_are_not_pooled_may_be_symbolic():
    batch, channels = export.symbolic_shape("b, c")
    window = Window.of("pool", (3, 3), (2, 2), "SAME")
    symbolic = Geometry.of(window, (batch, 8, 9, channels))
    assert symbolic is Geometry.of(window, (2, 8, 9, 3))
    out = symbolic.out_shape((batch, 8, 9, channels))
    assert out == (batch, 4, 5, channels)
    pooled = Geometry.of(Window.of("pool", (3, 3), (2, 2)), (2, batch, 9, 3))
    assert pooled.symbolic
    assert not symbolic.symbolic
    assert pooled.out_shape((2, batch, 9, 3)) == (2, (batch - 3) // 2 + 1, 4, 3)


@pytest.mark.parametrize("op", ["max_pool", "avg_pool", "soft_pool", "lp_pool"])
def test_places_that_are_padding_for_every_window_cost_nothing(op):
    """Windows of any size, laid over a few elements, are those that these see."""
    x, f = np.arange(1.0, 7.0, dtype=np.float32)[:, None], getattr(jaxpool, op)
    largest, fits = 2**31 - 1, 11  # all outputs see all elements
    kwargs = {"divisor_override": 6} if op == "avg_pool" else {}
    y = f(x, (largest,), padding="SAME", **kwargs)
    np.testing.assert_allclose(y, f(x, (fits,), padding="SAME", **kwargs), rtol=1e-6)
    product = jaxpool.pool(x, 1.0, jax.lax.mul, (largest,), padding="SAME")
    np.testing.assert_allclose(product, np.full((6, 1), 720.0))
    # What is no identity enters once, and once for each place of padding.
    total = jaxpool.pool(x, 1.0, jax.lax.add, (1001,), padding="SAME")
    np.testing.assert_allclose(total, np.full((6, 1), 21.0 + 1 + 995))


@pytest.mark.parametrize("size", [2**31, 2**40, 2**62])
def test_axes_that_int32_cannot_count_are_refused(size):
    """By name and at once; batch axes may be as large as they like."""
    x = jax.ShapeDtypeStruct((1, size, 1), np.float32)
    for f in (jaxpool.max_pool, jaxpool.adaptive_avg_pool, jaxpool.blur_pool):
        with pytest.raises(ValueError, match=f"`{f.__name__}`: `x` must have fewer"):
            jax.eval_shape(lambda x, f=f: f(x, (3,)), x)
    with pytest.raises(ValueError, match="`attention_pool`: `x` must have fewer"):
        jax.eval_shape(lambda x: jaxpool.attention_pool(x, {}, num_heads=1), x)
    batch = jax.ShapeDtypeStruct((size, 4, 1), np.float32)
    y = jax.eval_shape(lambda x: jaxpool.max_pool(x, (2,)), batch)
    assert y.shape == (size, 3, 1)


def test_a_stride_beyond_the_input_is_as_good_as_any():
    """The derivative has a table of as many entries as a stride: no more than fit."""
    x = np.arange(6.0, dtype=np.float32)[:, None]
    f = lambda x: jaxpool.max_pool(x, (3,), (2**31 - 1,)).sum()  # noqa: E731
    np.testing.assert_array_equal(jax.grad(f)(x)[:, 0], [0, 0, 1, 0, 0, 0])
