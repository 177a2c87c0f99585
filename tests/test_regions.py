"""What regions of interest are for, and what the contract table cannot ask of them."""

import functools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from families.regions import BOXES
from jax.test_util import check_grads

import jaxpool

pytestmark = pytest.mark.usefixtures("quick_compilation")

close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
equal = np.testing.assert_array_equal
SINGLE = {
    "roi_align": 1,
    "ps_roi_align": 2,
    "roi_pool": 1,
    "ps_roi_pool": 2,
}
every_op = pytest.mark.parametrize("name", SINGLE)


def image(*batch, channels=2, height=6, width=7, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((*batch, height, width, channels))
    return x.astype(np.float32)


def test_aligned_samples_of_a_slope_are_its_values_at_the_middle_of_bins():
    v, u = np.meshgrid(np.arange(16) + 0.5, np.arange(20) + 0.5, indexing="ij")
    x = jnp.asarray(4 * v + u)[..., None]
    rng = np.random.default_rng(0)
    low = rng.uniform(0.5, 6, (50, 2))
    boxes = np.concatenate([low, low + rng.uniform(0.1, 9, (50, 2))], 1)
    y = jaxpool.roi_align(x, boxes, (3, 5), aligned=True, sampling_ratio=3)
    x1, y1, x2, y2 = (a[:, None, None] for a in boxes.T)
    rows = y1 + (np.arange(3)[:, None] + 0.5) / 3 * (y2 - y1)
    columns = x1 + (np.arange(5) + 0.5) / 5 * (x2 - x1)
    close(y[..., 0], 4 * rows + columns)


@every_op
def test_boxes_that_name_their_image(name):
    op, x = getattr(jaxpool, name), image(3, channels=4)
    out = (2, SINGLE[name])
    own = np.stack([BOXES, BOXES + 1, BOXES - 1])
    expected = op(x, own, out)
    indices = np.repeat(np.arange(3), len(BOXES))
    order = np.random.default_rng(0).permutation(indices.size)
    flat = own.reshape(-1, 4)[order]
    y = op(x, flat, out, batch_indices=indices[order])
    equal(y, expected.reshape(-1, *expected.shape[2:])[order])


@every_op
def test_a_box_without_an_image_or_a_number_gives_0(name):
    op, out = getattr(jaxpool, name), (2, SINGLE[name])
    x = np.full((2, 6, 7, 4), np.nan, np.float32)
    x[0, :, :4] = 1
    boxes = np.repeat([[0.0, 0, 3, 3]], 6, 0)
    boxes[2, 0], boxes[3, 3], boxes[4, 1] = np.nan, np.inf, -np.inf
    indices = np.array([0, 2, 0, 0, 0, -1])

    def total(x, boxes, indices):
        y = op(x, boxes, out, batch_indices=indices)
        return y.sum(), y

    run = jax.jit(jax.grad(total, (0, 1), has_aux=True))
    (to_x, to_boxes), y = run(x, boxes, indices)
    assert y[0].all()  # and no NaN of beside it
    assert not y[1:].any()
    assert np.isfinite(to_x).all()
    assert not np.any(to_x[1])
    assert np.isfinite(to_boxes).all()
    assert op(x, np.zeros((0, 4)), out, batch_indices=np.zeros(0, int)).shape[0] == 0


def test_roi_pool_of_the_whole_map_is_a_max_pool():
    x = image(2, height=6, width=8)
    y = jaxpool.roi_pool(x, np.array([[0, 0, 7, 5]]), (3, 4))
    equal(y[:, 0], jaxpool.max_pool(x, (2, 2), strides=(2, 2)))


def test_roi_pool_rounds_halves_away_from_0():
    x = np.arange(8.0, dtype=np.float32).reshape(1, 8, 1)
    for corner, first in ((0.5, 1), (1.5, 2), (2.5, 3), (2.49, 2)):
        box = np.array([[corner, 0, corner, 0]])
        assert jaxpool.roi_pool(x, box, 1).item() == first
    assert jaxpool.roi_pool(x, np.array([[-0.5, 0, -0.5, 0]]), 1).item() == 0  # empty


@pytest.mark.parametrize(
    "name", ["roi_align", pytest.param("ps_roi_align", marks=pytest.mark.full)]
)
def test_gradient_to_boxes(name, x64):
    x = jnp.asarray(image(channels=2), jnp.float64)
    boxes = jnp.asarray(BOXES[:4])

    def f(boxes, x):
        return getattr(jaxpool, name)(x, boxes, (2, 1), sampling_ratio=2)

    check_grads(jax.jit(f), (boxes, x), order=2, eps=1e-5, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["roi_pool", "ps_roi_pool"])
def test_rounded_boxes_have_no_gradient(name):
    x = image(channels=4)
    f = getattr(jaxpool, name)
    equal(jax.grad(lambda b: f(x, b, (2, 2)).sum())(jnp.asarray(BOXES)), 0 * BOXES)


def levels_of(boxes, lowest, highest):
    """In float64, one box at a time."""
    sides = [np.sqrt(max((b[2] - b[0]) * (b[3] - b[1]), 1e-9)) for b in boxes]
    exact = [np.floor(4 + np.log2(s / 224) + 1e-6) for s in sides]
    return np.clip(exact, lowest, highest).astype(int)


PIXELS = np.concatenate(
    [
        [[0, 0, s, s] for s in (28, 56, 112, 224, 448, 896)],
        [[9, 9, 9 + s, 5 + s] for s in (20, 100, 200, 300, 500)],
    ]
).astype(np.float32)


@pytest.mark.usefixtures("x64")
def test_thousands_of_samples_do_not_drift():
    boxes = np.float32([[0.5, 1, 5.5, 4], [-1, -2, 3, 2], [5, 4.5, 2, 1]])
    x = 3 + image()

    def aligned(x):
        return jaxpool.roi_align(x, boxes, (2, 3), sampling_ratio=64)

    y, exact = aligned(x), aligned(x.astype(np.float64))
    assert (y.dtype, exact.dtype) == (np.float32, np.float64)
    np.testing.assert_allclose(y, exact, rtol=0, atol=1e-5)


def test_levels():
    equal(jaxpool.roi_levels(PIXELS, 2, 5), levels_of(PIXELS, 2, 5))
    equal(jaxpool.roi_levels(PIXELS, 0, 9)[:6], [1, 2, 3, 4, 5, 6])
    strange = np.array([[3, 3, 3, 9], [5, 5, 2, 9], [0, 0, np.nan, 1]])
    equal(jaxpool.roi_levels(strange, 2, 5), [2, 2, 2])
    equal(
        jaxpool.roi_levels(PIXELS, 2, 5, canonical_level=5), levels_of(2 * PIXELS, 2, 5)
    )
    for kwargs, error, rule in (
        (dict(max_level=1), ValueError, "`max_level` must be at least 2"),
        (dict(max_level=3.0), TypeError, "`max_level` must be made of ints"),
        (dict(max_level=5, eps=1), ValueError, "`eps` must be a number"),
        (dict(max_level=5, canonical_scale=0), ValueError, "`canonical_scale` must be"),
    ):
        with pytest.raises(error, match=rule):
            jaxpool.roi_levels(PIXELS, 2, **kwargs)


class TestPyramid:
    """Levels 2 to 5 of images of 256 by 320 pixels."""

    maps = tuple(image(2, height=256 >> i, width=320 >> i, seed=i) for i in range(2, 6))

    def each_alone(self, maps, boxes, out=(2, 2)):
        """Every level's answer, and for each box the one of its level."""
        y = [
            jaxpool.roi_align(m, boxes, out, spatial_scale=0.5**i)
            for i, m in enumerate(maps, 2)
        ]
        level = levels_of(boxes.reshape(-1, 4), 2, 5).reshape(boxes.shape[:-1]) - 2
        level = np.broadcast_to(level, (2, *level.shape[-1:]))
        return jnp.take_along_axis(
            jnp.stack(y, -1), jnp.asarray(level)[..., None, None, None, None], -1
        )[..., 0]

    def test_reads_each_box_from_its_level(self):
        boxes = np.stack([PIXELS, PIXELS[::-1] / 2])

        @jax.jit
        def both(maps):
            g = jnp.arange(2 * 11 * 2 * 2 * 2.0).reshape(2, 11, 2, 2, 2) % 7
            f = functools.partial(
                jaxpool.multiscale_roi_align,
                boxes=boxes,
                output_shape=(2, 2),
                image_shape=(256, 320),
            )
            y, pullback = jax.vjp(f, maps)
            alone, alone_pullback = jax.vjp(lambda m: self.each_alone(m, boxes), maps)
            return (y, *pullback(g)[0]), (alone, *alone_pullback(g)[0])

        for actual, expected in zip(*both(self.maps), strict=True):
            assert expected.any()
            close(actual, expected)

    def test_scales_and_image_shape_say_the_same(self):
        f = functools.partial(jaxpool.multiscale_roi_align, self.maps, PIXELS, 1)
        scales = [1 / 4, 1 / 8, 1 / 16, 1 / 32]
        equal(f(spatial_scales=scales), f(image_shape=(250, 310)))
        named = f(image_shape=256, batch_indices=np.ones(len(PIXELS), int))
        equal(named, f(image_shape=256)[1])

    def test_refuses(self):
        f = functools.partial(
            jaxpool.multiscale_roi_align, boxes=PIXELS, output_shape=1, image_shape=256
        )
        for maps in ((), (self.maps[0], self.maps[1][..., :1]), self.maps[::2]):
            with pytest.raises(ValueError, match=r"`(features|image_shape)` must"):
                f(maps)


@pytest.mark.parametrize("name", ["roi_align", "roi_pool", "ps_roi_align"])
def test_export_with_any_number_of_images_boxes_and_any_size(name):
    n, k, h, w = jax.export.symbolic_shape("n, k, h, w")
    out = (2, SINGLE[name])

    def f(x, boxes, indices):
        return getattr(jaxpool, name)(x, boxes, out, batch_indices=indices)

    given = (
        jax.ShapeDtypeStruct((n, h, w, 4), np.float32),
        jax.ShapeDtypeStruct((k, 4), np.float32),
        jax.ShapeDtypeStruct((k,), np.int32),
    )
    exported = jax.export.export(jax.jit(f))(*given)
    x, boxes = image(3, channels=4), BOXES.astype(np.float32)
    indices = np.arange(7, dtype=np.int32) % 3
    close(exported.call(x, boxes, indices), f(x, boxes, indices))


def test_ps_roi_pool_says_that_it_needs_known_sizes():
    shape = jax.export.symbolic_shape("h, 7, 4")
    f = functools.partial(jaxpool.ps_roi_pool, boxes=BOXES, output_shape=(2, 2))
    with pytest.raises(ValueError, match="must have pooled axes of known size"):
        jax.export.export(jax.jit(f))(jax.ShapeDtypeStruct(shape, np.float32))


def test_memory_does_not_grow_with_the_map_or_the_boxes():
    def temporary(height, box):
        x = jax.ShapeDtypeStruct((1, height, height, 8), np.float32)
        f = jax.jit(lambda x: jaxpool.roi_pool(x, np.array([box] * 50), (7, 7)))
        return f.lower(x).compile().memory_analysis().temp_size_in_bytes

    # The map itself may be copied once; 50 boxes' worth of it may not.
    extra = temporary(64, [0, 0, 63, 63]) - temporary(8, [0, 0, 7, 7])
    assert extra <= 3 * 64 * 64 * 8 * 4


def test_images_that_int32_cannot_number_are_refused():
    x = jax.ShapeDtypeStruct((2**31, 6, 7, 1), np.float32)
    boxes, images = np.ones((1, 4), np.float32), np.zeros(1, int)
    f = lambda x: jaxpool.roi_align(x, boxes, 2, batch_indices=images)  # noqa: E731
    with pytest.raises(ValueError, match="`x` must have fewer than"):
        jax.eval_shape(f, x)
