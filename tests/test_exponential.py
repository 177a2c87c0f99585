"""Exponential and power families and learned importance: limits, extremes, training."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import jaxpool

pytestmark = pytest.mark.usefixtures("quick_compilation")

HALVES = {"window_shape": (2, 2), "strides": (2, 2)}
PADDED = {"window_shape": (3, 3), "strides": (2, 2), "padding": 1}
KERNEL = np.random.default_rng(1).normal(size=(3, 3, 2, 2)).astype(np.float32)


def normals(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


OPS = {
    "lse": jaxpool.lse_pool,
    "soft": jaxpool.soft_pool,
    "soft_min": functools.partial(jaxpool.soft_pool, beta=-2.0),
    "weighted": lambda x, **w: jaxpool.exp_weighted_pool(x, logits=x, **w),
    "gem": jaxpool.gem_pool,
    "norm": jaxpool.learned_norm_pool,
    "detail": jaxpool.detail_preserving_pool,
    "asymmetric": functools.partial(jaxpool.detail_preserving_pool, symmetric=False),
    "importance": functools.partial(
        jaxpool.local_importance_pool, params={"kernel": KERNEL}
    ),
}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", OPS)
def test_constants_stay_and_gradients_are_finite(name, dtype):
    """Windows of equals, of zeros, and of 1e4 with both signs."""
    levels = jnp.array([0.0, 1.0, -1e4, 1e4], dtype)
    x = jnp.broadcast_to(levels[:, None, None, None], (4, 4, 4, 2))
    mixed = x[3:] * jnp.sign(normals(1, 4, 4, 2)).astype(dtype)
    x = jnp.concatenate([x, mixed])

    @jax.jit
    def both(x):
        y, back = jax.vjp(functools.partial(OPS[name], **HALVES), x)
        return y, back(jnp.ones_like(y))[0]

    y, g = both(x)
    expected = np.float32(levels)
    expected = {"norm": np.abs(expected), "gem": expected.clip(1e-6)}.get(
        name, expected
    )
    expected = np.float32(jnp.asarray(expected, dtype))[:, None, None, None]
    np.testing.assert_allclose(
        np.float32(y[:4]), 0 * np.float32(y[:4]) + expected, 2e-6
    )
    assert np.isfinite(np.float32(y)).all()
    assert np.isfinite(np.float32(g)).all()


def test_limits():
    x = jnp.abs(normals(2, 7, 6, 2)) + 0.1
    for window in (HALVES, PADDED):
        mean = jaxpool.avg_pool(x, **window, count_include_pad=False)
        low, high = jaxpool.min_pool(x, **window), jaxpool.max_pool(x, **window)
        close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
        close(jaxpool.soft_pool(x, **window, beta=0.0), mean)
        close(jaxpool.soft_pool(x, **window, beta=1e7), high)
        close(jaxpool.soft_pool(x, **window, beta=-1e7), low)
        close(jaxpool.exp_weighted_pool(x, **window, logits=3.0), mean)
        close(jaxpool.exp_weighted_pool(x, **window, logits=x * 1e7), high)
        close(jaxpool.lse_pool(x, **window, r=1e-3), mean, atol=2e-3)
        close(jaxpool.lse_pool(x, **window, r=1e7), high)
        close(jaxpool.gem_pool(x, **window, p=1.0), mean)
        close(jaxpool.gem_pool(x, **window, p=1e6), high)
        close(jaxpool.learned_norm_pool(x, **window, rho=-50.0), mean)
        close(jaxpool.learned_norm_pool(x, **window, rho=1e6), high)
        close(jaxpool.detail_preserving_pool(x, **window, alpha=80.0), mean)
        sharp = {"lam": 9.0, "alpha": -80.0, "symmetric": False}
        close(jaxpool.detail_preserving_pool(x, **window, **sharp), high, atol=1e-3)
        zero = {"kernel": jnp.zeros((3, 3, 2, 2))}
        close(jaxpool.local_importance_pool(x, zero, **window), mean)
    softmax = jax.nn.softmax(2.5 * x, (1, 2))
    close(jaxpool.auto_pool(x, alpha=2.5), (softmax * x).sum((1, 2)))
    near = jaxpool.lse_pool(x, **HALVES, r=1e-3)
    exact = np.log(jaxpool.avg_pool(jnp.exp(np.float32(1e-3) * x), **HALVES)) / 1e-3
    np.testing.assert_allclose(near, exact, atol=3e-4)


@pytest.mark.parametrize("window", [(9, 8), (8, 7)], ids=str)
def test_large_windows_are_folded_axis_by_axis(window):
    x = normals(*[11, 10][: len(window)], 2)
    where = normals(*x.shape, seed=1) > -1
    n = len(window)
    views = np.lib.stride_tricks.sliding_window_view(x, window, tuple(range(n)))
    shown = np.lib.stride_tricks.sliding_window_view(where, window, tuple(range(n)))
    axes = tuple(range(-n, 0))
    weights = np.exp(views) * shown
    total = weights.sum(axes)
    soft = functools.partial(jaxpool.soft_pool, window_shape=window, where=where)
    np.testing.assert_allclose(soft(x), (weights * views).sum(axes) / total, 2e-5)
    lse = functools.partial(jaxpool.lse_pool, window_shape=window, where=where)
    np.testing.assert_allclose(lse(x), np.log(total / shown.sum(axes)), 2e-5, 1e-6)
    check_grads(soft, (x,), 1, modes=("rev",), eps=1e-2, rtol=2e-2)


def test_windows_far_below_others():
    x = jnp.array([1e4, 1e4, -1e4, -1e4 + 1])[:, None]
    y = jaxpool.soft_pool(x, (2,), (2,))
    np.testing.assert_allclose(y[:, 0], [1e4, -1e4 + 0.7310586], rtol=1e-7)
    logits = jnp.array([1e4, 0.0, -1e4, -1e4])[:, None]
    y = jaxpool.exp_weighted_pool(x, (2,), (2,), logits=logits)
    np.testing.assert_allclose(y[:, 0], [1e4, -1e4 + 0.5], rtol=1e-7)


def test_logits_of_minus_infinity_take_out():
    x = jnp.array([1.0, np.nan, 3.0, np.inf, np.nan])[:, None]
    logits = jnp.array([0.0, -np.inf, 0.0, -np.inf, -np.inf])[:, None]
    f = functools.partial(jaxpool.exp_weighted_pool, window_shape=(2,))
    np.testing.assert_array_equal(f(x, logits=logits)[:, 0], [1, 3, 3, 0])
    for argument in (0, 1):
        g = jax.grad(lambda x, g: f(x, logits=g).sum(), argument)(x, logits)
        assert np.isfinite(g).all()


@pytest.mark.parametrize("window", [(2, 2), (4, 4), (4, 12)], ids=str)
def test_minus_infinity_has_no_share_in_a_soft_mean(window):
    x = normals(14, 14, 1).at[::3, ::3].set(-np.inf)

    def loss(x, beta):
        return jaxpool.soft_pool(x, window, beta=beta).sum()

    for g in jax.jit(jax.grad(loss, (0, 1)))(x, jnp.float32(2)):
        assert np.isfinite(g).all()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("window", [(2, 2), (4, 4), (12, 12)], ids=str)
def test_an_even_mean_of_infinities_is_a_mean(window, masked):
    x = normals(12, 12, 1).at[0, 0].set(-np.inf).at[11, 0].set(np.inf)
    x = x.at[11, 11].set(np.nan)
    where = jnp.ones((12, 12, 1), bool) if masked else None

    given = {"window_shape": window, "strides": window, "where": where}
    (y, pull), (mean, pull_mean) = (
        jax.vjp(functools.partial(pool, **given), x)
        for pool in (functools.partial(jaxpool.soft_pool, beta=0.0), jaxpool.avg_pool)
    )
    np.testing.assert_allclose(y, mean, rtol=1e-5, atol=1e-6)
    finite = jnp.isfinite(mean).astype(mean.dtype)
    g, expected = (np.asarray(f(finite)[0]) for f in (pull, pull_mean))
    np.testing.assert_allclose(g[expected > 0], expected[expected > 0], rtol=1e-5)


@pytest.mark.parametrize("window", [(4, 4), (4, 12), (16, 1)], ids=str)
def test_a_soft_mean_of_far_apart_elements_is_the_largest(window):
    x = normals(16, 14, 1) * 1e30
    y, g = (
        jax.jit(jax.value_and_grad(lambda x, f=f: f(x, window).sum()))(x)
        for f in (jaxpool.soft_pool, jaxpool.max_pool)
    )
    jax.tree.map(np.testing.assert_array_equal, y, g)


@pytest.mark.parametrize(
    ("op", "name", "start"),
    [
        (jaxpool.lse_pool, "r", 0.2),
        (jaxpool.soft_pool, "beta", 0.2),
        (jaxpool.gem_pool, "p", 0.2),
        (jaxpool.learned_norm_pool, "rho", 0.2),
        (jaxpool.learned_norm_pool, "center", 0.2),
        (jaxpool.detail_preserving_pool, "lam", 0.2),
        (jaxpool.detail_preserving_pool, "alpha", 0.2),
    ],
)
def test_learned_sharpness_may_go_anywhere_and_come_back(op, name, start):
    x = jnp.abs(normals(6, 6, 2)) + 0.1

    @jax.jit
    def value(v):
        return jax.value_and_grad(lambda v: jnp.sum(op(x, **HALVES, **{name: v})))(v)

    for v in (start, 1e-9, 0.0, -1e-9, -0.5, -40.0):
        y, g = value(jnp.float32(v))
        assert np.isfinite(y)
        assert np.isfinite(g)
        if name in ("r", "p", "beta") and v > -1:
            assert g > 0  # never stuck
    if name in ("r", "p"):
        least = value(jnp.float32(1e-3))[0]
        np.testing.assert_allclose(value(jnp.float32(-0.5))[0], least, rtol=1e-6)


@pytest.mark.parametrize(
    "name",
    [
        "soft",
        "weighted",
        "norm",
        pytest.param("asymmetric", marks=pytest.mark.full),
        "importance",
    ],
)
def test_second_derivatives_without_ties(name, x64):
    x = np.random.default_rng(0).permutation(np.arange(60.0)) / 10 - 2.97
    f = functools.partial(OPS[name], **HALVES)
    close = {"eps": 1e-5, "rtol": 1e-3, "atol": 1e-3}
    check_grads(jax.jit(f), (x.reshape(5, 6, 2),), order=2, **close)


def test_importance_learns_from_its_first_step():
    x = normals(2, 6, 6, 2)
    params = {
        "kernel": jnp.zeros((3, 3, 2, 2)),
        "norm_scale": jnp.ones(2),
        "norm_bias": jnp.zeros(2),
    }

    def loss(params):
        return jnp.sum(jaxpool.local_importance_pool(x, params, **PADDED) ** 2)

    first = jax.grad(loss)(params)
    assert np.all(np.abs(first["kernel"]) > 0)
    params = jax.tree.map(lambda p, g: p - 1e-8 * g, params, first)
    second = jax.grad(loss)(params)
    assert all(np.all(np.abs(g) > 0) for g in second.values())
    assert loss(params) < np.sum(
        jaxpool.avg_pool(x, **PADDED, count_include_pad=False) ** 2
    )


@pytest.mark.parametrize("lam", [3.5, 6.0, np.inf])
def test_padding_does_not_outweigh_what_is_shown(lam):
    """One element beside padding, which differs more from the mean than it does."""
    x, alone = np.array([[2.0], [3.0]], np.float32), {"padding": ((1, 0),)}
    y = jaxpool.detail_preserving_pool(x, (2,), lam=lam, alpha=-9.0, **alone)
    assert y[0, 0] == 2
    shown = np.array([[True], [False]])
    y = jaxpool.detail_preserving_pool(x, (2,), lam=lam, alpha=-9.0, where=shown)
    assert y[0, 0] == 2
