"""How windows are computed: stages, their transposes, and what compiled programs hold.

What the ops mean is tested elsewhere, against an oracle. Here are the promises of the
form they are computed in: that taking a window apart changes nothing, that derivatives
neither scatter nor keep the input, and that programs stay small.
"""

import functools
import itertools
import math
import re

import chex
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from programs import equations

import jaxpool
from jaxpool._core import linear, places, taps
from jaxpool._core.geometry import Axis, Bins, Geometry, adaptive_axis
from jaxpool._core.stages import (
    MOST_TAPS,
    blocks,
    covers,
    holds_nothing,
    large_and_whole,
    regions,
    stages,
    sum_stages,
)
from jaxpool._core.window import Window

WINDOWS = [*range(1, 21), 22, 33, 65]


def lay(sizes, window, strides=1, padding="VALID", dilation=1, ceil_mode=False):
    """The geometry of a window over all axes of an array of shape `sizes`."""
    axes = tuple(range(-len(sizes), 0))
    spec = (window, strides, padding, dilation, ceil_mode, axes)
    return Geometry.of(Window.of("test", *spec), sizes)


def bins(sizes, outs):
    """The geometry of adaptive pooling over all axes of an array of shape `sizes`."""
    pairs = zip(range(-len(sizes), 0), sizes, outs, strict=True)
    return Geometry(tuple(adaptive_axis(*pair) for pair in pairs))


