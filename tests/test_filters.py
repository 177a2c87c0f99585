"""Blurs, medians, log-sum-exp and heads: published numbers, extremes, compositions."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxpool
import jaxpool.linen
import jaxpool.nnx
from jaxpool._core.order import MOST_COMPARED, _comparators

pytestmark = pytest.mark.usefixtures("quick_compilation")

RAMP = np.arange(16.0, dtype=np.float32).reshape(4, 4, 1)
MIXED = np.array(
    [[0, 0, 1, 2], [0, 0, 3, 0], [-1, 2, 5, -3], [0.5, -4, 1, 1]], np.float32
)[..., None]
EYE = np.eye(5, dtype=np.float32)[..., None]
HALVES = {"window_shape": (2, 2), "strides": (2, 2)}


def blurred(x, size, mode):
    return jaxpool.blur_pool(x, (2, 2), filter_size=size, mode=mode)[..., 0]


# Worked out by hand from the formulas; the first and the last are in kornia's docs.
@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        (
            lambda: blurred(EYE, 3, "constant"),
            [[0.3125, 0.0625, 0], [0.0625, 0.375, 0.0625], [0, 0.0625, 0.3125]],
        ),
        (
            lambda: blurred(EYE, 3, "reflect"),
            [[0.5, 0.125, 0], [0.125, 0.375, 0.125], [0, 0.125, 0.5]],
        ),
        (
            lambda: blurred(EYE, 4, "reflect"),
            [
                [0.40625, 0.109375, 0.015625],
                [0.109375, 0.3125, 0.28125],
                [0.015625, 0.28125, 0.40625],
            ],
        ),
        (lambda: blurred(RAMP, 3, "reflect"), [[2.5, 4], [8.5, 10]]),
        (lambda: blurred(RAMP, 4, "reflect"), [[3.75, 5.25], [9.75, 11.25]]),
        (lambda: jaxpool.median_pool(MIXED, **HALVES)[..., 0], [[0, 1], [-1, 1]]),
        (
            lambda: jaxpool.median_pool(MIXED, **HALVES, interpolation="midpoint")[
                ..., 0
            ],
            [[0, 1.5], [-0.25, 1]],
        ),
        (
            lambda: jaxpool.lse_pool(MIXED, **HALVES)[..., 0],
            [[0, 2.0538953], [0.85696234, 3.6500055]],
        ),
        (
            lambda: jaxpool.lse_pool(MIXED, **HALVES, r=10.0)[..., 0],
            [[0, 2.8613751], [1.8613706, 4.8613706]],
        ),
        (
            lambda: jaxpool.max_blur_pool(EYE, (2, 2), (2, 2), mode="constant")[..., 0],
            [[0.5625, 0.3125], [0.3125, 0.875]],
        ),
    ],
)
def test_published_numbers(actual, expected):
    np.testing.assert_allclose(actual(), expected, rtol=2e-7, atol=0)


@pytest.mark.parametrize("count", [*range(1, 13), MOST_COMPARED])
def test_comparators_sort(count):
    """A network that sorts all zeros and ones sorts everything (Knuth)."""
    if count <= 12:
        x = (np.arange(2**count) >> np.arange(count)[:, None]) & 1
    else:
        draw = np.random.default_rng(0)
        x = (draw.random((count, 2000)) < draw.random(2000)).astype(int)
    for i, j in _comparators(count):
        x[i], x[j] = np.minimum(x[i], x[j]), np.maximum(x[i], x[j])
    assert np.all(np.diff(x, axis=0) >= 0)


@pytest.mark.parametrize("window", [(7, 8), (9, 10)], ids=str)
@pytest.mark.parametrize("special", [None, np.nan])
def test_median_of_many(window, special):
    """More elements than are compared in pairs; the second is the whole extent."""
    x = np.random.default_rng(0).permutation(180).astype(np.float32)
    x = x.reshape(2, 9, 10, 1)
    if special is not None:
        x[0, 4, 4] = special
    places = [(i, j) for i in range(10 - window[0]) for j in range(11 - window[1])]
    expected = [
        np.quantile(
            x[:, i : i + window[0], j : j + window[1], 0], 0.5, (1, 2), method="lower"
        )
        for i, j in places
    ]
    f = functools.partial(jaxpool.median_pool, window_shape=window)
    y = f(x)
    np.testing.assert_array_equal(y.reshape(2, -1), np.transpose(expected))
    g = jax.grad(lambda x: f(x).sum())(x)
    assert np.all(g == np.round(g))
    assert g.sum() == y.size
    some = f(x, where=x > 50)
    if window == (9, 10):
        kept = x[1][x[1] > 50]
        assert some[1] == np.quantile(kept, 0.5, method="lower")


def test_median_gradient_goes_to_the_first_of_equals():
    x = jnp.array([2.0, 1.0, 2.0, 2.0, 5.0])[:, None]
    g = jax.grad(lambda x: jaxpool.median_pool(x, (5,)).sum())(x)
    np.testing.assert_array_equal(g[:, 0], [1, 0, 0, 0, 0])
    pair = jnp.array([4.0, 1.0, 2.0, 3.0])[:, None]
    midpoint = functools.partial(
        jaxpool.median_pool, window_shape=(4,), interpolation="midpoint"
    )
    np.testing.assert_array_equal(
        jax.grad(lambda x: midpoint(x).sum())(pair)[:, 0], [0, 0, 0.5, 0.5]
    )
    # An infinity in the window is an element; an infinity that pads is not.
    x = jnp.array([jnp.inf, jnp.inf, 1.0])[:, None]
    f = functools.partial(jaxpool.median_pool, window_shape=(3,), padding=((2, 0),))
    np.testing.assert_array_equal(f(x)[:, 0], [jnp.inf, jnp.inf, jnp.inf])
    g = jax.grad(lambda x: f(x)[:2].sum())(x)
    np.testing.assert_array_equal(g[:, 0], [2, 0, 0])


def test_median_refuses_what_it_cannot_match():
    with pytest.raises(ValueError, match="at most 254 elements, or be the whole"):
        jaxpool.median_pool(np.zeros((20, 20, 1), np.float32), (16, 16))


@pytest.mark.parametrize("level", [-1e4, 0.0, 1e4, 1e30])
@pytest.mark.parametrize("r", [1e-3, 1.0, 1e3])
def test_lse_of_equals_is_exact(level, r):
    x = jnp.full((5, 6, 2), level)
    f = functools.partial(jaxpool.lse_pool, window_shape=(3, 3), padding="SAME", r=r)
    np.testing.assert_array_equal(f(x), x)
    g = jax.grad(lambda x: f(x).sum())(x)
    # Each window shares its gradient of 1 out evenly.
    shares = jaxpool.avg_pool(
        jnp.ones_like(x), (3, 3), padding="SAME", count_include_pad=False
    )
    assert np.isfinite(g).all()
    np.testing.assert_allclose(g.sum(), shares.sum(), rtol=1e-6)


@pytest.mark.parametrize("shift", [1000.0, -1e4, 1e4])
def test_lse_far_from_zero(shift):
    x = np.random.default_rng(0).integers(-8, 9, (6, 7, 2)).astype(np.float32)
    window = dict(window_shape=(3, 2), strides=(2, 1), padding="SAME")
    near = jaxpool.lse_pool(x, **window)
    # Rounded to the neighbours of 1e4, which are 1e-3 apart.
    far = jaxpool.lse_pool(x + np.float32(shift), **window)
    np.testing.assert_allclose(far - shift, near, rtol=0, atol=1e-3)


def test_lse_windows_of_great_range():
    """Windows whose maxima differ by more than an exponential can hold."""
    x = jnp.array([0.0, 1.0, 1e4, -1e4, -1e4, jnp.inf, -jnp.inf, -jnp.inf])[:, None]
    f = functools.partial(jaxpool.lse_pool, window_shape=(2,))
    half = np.log(2)
    first = np.log((1 + np.e) / 2)
    expected = [first, 1e4 - half, 1e4 - half, -1e4, np.inf, np.inf, -np.inf]
    lowest = jnp.array([jnp.finfo(jnp.float32).min, 3.0])[:, None]
    np.testing.assert_allclose(f(lowest)[0, 0], 3 - half, rtol=2e-7)
    np.testing.assert_allclose(f(x)[:, 0], np.float32(expected), rtol=2e-7)
    for argument in (0, 1):
        g = jax.grad(
            lambda x, r: jnp.sum(f(x, r=r)[:4]),
            argument,  # the finite ones
        )(x, 1.0)
        assert np.isfinite(g).all()


def test_lse_of_the_whole(x64):
    x = np.random.default_rng(0).normal(size=(5, 6, 2))
    whole = jaxpool.lse_pool(x, None, axis=(0, 1), r=3.0)
    expected = jaxpool.global_lse_pool(x[None], r=3.0)
    np.testing.assert_allclose(whole[0], expected, rtol=1e-12)


def test_blur_keeps_constants_and_reads_borders():
    x = jnp.full((3, 7, 8, 2), 5.0)
    for mode in ("reflect", "edge", "wrap"):
        for size in (2, 3, 4, 7):
            y = jaxpool.blur_pool(x, (3, 2), filter_size=size, mode=mode)
            np.testing.assert_array_equal(y, jnp.full((3, 3, 4, 2), 5.0))
    with pytest.raises(ValueError, match="`x` must have at least 2 elements along"):
        jaxpool.blur_pool(x[:, :1], (2, 2))
    with pytest.raises(ValueError, match="`filter_size` leaves nothing"):
        jaxpool.blur_pool(x[:, :1], (1, 1), filter_size=(2, 3), convention="timm")


@pytest.mark.parametrize("mode", ["reflect", "edge", "wrap", "constant"])
def test_blur_of_short_axes(mode):
    # Windows reach over neither border, one, or both.
    for n, size, stride in itertools.product((2, 5), (2, 4, 7), (1, 3)):
        for convention in ("antialiased", "timm"):
            total = size - 1 if convention == "antialiased" else size + stride - 2
            low = total // 2
            widths = (low, total - low if convention == "antialiased" else low)
            if max(widths) >= n and mode in ("reflect", "wrap"):
                continue
            x = np.random.default_rng(n).normal(size=n)
            weights = np.poly1d([0.5, 0.5]) ** (size - 1)
            padded = np.pad(x, widths, mode)
            expected = np.correlate(padded, np.atleast_1d(weights.c), "valid")[::stride]
            options = dict(filter_size=size, convention=convention, mode=mode)
            y = jaxpool.blur_pool(np.float32(x)[:, None], (stride,), **options)
            np.testing.assert_allclose(y[:, 0], expected, rtol=1e-5, atol=1e-6)


def test_blur_is_equivariant_to_shifts_by_its_stride():
    x = np.random.default_rng(0).normal(size=(8, 6, 2)).astype(np.float32)
    f = functools.partial(jaxpool.blur_pool, strides=(2, 3), filter_size=5, mode="wrap")
    shifted = f(np.roll(x, (2, 3), (0, 1)))
    np.testing.assert_allclose(shifted, np.roll(f(x), (1, 1), (0, 1)), rtol=1e-6)


@pytest.mark.parametrize("name", ["avg", "max", "avgmax", "catavgmax"])
def test_select_is_the_pool_of_that_name(name):
    x = np.random.default_rng(0).normal(size=(2, 7, 6, 3)).astype(np.float32)
    y = jaxpool.select_adaptive_pool(x, pool_type=name, flatten=True)
    pool = getattr(jaxpool, f"global_{name}_pool")
    np.testing.assert_allclose(y, pool(x), rtol=1e-6)
    assert y.shape == (2, 3 * jaxpool.feature_multiplier(name))
    for fast in (f"fast{name}", "fast" if name == "avg" else f"fast{name}"):
        same = jaxpool.select_adaptive_pool(x, pool_type=fast, flatten=True)
        np.testing.assert_array_equal(same, y)
        multiplier = jaxpool.feature_multiplier
        assert multiplier(fast) == multiplier(name)
    first = np.moveaxis(x, -1, 1)
    y = jaxpool.select_adaptive_pool(
        first, (2, 3), pool_type=name, flatten=True, axis=(-2, -1)
    )
    grid = getattr(jaxpool, f"adaptive_{name}_pool")(first, (2, 3), axis=(-2, -1))
    np.testing.assert_array_equal(y, grid.reshape(2, -1))
    with pytest.raises(ValueError, match="`pool_type` must be one of"):
        jaxpool.feature_multiplier("fastest")


def test_dense_head_takes_layers_and_kernels():
    x = np.random.default_rng(0).normal(size=(2, 9, 8, 3)).astype(np.float32)
    layer = nnx.Linear(3, 5, rngs=nnx.Rngs(0))
    kernel, bias = layer.kernel[...], layer.bias[...] + 1
    layer.bias[...] = bias
    f = functools.partial(jaxpool.dense_head_pool, window_shape=(7, 7))
    y = f(x, classifier=layer)
    np.testing.assert_allclose(f(x, classifier=(kernel, bias)), y, rtol=1e-5)
    without = f(x, classifier=(kernel, None))
    np.testing.assert_allclose(without + bias[None], y, rtol=1e-5, atol=1e-6)
    # What the classifier was made for, it answers as ever.
    seen = x[:, :7, :7]
    expected = layer(seen.mean((1, 2)))
    np.testing.assert_allclose(f(seen, classifier=layer), expected, rtol=1e-5)
    module = jaxpool.nnx.DenseHeadPool((7, 7), classifier=layer)
    np.testing.assert_array_equal(module(x), y)
    assert len(jax.tree.leaves(nnx.state(module, nnx.Param))) == 2
