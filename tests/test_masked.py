"""Masked and weighted windows: masks as small as they came, chains, empty windows."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from families.masked import weighted_maximum, weighted_mean, weights
from jax.test_util import check_grads

import jaxpool

pytestmark = pytest.mark.usefixtures("quick_compilation")

F32 = dict(rtol=2e-6, atol=2e-6)
close = np.testing.assert_allclose
equal = np.testing.assert_array_equal
NAMES = ("masked_max_pool", "masked_avg_pool")
WEIGHTED = ("weighted_avg_pool", "weighted_max_pool")
# With padding, an overhang, and windows that overlap.
WINDOW = dict(window_shape=(3, 3), strides=(2, 2), padding=((1, 1), (2, 0)))
LINES = [oracle.line(6, 3, 2, (1, 1)), oracle.line(7, 3, 2, (2, 0))]
AXES = (-3, -2)


def normals(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def masks(shape):
    some = np.random.default_rng(1).random(shape) > 0.5
    some[:, :3, :4] = False  # windows without elements
    some[:, 3:, 3:] = True  # and windows without holes
    return some, some[..., :1], some[0, ..., :1], np.zeros((1, 1, 1), bool)


def pooled_mask(where, shape, rule):
    """Any or all of each window's elements; False for none."""
    where = where.reshape((1,) * (len(shape) - where.ndim) + where.shape)
    where = where | np.zeros((1, *shape[1:3], 1), bool)
    decide = {"any": lambda e: (e > 0).any(), "all": lambda e: (e > 0).all()}[rule]
    f = lambda e, i, pad: float(e.size > 0 and decide(e))  # noqa: E731
    return oracle.over_windows(f, where, LINES, AXES)


@pytest.mark.parametrize("rule", ["any", "all"])
@pytest.mark.parametrize("name", NAMES)
def test_masks(name, rule):
    x = normals(2, 6, 7, 2)
    formula = {"max": oracle.maximum, "avg": oracle.element_mean}[name.split("_")[1]]

    @jax.jit
    def run(x, where):
        def f(x):
            return getattr(jaxpool, name)(x, **WINDOW, rule=rule, where=where)

        return f(x), jax.grad(lambda x: f(x)[0].sum())(x)

    for where in masks(x.shape):
        mask = pooled_mask(where, x.shape, rule)
        expected = oracle.over_windows(formula, x, LINES, AXES, where)
        expected = np.where(mask, expected, 0)
        for secret in (np.nan, np.inf):
            hidden = np.where(where, x, secret).astype(np.float32)
            (y, m), g = run(hidden, where)
            close(y, expected, **F32)
            equal(m, mask)
            assert m.dtype == jnp.bool_
            assert np.isfinite(g).all()
            assert not np.where(where, 0, g).any()


def test_without_a_mask_only_padding_is_empty():
    """A dilated window of two elements that can both lie in padding."""
    x = -np.ones((1, 1), np.float32)
    window = dict(window_shape=(2,), window_dilation=2, padding=1)
    y, mask = jaxpool.masked_max_pool(x, **window)
    equal((y, mask), (np.zeros((1, 1)), np.zeros((1, 1))))
    _, mask = jaxpool.masked_avg_pool(x, **window, rule="all")
    equal(mask, [[False]])


def test_a_valid_region_as_scenic_masks_it():
    """`rule="all"` leaves the windows that lie in the region, as if it were all."""
    x = normals(1, 8, 9, 2)
    where = np.zeros((1, 8, 9, 1), bool)
    where[:, :6, :5] = True
    window = dict(window_shape=(3, 2), strides=(2, 1))
    for name in ("max", "avg"):
        masked, plain = (
            getattr(jaxpool, f"{prefix}{name}_pool") for prefix in ("masked_", "")
        )
        y, mask = masked(x, **window, rule="all", where=where)
        inside = plain(x[:, :6, :5], **window)
        rows, columns = inside.shape[1:3]
        close(y[:, :rows, :columns], inside, **F32)
        assert mask[:, :rows, :columns].all()
        assert mask.sum() == rows * columns
        assert not y[:, rows:].any()
        assert not y[:, :, columns:].any()


def test_the_mask_serves_the_next_layer():
    """Whatever the number of channels there: the mask keeps a channel axis of 1."""
    x, where = normals(2, 8, 8, 3), np.ones((2, 8, 8, 1), bool)
    where[:, :4] = False
    window = dict(window_shape=(2, 2), strides=(2, 2))
    x, mask = jaxpool.masked_max_pool(x, **window, where=where)
    assert mask.shape == (2, 4, 4, 1)
    x, mask = jaxpool.masked_avg_pool(jnp.tile(x, 2), **window, where=mask)
    assert x.shape == (2, 2, 2, 6)
    equal(mask[0, ..., 0], [[False, False], [True, True]])
    assert not x[:, 0].any()


@pytest.mark.parametrize("ceil_mode", [False, True])
def test_chains_of_weighted_means(ceil_mode):
    """Two windows in a row are one large window: also where the last one is cut."""
    x, weights = normals(2, 11, 3), np.random.default_rng(1).random((2, 11, 1))
    weights = weights.astype(np.float32)
    given = dict(ceil_mode=ceil_mode)
    y, w = jaxpool.weighted_avg_pool(x, weights, (2,), (2,), **given)
    y, w = jaxpool.weighted_avg_pool(y, w, (3,), (3,), **given)
    whole, pooled = jaxpool.weighted_avg_pool(x, weights, (6,), (6,), **given)
    n = whole.shape[1] if ceil_mode else 1
    close(y[:, :n], whole[:, :n], **F32)
    close(w[:, :n], pooled[:, :n], **F32)


