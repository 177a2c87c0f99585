"""Pools by rank: their limits, ties, derivatives, draws, and windows of any size."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.test_util import check_grads

import jaxpool
import jaxpool.nnx

pytestmark = pytest.mark.usefixtures("quick_compilation")

X = np.random.default_rng(0).normal(size=(2, 6, 7, 3)).astype(np.float32)
W: dict[str, Any] = dict(window_shape=(2, 3), strides=(2, 2), padding=((1, 0), (0, 2)))
FIRST, LAST = np.eye(6)[0], np.eye(6)[-1]
CLOSE: dict[str, Any] = dict(rtol=2e-6, atol=2e-6)


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, **CLOSE)


@pytest.mark.parametrize(
    ("f", "limit"),
    [
        (functools.partial(jaxpool.rank_pool, weights=FIRST), jaxpool.max_pool),
        (
            functools.partial(jaxpool.rank_pool, weights=np.ones(6) / 6),
            jaxpool.avg_pool,
        ),
        (functools.partial(jaxpool.topk_avg_pool, k=1), jaxpool.max_pool),
        (
            functools.partial(jaxpool.topk_avg_pool, k=99),
            functools.partial(jaxpool.avg_pool, count_include_pad=False),
        ),
        (functools.partial(jaxpool.rank_weighted_pool, alpha=1), jaxpool.max_pool),
        (
            functools.partial(jaxpool.rank_weighted_pool, alpha=1e-7),
            functools.partial(jaxpool.avg_pool, count_include_pad=False),
        ),
        (
            functools.partial(
                jaxpool.rank_stochastic_pool, alpha=1, key=jax.random.key(0)
            ),
            jaxpool.max_pool,
        ),
        (
            functools.partial(jaxpool.dropout_max_pool, rate=0, key=jax.random.key(0)),
            lambda x, **w: jnp.maximum(jaxpool.max_pool(x, **w), 0),
        ),
    ],
)
def test_limits(f, limit):
    close(f(X, **W), limit(X, **W))


def test_last_rank_is_the_minimum():
    window: dict[str, Any] = dict(window_shape=(2, 3))
    y = jaxpool.rank_pool(X, **window, weights=LAST)
    close(y, jaxpool.min_pool(X, **window))
    # Of no element with a weight, there is no mean.
    none = jaxpool.rank_pool(X, **W, weights=LAST, normalize=True)
    assert not np.any(none[:, 0])
    assert np.any(none[:, 1:, :-1])


def test_weights_whose_sum_is_0_but_for_rounding_have_no_mean():
    weights = (-0.9, 0.2, 0.3, 0.4)
    assert sum(map(np.float32, weights)) != 0
    for w in (weights, jnp.array(weights)):
        y = jaxpool.rank_pool(X, (2, 2), weights=w, normalize=True)
        np.testing.assert_array_equal(y, np.zeros_like(y))
    small = jaxpool.rank_pool(X, (2, 2), weights=(-1, 0.5, 0.5, 1e-5), normalize=True)
    assert np.abs(small).max() > 1e4


# The last is sorted by XLA, the second for derivatives alone.
@pytest.mark.parametrize("window", [(3, 3), (4, 5), (8, 9), (7, 8)])
def test_windows_of_any_size(window):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(1, 8, 9, 2)), jnp.float32)
    n, out = window[0] * window[1], (9 - window[0], 10 - window[1])
    weights = jnp.asarray(rng.normal(size=(n, 2)), jnp.float32)
    t = jnp.asarray(rng.normal(size=(1, *out, 2)), jnp.float32)
    y, pull = jax.vjp(lambda x, w: jaxpool.rank_pool(x, window, weights=w), x, weights)
    actual = pull(t)
    expected = np.zeros(y.shape), np.zeros(x.shape), np.zeros((n, 2))
    for o in np.ndindex(*out, 2):
        i, j, c = o
        at = np.s_[0, i : i + window[0], j : j + window[1], c]
        order = np.argsort(-np.ravel(x[at]), kind="stable")
        expected[0][(0, *o)] = np.ravel(x[at])[order] @ weights[:, c]
        share = np.zeros(n)
        share[order] = weights[:, c]
        expected[1][at] += t[(0, *o)] * share.reshape(window)
        expected[2][:, c] += t[(0, *o)] * np.ravel(x[at])[order]
    for a, e in zip((y, *actual), expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("n", [5, 20, 60])
def test_equals_rank_in_row_major_order(n):
    weights = np.arange(n, 0, -1.0)
    f = functools.partial(jaxpool.rank_pool, window_shape=(n,), weights=weights)
    close(jax.grad(lambda x: f(x).sum())(jnp.zeros((n, 1)))[:, 0], weights)
    x = jnp.zeros((n, 1)).at[3].set(1.0)
    expected = [*weights[1:4], weights[0], *weights[4:]]
    close(jax.grad(lambda x: f(x).sum())(x)[:, 0], expected)


def test_second_derivatives_in_elements_and_weights(x64):
    rng = np.random.default_rng(0)
    x, w = rng.permutation(16.0 * np.arange(20)).reshape(1, 4, 5, 1), rng.random(4)
    window: dict[str, Any] = dict(window_shape=(2, 2), padding=((1, 0), (0, 0)))

    def f(x, w):
        return jaxpool.rank_pool(x / 160, **window, weights=w, normalize=True) ** 2

    check_grads(jax.jit(f), (x, w), order=2, eps=1e-4, rtol=1e-3, atol=1e-3)


def test_infinity_and_hidden_elements():
    x = jnp.array([-np.inf, 2.0, 1.0, 4.0])[:, None]
    f = functools.partial(jaxpool.topk_avg_pool, window_shape=(4,), k=2)
    assert f(x).item() == 3
    assert f(x, where=x < 4).item() == 1.5
    assert f(x, where=x < 2).item() == -np.inf
    y = jaxpool.rank_pool(x, (4,), weights=np.arange(1, 5), where=(x < 4) & (x > 0))
    assert y.item() == 2 + 2 * 1
    many = np.tile(X[:, :, :, :1], (1, 10, 1, 1))  # 420 elements
    top = jaxpool.topk_avg_pool(many, None, axis=(1, 2), k=99, where=many > 1)
    close(np.ravel(top), [plane[plane > 1].mean() for plane in many])
    g = jax.grad(lambda x: f(x, where=x > 3).sum())(x)
    close(g[:, 0], [0, 0, 0, 1])


DRAWS = {
    "rank_stochastic_pool": dict(alpha=0.4),
    "dropout_max_pool": dict(rate=0.5),
}


@pytest.mark.parametrize("name", DRAWS)
def test_draws_one_element_and_its_gradient(name):
    f = functools.partial(getattr(jaxpool, name), **W, **DRAWS[name])
    y, pull = jax.vjp(lambda x: f(x, key=jax.random.key(0)), jnp.asarray(X))
    np.testing.assert_array_equal(y, jax.jit(f)(X, key=jax.random.key(0)))
    assert (y != f(X, key=jax.random.key(1))).any()
    taken = np.zeros(y.size)
    for o in np.ndindex(y.shape):
        b, i, j, c = o
        g = pull(jnp.zeros(y.shape).at[o].set(1.0))[0] if b + i + j == 0 else None
        place = np.s_[b, max(2 * i - 1, 0) : 2 * i + 1, 2 * j : 2 * j + 3, c]
        assert y[o] in X[place] or (name == "dropout_max_pool" and y[o] == 0)
        if g is not None:
            np.testing.assert_array_equal(g, (y[o] == X) & (y[o] != 0))
        taken[np.ravel_multi_index(o, y.shape)] = y[o]
    assert (taken == 0).any() == (name == "dropout_max_pool")


@pytest.mark.parametrize("window", [(3, 3), (6, 7)], ids=["some", "whole"])
def test_a_dropped_window_has_no_gradient(window):
    x, key = jnp.asarray(np.tile(X, (30, 1, 1, 1))), jax.random.key(0)
    f = functools.partial(jaxpool.dropout_max_pool, window_shape=window, rate=0.95)
    y, pull = jax.vjp(lambda x: f(x, key=key), x)
    g = pull(jnp.ones_like(y))[0]
    assert 0.1 < (y == 0).mean() < 0.9
    assert float(g.sum()) == float((y > 0).sum())
    np.testing.assert_allclose((g * x).sum(), y.sum(), rtol=1e-5)


def test_dropout_has_the_distribution_of_masks():
    x = np.array([3.0, 1.0, 4.0, 2.0], np.float32)
    expected = dict.fromkeys([0.0, *x.tolist()], 0.0)
    for kept in itertools.product((0, 1), repeat=4):
        expected[float(max(x * kept))] += 0.6 ** sum(kept) * 0.4 ** (4 - sum(kept))
    keys = jax.random.split(jax.random.key(0), 4096)
    drop = functools.partial(jaxpool.dropout_max_pool, window_shape=(4,), rate=0.4)
    y = np.asarray(jax.vmap(lambda key: drop(x[:, None], key=key))(keys))
    for value, p in expected.items():
        assert abs((y == value).mean() - p) < 4 * (p * (1 - p) / len(keys)) ** 0.5


def test_ordinal_starts_as_the_mean_and_learns():
    module = jaxpool.nnx.OrdinalPool(3, **W, rngs=nnx.Rngs(0))
    mean = jaxpool.avg_pool(X, **W, count_include_pad=False)
    close(module(X), mean)
    of_max = nnx.grad(lambda m: jnp.mean((m(X) - jaxpool.max_pool(X, **W)) ** 2))
    with jax.numpy_rank_promotion("allow"):
        step = -nnx.to_pure_dict(of_max(module))["logits"]
    assert (step[0] > 0).all()  # towards the largest
    assert (step[-1] < 0).all()


def test_ordinal_weights_follow_the_channels():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(6, 3)), jnp.float32)
    last = jaxpool.ordinal_pool(X, (2, 3), params={"logits": logits})
    each = [
        jaxpool.rank_pool(X[..., c : c + 1], (2, 3), weights=jax.nn.softmax(w))
        for c, w in enumerate(logits.T)
    ]
    close(last, np.concatenate(each, -1))
    with pytest.raises(ValueError, match="`OrdinalPool`: `window_shape` must be a seq"):
        jaxpool.nnx.OrdinalPool(3, None, axis=(1, 2), rngs=nnx.Rngs(0))


@pytest.mark.parametrize("k", [2, 3])
def test_elements_in_order_take_no_memory(k):
    x = jax.ShapeDtypeStruct((2, 28, 28, 16), np.float32)
    f = functools.partial(jaxpool.rank_weighted_pool, window_shape=(k, k), padding=1)
    memory = jax.jit(f).lower(x).compile().memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes <= 2 * x.size * 4