@functools.cache
def lines(window):
    """Geometries of one axis: strides, dilations, pads, and sizes around the window."""
    found = []
    for stride, dilation in itertools.product((1, 2, 3, 5), (1, 2)):
        span = (window - 1) * dilation + 1
        same = ((span - 1) // 2, span // 2)
        for pads in {(0, 0), same, (span - 1, 0), (0, span - 1)}:
            for size in {1, 4, window, span, span + 6, 2 * span + 3}:
                if size + sum(pads) >= span:
                    ceil = (size + stride) % 2 > 0
                    line = (window,), (stride,), (pads,), (dilation,), ceil
                    found.append(lay((size,), *line))
    return found


def elements(stage, shape):
    """Flat positions `[taps, *out]` of a stage's elements; -1 for those in padding."""
    index = np.arange(math.prod(shape)).reshape(shape)
    for n, a in enumerate(stage.axes):
        assert shape[a.axis] == a.size
        assert a.out > 0  # there is no program without outputs, nor a stage
        at = index.ndim + a.axis
        if isinstance(a, Bins):
            places = np.array(a.start)[:, None] + np.arange(a.window)
            inside = places < np.array(a.end)[:, None]
        else:
            starts = np.arange(a.out) * a.stride - a.low
            places = starts[:, None] + np.arange(a.window) * a.dilation
            inside = (places >= 0) & (places < a.size)
        index = np.take(index, np.where(inside, places, 0), at)
        inside = inside.reshape(*inside.shape, *[1] * (index.ndim - at - 2))
        index = np.moveaxis(np.where(inside, index, -1), at + 1, n)
    return index.reshape(-1, *index.shape[len(stage.axes) :])


def first_maximum(x, source, stage):
    """Each window's maximum and the source of the first element that is maximal.

    A source of -1 marks what is no element, whatever its value.
    """
    index = elements(stage, x.shape)
    sources = np.where(index >= 0, source.ravel()[index], -1)
    values = np.where(sources >= 0, x.ravel()[index], -np.inf)
    best = values.max(0)
    first = np.argmax((values == best) & (sources >= 0), 0)
    return best, np.take_along_axis(sources, first[None], 0)[0]


def total(x, stage):
    index = elements(stage, x.shape)
    return np.where(index >= 0, x.ravel()[index], 0).sum(0)


def check_choice(geometry, x):
    """Asserts that stage after stage ends at the same element as all at once."""
    source = np.arange(x.size).reshape(x.shape)
    expected = first_maximum(x, source, geometry)
    for stage in stages(geometry):
        x, source = first_maximum(x, source, stage)
    np.testing.assert_array_equal(x, expected[0], str(geometry))
    np.testing.assert_array_equal(source, expected[1], str(geometry))


def check_sum(geometry, x):
    expected = total(x, geometry)
    for chains in sum_stages(geometry):
        x = sum(functools.reduce(total, chain, x) for chain in chains)
    np.testing.assert_array_equal(x, expected, str(geometry))


def all_sum_stages(geometry):
    return [
        stage for group in sum_stages(geometry) for chain in group for stage in chain
    ]


def few_values(rng, shape):
    """Many ties, some of them at what stands for nothing."""
    return rng.choice(np.array([-np.inf, 0, 1]), shape, p=(0.5, 0.3, 0.2))


def integers(rng, *shape):
    """Whole numbers so small that float32 adds them without rounding, in any order."""
    return jnp.asarray(rng.integers(-8, 9, shape).astype(np.float32))


class TestStages:
    @pytest.mark.parametrize("window", WINDOWS)
    def test_choose_the_same_element(self, window):
        rng = np.random.default_rng(window)
        for geometry in lines(window):
            check_choice(geometry, few_values(rng, geometry.sizes))

    @pytest.mark.parametrize("window", WINDOWS)
    def test_add_each_element_once(self, window):
        rng = np.random.default_rng(window)
        for geometry in lines(window):
            # Numbers so large that no other selection has the same sum.
            check_sum(geometry, rng.integers(1, 2**40, geometry.sizes))

    @pytest.mark.parametrize(
        "line",
        [
            ((9, 11), (5, 4), (1, 1), "SAME"),
            ((9, 11), (2, 3), (2, 1), "SAME"),
            ((9, 11), (11, 1), (3, 2), ((6, 9), (0, 0))),
            ((9, 6), (9, 6)),
            ((2, 9), (4, 4), (1, 2), ((9, 4), (2, 1)), (4, 1)),
            ((4, 5, 6), (2, 3, 4), (1, 2, 1), "SAME_LOWER"),
        ],
        ids=str,
    )
    def test_several_axes_keep_ties_row_major(self, line):
        geometry, rng = lay(*line), np.random.default_rng(0)
        for _ in range(5):
            check_choice(geometry, few_values(rng, geometry.sizes))
            check_sum(geometry, rng.integers(1, 2**40, geometry.sizes))

    @pytest.mark.parametrize("size", [*range(1, 31), 100, 225, 1000])
    def test_bins(self, size):
        rng = np.random.default_rng(size)
        for out in (*range(1, 31), 33, 300):
            geometry = bins((size,), (out,))
            check_choice(geometry, few_values(rng, (size,)))
            check_sum(geometry, rng.integers(1, 2**40, (size,)))
            for form, most in ((stages, MOST_TAPS), (all_sum_stages, 13)):
                found = [s for s in form(geometry) if not large_and_whole(s)]
                assert all(s.taps <= most for s in found), (size, out)

    def test_bins_of_several_axes(self):
        geometry, rng = bins((5, 9, 13), (3, 3, 20)), np.random.default_rng(0)
        kinds = [type(a) for a in geometry.axes]
        assert kinds == [Bins, Axis, Bins]
        for _ in range(5):
            check_choice(geometry, few_values(rng, geometry.sizes))
            check_sum(geometry, rng.integers(1, 2**40, geometry.sizes))

    @pytest.mark.parametrize(
        ("window", "stride"), [(33, 32), (32, 32), (48, 36), (100, 50), (1000, 500)]
    )
    def test_large_strides_compute_little(self, window, stride):
        # What the stages compute, all together, is no more than half of the input.
        geometry = lay((window + 6 * stride,), (window,), (stride,))
        computed = sum(a.out for stage in stages(geometry) for a in stage.axes)
        assert computed <= geometry.sizes[0] / 2

    @pytest.mark.parametrize(
        ("stages", "most"),
        # A prime of taps can't be taken apart without an addition of its own.
        [(stages, MOST_TAPS), (all_sum_stages, 13)],
        ids=["choice", "sum"],
    )
    def test_few_taps(self, stages, most):
        # Taps are what a program grows with: few at once, and no more in all than the
        # logarithm of the window, at some 5 for each time that it doubles.
        for window in range(1, 1025):
            geometry = lay((2 * window + 7,), (window,), padding="SAME")
            counts = [stage.taps for stage in stages(geometry)]
            assert max(counts, default=0) <= most, (window, counts)
            assert sum(counts) <= 5 * math.log2(window), (window, counts)

    def test_one_window_over_everything_is_one_stage(self):
        geometry = lay((30, 20), (30, 20))
        assert stages(geometry) == (geometry,)
        assert all_sum_stages(geometry) == [geometry]
        assert large_and_whole(geometry)
        small = lay((3, 3), (3, 3))
        assert stages(small) == (small,)
        assert all_sum_stages(small) == [small]
        assert not large_and_whole(small)

    def test_windows_that_slide_in_memory_have_a_stage_an_axis(self):
        # As channels first has it; over channels last they are one stage.
        first = lay((9, 9), (3, 3))
        assert [s.pooled for s in stages(first)] == [(-1,), (-2,)]
        assert [s.pooled for s in stages(lay((9, 9), (3, 3), (2, 2)))] == [(-2, -1)]
        window = Window.of("test", (3, 3), 1, "VALID", 1, False, (-3, -2))
        assert len(stages(Geometry.of(window, (9, 9, 4)))) == 1

    @pytest.mark.parametrize("form", [stages, all_sum_stages])
    def test_an_axis_taken_as_it_is_costs_nothing(self, form):
        assert form(lay((5, 6), (1, 1))) in ((), [])
        assert {a.axis for s in form(lay((5, 40), (1, 20))) for a in s.axes} == {-1}


class TestRuns:
    """Regions cut outputs, and blocks inputs, into runs that are treated alike."""

    @pytest.mark.parametrize("window", [1, 2, 3, 5, 8])
    def test_regions_hold_the_taps_they_name(self, window):
        for geometry in lines(window):
            (a,) = geometry.axes
            reached = 0
            for run in regions(a):
                assert run.begin == reached < run.end
                reached = run.end
                for o in range(run.begin, run.end):
                    places = [
                        o * a.stride - a.low + k * a.dilation for k in range(window)
                    ]
                    inside = [k for k, p in enumerate(places) if 0 <= p < a.size]
                    assert list(run.taps) == inside, (a, run, o)
            assert reached == a.out
            empty = (elements(geometry, geometry.sizes) < 0).all(0).any()
            assert holds_nothing(geometry) == empty

    @pytest.mark.parametrize("window", [1, 2, 3, 5, 8])
    def test_blocks_are_reached_by_the_outputs_they_name(self, window):
        for geometry in lines(window):
            (a,) = geometry.axes
            # For each input, the outputs whose windows it lies in.
            outputs = [set() for _ in range(a.size)]
            for o, k in itertools.product(range(a.out), range(window)):
                place = o * a.stride - a.low + k * a.dilation
                if 0 <= place < a.size:
                    outputs[place].add(o)
            covered = []
            for run in blocks(a):
                assert run.begin < run.end
                for b in range(run.begin, run.end):
                    inputs = range(b * a.stride, b * a.stride + run.width)
                    reached = set().union(*(outputs[i] for i in inputs))
                    assert {b + offset for offset in run.offsets} == reached, (a, run)
                    covered += inputs
            assert covered == list(range(a.size))

    @pytest.mark.parametrize(("size", "out"), [(11, 4), (3, 7), (10, 7), (1, 3)])
    def test_covers_are_the_windows_of_each_input(self, size, out):
        (a,) = bins((size,), (out,)).axes
        assert isinstance(a, Bins)
        found = {
            (i, int(window[i]), int(tap[i]))
            for window, tap in covers(a)
            for i in range(size)
            if tap[i] >= 0
        }
        pairs = enumerate(zip(a.start, a.end, strict=True))
        assert found == {
            (i, o, i - start) for o, (start, end) in pairs for i in range(start, end)
        }


# Strides, dilation, pads on either side, tails that no window reaches, windows that
# step over all elements, single blocks, disjoint windows, one over everything, bins.
STAGES = {
    "1-D": lay((11,), (3,), padding=((2, 1),)),
    "1-D, strided": lay((11,), (5,), (2,), "SAME"),
    "1-D, dilated": lay((13,), (3,), (2,), ((3, 4),), (3,)),
    "1-D, steps over": lay((2,), (3,), (1,), ((5, 7),), (4,)),
    "1-D, disjoint": lay((11,), (3,), (3,)),
    "1-D, with gaps": lay((14,), (2,), (4,), ((1, 0),)),
    "1-D, disjoint and dilated": lay((13,), (2,), (4,), dilation=(2,)),
    "1-D, shifted": lay((6,), (4,), (9,), ((3, 0),)),
    "1-D, whole": lay((12,), (12,)),
    "1-D, bins": bins((11,), (4,)),
    "1-D, more bins than inputs": bins((3,), (7,)),
    "2-D": lay((6, 7), (3, 3), padding=1),
    "2-D, strided": lay((7, 8), (3, 2), (2, 1), "SAME"),
    "2-D, disjoint": lay((7, 6), (2, 3), (2, 3)),
    "2-D, dilated": lay((9, 8), (2, 3), (3, 2), ((1, 2), (3, 0)), (2, 2)),
    "2-D, ceil": lay((7, 8), (2, 3), (2, 3), ceil_mode=True),
    "2-D, whole": lay((5, 4), (5, 4)),
    "3-D": lay((4, 5, 3), (2, 2, 2), (1, 2, 1), ((1, 0), 0, (0, 1))),
    "3-D, disjoint": lay((4, 5, 6), (2, 2, 2), (2, 2, 2)),
}


def codes(rng, stage, lead):
    """Any tap for each window: those in padding too, and the code for none."""
    shape = stage.out_shape((*lead, *stage.sizes))
    if large_and_whole(stage):
        return jnp.asarray(rng.integers(0, stage.taps, shape, np.int32))
    drawn = rng.integers(0, stage.taps + 1, shape)
    if stage.binned:  # a code names an element, or none
        beyond = (drawn >= stage.counts(len(shape), False)) & (drawn < stage.taps)
        drawn = np.where(beyond, 0, drawn)
    return jnp.asarray(np.where(drawn == stage.taps, taps.NONE, drawn).astype(np.uint8))


# Compiled as one program: operation by operation they take several times as long.
FORMULAS = {
    "read": jax.jit(taps.read, static_argnums=1),
    "place": jax.jit(places.place, static_argnums=1),
}
PRIMITIVES = {"read": linear.read, "place": linear.place}


@pytest.mark.parametrize("coded", [False, True], ids=["sum", "choice"])
@pytest.mark.parametrize("name", STAGES)
class TestReadAndPlace:
    def operands(self, name, coded):
        stage, rng = STAGES[name], np.random.default_rng(0)
        x = integers(rng, 2, *stage.sizes)
        y = integers(rng, *stage.out_shape(x.shape))
        return stage, x, y, codes(rng, stage, (2,)) if coded else None

    def links(self, stage, code):
        """Flat positions `[taps, *out]` of what is read in each of the two planes."""
        for i in range(2):
            index = elements(stage, stage.sizes)
            tap = np.arange(stage.taps).reshape(-1, *[1] * (index.ndim - 1))
            yield np.where(code is None or tap == np.asarray(code[i]), index, -1)

    def test_read_adds_up_what_the_code_names(self, name, coded):
        stage, x, _, code = self.operands(name, coded)
        expected = [
            np.where(link >= 0, plane.ravel()[link], 0).sum(0)
            for link, plane in zip(self.links(stage, code), np.array(x), strict=True)
        ]
        np.testing.assert_array_equal(FORMULAS["read"](x, stage, code), expected)

    def test_place_adds_up_where_read_takes_from(self, name, coded):
        stage, x, y, code = self.operands(name, coded)
        expected = np.zeros((2, math.prod(stage.sizes) + 1))
        for to, link, plane in zip(
            expected, self.links(stage, code), np.array(y), strict=True
        ):
            # What comes from padding goes to the end, and is dropped.
            np.add.at(to, link, np.broadcast_to(plane, link.shape))
        placed = FORMULAS["place"](y, stage, code)
        assert placed.dtype == y.dtype
        np.testing.assert_array_equal(placed, expected[:, :-1].reshape(x.shape))
        # Whole numbers: the two sums are the same to the last bit.
        read = FORMULAS["read"](x, stage, code)
        assert np.vdot(read, y) == np.vdot(x, placed)

    def test_primitives_transpose_into_each_other(self, name, coded):
        stage, x, y, code = self.operands(name, coded)
        for f, of, back, to in (("read", x, "place", y), ("place", y, "read", x)):
            apply = lambda a, f=f: PRIMITIVES[f](a, stage, code)  # noqa: E731
            transposed = jax.linear_transpose(apply, of)(to)[0]
            np.testing.assert_array_equal(transposed, FORMULAS[back](to, stage, code))


@pytest.mark.parametrize("f", ["read", "place"])
@pytest.mark.parametrize(
    "name", ["1-D, strided", "1-D, bins", "2-D", "2-D, disjoint", "2-D, whole"]
)
class TestBatching:
    def operands(self, f, name):
        stage, rng = STAGES[name], np.random.default_rng(1)
        x = integers(rng, 3, 2, *stage.sizes)
        y = integers(rng, *stage.out_shape(x.shape))
        return stage, x if f == "read" else y, codes(rng, stage, (3, 2))

    @pytest.mark.parametrize("axes", [(0, None), (None, 0), (-1, 1)], ids=str)
    def test_vmap_is_a_loop(self, name, f, axes):
        stage, x, code = self.operands(f, name)
        given, looped = [], []
        for a, axis in zip((x, code), axes, strict=True):
            given.append(a[0] if axis is None else jnp.moveaxis(a, 0, axis))
            looped.append([a[0 if axis is None else i] for i in range(3)])
        expected = [FORMULAS[f](a, stage, c) for a, c in zip(*looped, strict=True)]
        apply = jax.vmap(lambda a, c: PRIMITIVES[f](a, stage, c), axes)
        np.testing.assert_array_equal(apply(*given), expected)

    def test_vmap_without_code(self, name, f):
        stage, x, _ = self.operands(f, name)
        batched = jax.vmap(lambda a: PRIMITIVES[f](a, stage), 1, 1)(x)
        np.testing.assert_array_equal(batched, FORMULAS[f](x, stage))


def primitives(f, *args):
    return [e.primitive.name for e in equations(jax.make_jaxpr(f)(*args).jaxpr)]


def spec(window_shape, strides=1, padding="VALID", window_dilation=1):
    """The arguments of an op, by name."""
    return locals()


FLOATS = ("ties", "nan", "-inf", "-0")


def inputs(kind, shape):
    rng = np.random.default_rng(2)
    x = rng.integers(-2, 3, shape)
    if kind == "int32":
        return jnp.asarray(x.astype(np.int32))
    x = x.astype(np.float32)
    if kind == "nan":
        x[rng.random(shape) < 0.1] = np.nan
    if kind == "-0":
        x *= rng.choice([-1, 1], shape)
    if kind == "-inf":
        x[:, : shape[1] * 2 // 3] = -np.inf
    return jnp.asarray(x)


class TestLowering:
    LINES = (
        spec((2, 2), (2, 2)),
        spec((3, 3), (2, 2), 1),
        spec((3, 2), (1, 2), "SAME", 2),
        spec((5, 5), (1, 1), 2),
        spec((5, 3), (3, 1), ((4, 2), (0, 1))),
        spec((5, 13), (2, 1), "SAME", (2, 1)),
        spec((13, 2), (1, 2), ((7, 3), (1, 0))),
        # Windows that step over all elements, in more than one stage.
        spec((20, 1), (1, 1), ((19 * 16, 0), 0), (16, 1)),
    )

    def both(self, f, *inputs):
        """`f` of each input, in both forms, each compiled by itself."""
        for form in ("stages", "reduce_window"):
            with jaxpool.lowering(form):
                # A function of its own: `jax.jit` would keep the first form.
                compiled = jax.jit(lambda x: f(x))
                yield [jax.tree.map(np.asarray, compiled(x)) for x in inputs]

    @pytest.mark.parametrize("line", LINES, ids=str)
    def test_forms_agree_on_values_and_indices(self, line):
        def f(x):
            return {
                "max": jaxpool.max_pool(x, **line),
                "min": jaxpool.min_pool(x, **line),
                "argmax": jaxpool.max_pool_with_argmax(x, **line),
                "avg": jaxpool.avg_pool(x, **line),
                "sum": jaxpool.sum_pool(x, **line),
            }

        # Sums of small whole numbers are exact, and their quotients rounded once.
        xs = [inputs(kind, (1, 13, 14, 2)) for kind in FLOATS]
        chex.assert_trees_all_equal(*self.both(f, *xs), strict=True)

    @pytest.mark.parametrize("line", LINES[-2:-1], ids=str)
    def test_forms_agree_on_ints(self, line):
        def f(x):
            return {
                "min": jaxpool.min_pool(x, **line),
                "argmax": jaxpool.max_pool_with_argmax(x, **line),
                "sum": jaxpool.sum_pool(x, **line),
            }

        xs = [inputs("int32", (1, 13, 14, 2))]
        chex.assert_trees_all_equal(*self.both(f, *xs), strict=True)

    @pytest.mark.parametrize("line", LINES, ids=str)
    def test_forms_agree_on_gradients(self, line):
        def f(x):
            def pull(op):
                y, pullback = jax.vjp(lambda x: op(x, **line), x)
                g = integers(np.random.default_rng(3), *y.shape)
                return pullback(g)[0]

            return pull(jaxpool.max_pool), pull(jaxpool.sum_pool)

        xs = [inputs(kind, (1, 13, 14, 2)) for kind in FLOATS]
        chex.assert_trees_all_equal(*self.both(f, *xs), strict=True)

    @pytest.mark.parametrize(
        "line",
        [
            # The first 12 of 13 elements, which are added up apart, are padding.
            spec((13,), (1,), ((12, 0),)),
            # Every window steps over the one element there is.
            spec((12,), (1,), ((15, 7),), (2,)),
        ],
        ids=str,
    )
    def test_parts_that_hold_nothing_but_padding(self, line):
        def f(x):
            pools = jaxpool.max_pool_with_argmax, jaxpool.sum_pool, jaxpool.avg_pool
            return [op(x, **line) for op in pools]

        stages, native = self.both(f, jnp.full((1, 1), 5.0))
        chex.assert_trees_all_equal(stages, native)

    def test_form_is_the_one_asked_for(self):
        f = lambda x: jaxpool.max_pool(x, (3, 3), (2, 2), 1)  # noqa: E731
        for form, native in (("reduce_window", True), ("stages", False)):
            with jaxpool.lowering(form):
                names = primitives(jax.grad(lambda x: f(x).sum()), jnp.ones((9, 9, 1)))
            assert any("reduce_window" in name for name in names) == native
            assert ("pool_place" in names) != native
        assert primitives(f, jnp.ones((9, 9, 1))).count("reduce_window_max") == 0

    def test_unknown_form(self):
        with pytest.raises(ValueError, match="`lowering`: `form` must be one of"):
            with jaxpool.lowering("nope"):
                pass

    def test_form_is_restored(self):
        def native():
            names = primitives(lambda x: jaxpool.max_pool(x, (2,)), jnp.ones((5, 1)))
            return "reduce_window_max" in names

        with pytest.raises(KeyError):
            with jaxpool.lowering("reduce_window"):
                raise KeyError
        assert not native()
        with jaxpool.lowering("reduce_window"):
            with jaxpool.lowering("stages"):
                assert not native()
                with jaxpool.lowering("auto"):
                    assert not native()
            assert native()
            with pytest.raises(ValueError, match="form"):
                with jaxpool.lowering("nope"):
                    pass
            assert native()
        assert not native()


# What is common in networks, and what takes more than one stage.
POOLS = {
    "2x2/2": spec((2, 2), (2, 2)),
    "3x3/2": spec((3, 3), (2, 2), 1),
    "3x3/1": spec((3, 3), (1, 1), 1),
    "5x5/1": spec((5, 5), (1, 1), 2),
    "13x13/1": spec((13, 13), (1, 1), "SAME"),
    "dilated": spec((3, 3), (1, 2), "SAME", (2, 3)),
    "3-D": spec((2, 3, 2), (2, 2, 1), "SAME"),
}
SMALL = ("2x2/2", "3x3/2", "3x3/1")


def pooled(op, name, size=24):
    """(function, input) for one of `POOLS`, as large as `size` along pooled axes."""
    kwargs = POOLS[name]
    sizes = [size] * len(kwargs["window_shape"])
    return lambda x: op(x, **kwargs), jax.ShapeDtypeStruct((2, *sizes, 4), "float32")


def pullback(f):
    """Value and gradient for any cotangent, so that XLA can't know it."""

    def both(x, g):
        y, pull = jax.vjp(f, x)
        return y, pull(g)[0]

    return both


def nbytes(tree):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def kept(f, x):
    """What the gradient of `f` keeps of the forward pass, as shapes and dtypes."""
    return jax.tree.leaves(jax.eval_shape(lambda x: jax.vjp(f, x)[1], x))


SCATTERS = {"scatter", "select_and_scatter"}


@pytest.mark.parametrize("pool", [jaxpool.max_pool, jaxpool.min_pool])
@pytest.mark.parametrize("window", [(2, 2), (64, 64)])
@pytest.mark.parametrize("form", ["auto", "reduce_window"])
def test_nan_in_many_disjoint_windows(pool, window, form):
    # XLA's CPU backend loses NaN only in arrays of 4096 elements and more.
    x = jnp.zeros((64, 64, 8)).at[5, 7].set(jnp.nan)
    with jaxpool.lowering(form):
        y = pool(x, window, window)
    assert int(jnp.isnan(y).sum()) == 8
    assert bool(jnp.isnan(y[5 // window[0], 7 // window[1]]).all())


def test_large_strides_do_not_unroll():
    f = lambda x: jaxpool.max_pool(x, (1, 1), (50, 50)).sum()  # noqa: E731
    text = jax.jit(jax.grad(f)).lower(jnp.zeros((100, 120, 2))).as_text()
    assert len(text.splitlines()) < 200


class TestGradientNeverScatters:
    # A scatter is slow everywhere, adds in any order on a GPU, and selecting while
    # scattering reads the whole input again.

    def operations(self, f, *args):
        """Names of the operations in the program of `f`, for each platform."""
        f = jax.jit(f)
        for platform in ("cpu", "cuda", "tpu"):
            text = jax.export.export(f, platforms=[platform])(*args).mlir_module()
            yield set(re.findall(r"stablehlo\.(\w+)", text))

    @pytest.mark.parametrize("op", [jaxpool.max_pool, jaxpool.avg_pool])
    @pytest.mark.parametrize("name", POOLS)
    def test_of_pools(self, op, name):
        f, x = pooled(op, name)
        for found in self.operations(pullback(f), x, jax.eval_shape(f, x)):
            assert found
            assert not found & {*SCATTERS, "reduce_window"}

    @pytest.mark.parametrize(
        "op", [jaxpool.adaptive_max_pool, jaxpool.adaptive_avg_pool]
    )
    @pytest.mark.parametrize("axis", [(-3, -2), (-2, -1)], ids=str)
    def test_of_adaptive_pools(self, op, axis):
        f = lambda x: op(x, (7, 5), axis=axis)  # noqa: E731
        x = jax.ShapeDtypeStruct((2, 13, 24, 24), "float32")
        for found in self.operations(pullback(f), x, jax.eval_shape(f, x)):
            assert "gather" in found
            assert not found & {*SCATTERS, "reduce_window"}

    @pytest.mark.parametrize("window", [(2, 2), (5, 5)], ids=str)
    def test_of_a_draw(self, window):
        def f(x, seed):
            key = jax.random.key(seed)
            return jaxpool.stochastic_pool(x, window, (2, 2), key=key).sum()

        x = jax.ShapeDtypeStruct((2, 8, 8, 4), "float32")
        seed = jax.ShapeDtypeStruct((), "int32")
        for found in self.operations(jax.grad(f), x, seed):
            assert found
            assert not found & SCATTERS

    def test_and_this_test_would_see_it(self):
        f, x = pooled(jaxpool.max_pool, "2x2/2")
        with jaxpool.lowering("reduce_window"):
            args = x, jax.eval_shape(f, x)
            assert all(
                found & SCATTERS for found in self.operations(pullback(f), *args)
            )


class TestMemory:
    @pytest.mark.parametrize("name", POOLS)
    def test_max_keeps_one_byte_for_each_choice(self, name):
        f, x = pooled(jaxpool.max_pool, name)
        residuals = kept(f, x)
        assert {r.dtype.name for r in residuals} == {"uint8"}
        # One choice for each output of a stage, of which there may be a few more than
        # inputs: a stage may begin in the padding.
        window = POOLS[name]["window_shape"]
        stages = 1 if math.prod(window) <= MOST_TAPS else 2 * len(window)
        assert nbytes(residuals) <= stages * x.size * 1.2
        if name in SMALL:
            assert nbytes(residuals) <= jax.eval_shape(f, x).size

    def test_adaptive_max_keeps_one_byte_for_each_choice(self):
        x = jax.ShapeDtypeStruct((2, 13, 52, 4), "float32")
        residuals = kept(lambda x: jaxpool.adaptive_max_pool(x, (5, 7)), x)
        assert {r.dtype.name for r in residuals} == {"uint8"}
        # Bins of 3 along the one axis and of 8 along the other: one stage each.
        assert nbytes(residuals) == 2 * 4 * (5 * 7 + 13 * 7)

    @pytest.mark.parametrize("name", POOLS)
    @pytest.mark.parametrize("op", [jaxpool.avg_pool, jaxpool.sum_pool])
    def test_mean_keeps_nothing_of_its_input(self, op, name):
        # Counts at most: one for each window, whatever the batch and the channels.
        f, x = pooled(op, name)
        y = jax.eval_shape(f, x)
        assert nbytes(kept(f, x)) <= nbytes(y) // (y.shape[0] * y.shape[-1])

    @pytest.mark.parametrize("of", ["any cotangent", "a sum"])
    @pytest.mark.parametrize("name", ["2x2/2", "3x3/2", "3x3/1", "5x5/1"])
    def test_temporaries_are_one_array_and_the_choices(self, name, of):
        f, x = pooled(jaxpool.max_pool, name, 180)
        if of == "a sum":
            # The values themselves are a temporary here, and no results.
            lowered = jax.jit(jax.value_and_grad(lambda x: f(x).sum())).lower(x)
        else:
            lowered = jax.jit(pullback(f)).lower(x, jax.eval_shape(f, x))
        memory = lowered.compile().memory_analysis()
        values = nbytes(jax.eval_shape(f, x)) if of == "a sum" else 0
        most = nbytes(x) + nbytes(kept(f, x)) + values
        assert memory.temp_size_in_bytes <= most


class TestProgramSize:
    def size(self, window, image):
        """Number of operations, as the compiler sees them: no primitives of ours."""

        def loss(x):
            return jaxpool.max_pool(x, (window, window), padding="SAME").sum()

        x = jax.ShapeDtypeStruct((1, image, image, 1), "float32")
        return jax.jit(jax.grad(loss)).lower(x).as_text().count(" = stablehlo.")

    def test_large_windows(self):
        assert 0 < self.size(65, 200) < min(3000, 4 * self.size(9, 200))

    @pytest.mark.parametrize(("size", "out"), [(1000, 7), (1000, 333), (50, 999)])
    def test_bins(self, size, out):
        loss = lambda x: jaxpool.adaptive_max_pool(x, (out,)).sum()  # noqa: E731
        x = jax.ShapeDtypeStruct((size, 1), "float32")
        text = jax.jit(jax.grad(loss)).lower(x).as_text()
        assert 0 < text.count(" = stablehlo.") < 1000

    @pytest.mark.parametrize("window", [3, 65])
    def test_whatever_the_size_of_the_image(self, window):
        assert self.size(window, 150) == self.size(window, 500)