def test_equal_weights_are_none():
    x = normals(2, 6, 7, 3)
    window = dict(WINDOW, padding="VALID")
    for weight in (1.0, 0.25):
        weights = np.full((6, 7, 1), weight, np.float32)
        y, w = jaxpool.weighted_avg_pool(x, weights, **window)
        close(y, jaxpool.avg_pool(x, **window), **F32)
        equal(w, np.full(w.shape, weight))
        y, w = jaxpool.weighted_max_pool(x, weights, **window)
        close(y, weight * jaxpool.max_pool(x, **window), **F32)
        equal(w, np.full(w.shape, weight))
    y, w = jaxpool.weighted_avg_pool(x, np.ones((6, 7, 1), bool), **window)
    assert w.dtype == jnp.float32
    close(y, jaxpool.avg_pool(x, **window), **F32)


@pytest.mark.parametrize("name", WEIGHTED)
def test_gradients_to_weights(name, x64):
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(1, 6, 7, 2)), rng.random((6, 7, 1)) + 0.5
    x[:, 0, 0] = np.nan
    where = ~np.isnan(x[..., :1])

    f = jax.jit(lambda w: getattr(jaxpool, name)(x, w, **WINDOW, where=where))
    check_grads(f, (w,), order=2, eps=1e-4, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "expect"),
    [("weighted_avg_pool", weighted_mean), ("weighted_max_pool", weighted_maximum)],
)
def test_what_a_mask_hides_has_no_weight(name, expect):
    x, w = normals(2, 6, 7, 2), weights(6, 7, 1)

    @jax.jit
    def run(x, where):
        f = lambda x: getattr(jaxpool, name)(x, w, **WINDOW, where=where)  # noqa: E731
        return f(x), jax.grad(lambda x: f(x)[0].sum())(x)

    for where in masks(x.shape):
        expected = expect(x, where, weights=w, **WINDOW)
        for secret in (np.nan, np.inf):
            hidden = np.where(where, x, secret).astype(np.float32)
            pooled, g = run(hidden, where)
            for actual, wanted in zip(pooled, expected, strict=True):
                close(actual, wanted, **F32)
            assert np.isfinite(g).all()
            assert not np.where(where, 0, g).any()


@pytest.mark.parametrize("name", WEIGHTED)
def test_windows_without_weight(name):
    x, w = normals(1, 6, 7, 2), np.zeros((6, 7, 1), np.float32)
    f = lambda x, w: getattr(jaxpool, name)(x, w, **WINDOW)  # noqa: E731
    y, pooled = f(x, w)
    assert not y.any()
    assert not pooled.any()
    loss = lambda x, w: f(x, w)[0].sum()  # noqa: E731
    for g in jax.grad(loss, (0, 1))(x, w):
        assert not g.any()


@pytest.mark.parametrize("name", WEIGHTED)
def test_layouts_and_batches(name):
    x, w = normals(3, 2, 6, 7, 2), np.random.default_rng(0).random((2, 6, 7, 1))
    w = w.astype(np.float32)
    op = getattr(jaxpool, name)
    y, pooled = op(x, w, **WINDOW)
    assert pooled.shape == (1, 2, *y.shape[2:4], 1)
    for i, j in itertools.product(range(3), range(2)):
        one, weight = op(x[i, j], w[j], **WINDOW)
        close(y[i, j], one, **F32)
        close(pooled[0, j], weight, **F32)
    moved = op(np.moveaxis(x, -1, 2), np.moveaxis(w, -1, 1), **WINDOW, axis=(-2, -1))
    close(np.moveaxis(moved[0], 2, -1), y, **F32)
    close(np.moveaxis(moved[1], 2, -1), pooled, **F32)


def test_symbolic_sizes():
    x, where = normals(2, 6, 7, 2), masks((2, 6, 7, 2))[1]
    w = where.astype(np.float32)
    constraints = ["h >= 6", "w >= 6"]
    shape = jax.export.symbolic_shape("b, h, w, c", constraints=constraints)
    spec = (
        jax.ShapeDtypeStruct(shape, x.dtype),
        jax.ShapeDtypeStruct((*shape[:3], 1), where.dtype),
        jax.ShapeDtypeStruct((*shape[:3], 1), w.dtype),
    )

    def f(x, where, w):
        return [
            *[getattr(jaxpool, name)(x, **WINDOW, where=where) for name in NAMES],
            *[getattr(jaxpool, name)(x, w, **WINDOW) for name in WEIGHTED],
        ]

    exported = jax.export.export(jax.jit(f))(*spec)
    for actual, expected in zip(
        jax.tree.leaves(exported.call(x, where, w)),
        jax.tree.leaves(f(x, where, w)),
        strict=True,
    ):
        close(actual, expected, **F32)


@pytest.mark.parametrize("name", WEIGHTED)
def test_weights_of_nan_are_seen(name):
    w = np.array([[np.nan], [1.0], [2.0], [0.0]], np.float32)
    results = getattr(jaxpool, name)(np.ones((4, 1), np.float32), w, (2,), (2,))
    for array in results:
        equal(np.isnan(array)[:, 0], [True, False])
