"""Aggregation and probes: limits, and what modules learn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import typical
from jax.test_util import check_grads

import jaxpool as jp
import jaxpool.linen

pytestmark = pytest.mark.usefixtures("quick_compilation")

FAMILIES = ("aggregation", "probe")
OPS = [c for c in typical() if c.op.family in FAMILIES]
every_op = pytest.mark.parametrize("case", OPS, ids=lambda c: c.op.name)
every_learned_op = pytest.mark.parametrize(
    "case", [c for c in OPS if c.op.weights], ids=lambda c: c.op.name
)
CLOSE = dict(rtol=5e-6, atol=5e-6)


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@every_op
def test_hard_numbers(case, dtype):
    """Constant maps, zeros, single tokens and 1e4: finite values and gradients."""
    f, channels = case.function(axis=-2), case.kwargs.get("features", 3)
    large = 1e4 * np.sign(drawn(7, channels))
    hard = np.stack([large, 0 * large, 0 * large + 1e4, 0 * large + 0.1])
    both = jax.jit(jax.value_and_grad(lambda x: f(x).astype(jnp.float32).sum()))
    for x in (hard, hard[:, :1]):
        value, gradient = both(jnp.asarray(x).astype(dtype))
        assert np.isfinite(value)
        assert np.isfinite(gradient.astype(jnp.float32)).all()


class TestCovariance:
    x = drawn(2, 20, 3)

    def test_is_the_root_of_the_covariance(self):
        pooled = functools.partial(jp.covariance_pool, iterations=15)
        y = jax.jit(functools.partial(pooled, vectorize=False))(self.x)
        expected = [np.cov(x.T, bias=True) for x in self.x]
        np.testing.assert_allclose(y @ y, expected, **CLOSE)
        triangle = jax.jit(pooled)(self.x)
        np.testing.assert_array_equal(triangle, y[:, *np.triu_indices(3)])

    def test_pairs_of_channels_are_counted(self):
        x = jax.ShapeDtypeStruct((2, 3, 46_341), np.float32)
        with pytest.raises(ValueError, match="`x` must have fewer than 46,341 channel"):
            jax.eval_shape(jp.covariance_pool, x)
        whole = functools.partial(jp.covariance_pool, vectorize=False)
        assert jax.eval_shape(whole, x).shape == (2, 46_341, 46_341)

    def test_moves_and_grows_with_its_input(self):
        f = jax.jit(jp.covariance_pool)
        y = f(self.x)
        np.testing.assert_allclose(f(self.x + 1), y, **CLOSE)
        for scale in (1e-30, 1e-15, 1e15, 1e30):
            grown = f(self.x * np.float32(scale))
            np.testing.assert_allclose(grown / scale, y, rtol=1e-5)

    def test_derivatives(self, x64):
        x = np.float64(self.x)
        check_grads(jax.jit(jp.covariance_pool), (x,), order=2, eps=1e-4, rtol=1e-3)

    def test_constant_maps(self):
        x = np.full((2, 4, 3), 0.5, np.float32)
        y, vjp = jax.vjp(jax.jit(jp.covariance_pool), x)
        assert not y.any()
        assert not vjp(jnp.ones_like(y))[0].any()

    def test_fewer_tokens_than_channels(self):
        x = drawn(1, 2, 8)

        def root(x):
            return jp.covariance_pool(x, iterations=20, vectorize=False)

        both = jax.jit(lambda x: (root(x), jax.grad(lambda x: (root(x) ** 2).sum())(x)))
        y, gradient = both(x)
        np.testing.assert_allclose(y[0] @ y[0], np.cov(x[0].T, bias=True), atol=1e-3)
        # The root's squares sum to the trace.
        expected = 2 * (x - x.mean(1, keepdims=True)) / 2
        np.testing.assert_allclose(gradient, expected, atol=1e-3)


def test_deviation_of_few_elements():
    x = np.array([[[3.0], [3.0], [7.0]]], np.float32)
    for count, correction, expected in ((1, 0, 0), (2, 0, 0), (1, 1, 0), (3, 1, 5.333)):
        where = (np.arange(3) < count)[:, None]

        def deviation(x, where=where, correction=correction):
            return jp.statistics_pool(x, where=where, correction=correction)[0, 1]

        value, gradient = jax.jit(jax.value_and_grad(deviation))(x)
        np.testing.assert_allclose(value**2, expected, rtol=1e-4)
        assert np.isfinite(gradient).all()
        assert gradient.any() == (expected > 0)


def test_deviation_of_any_size():
    f, x = jax.jit(jp.statistics_pool), drawn(2, 9, 3)
    for scale in (1e-30, 1e30):
        y = f(x * np.float32(scale))
        np.testing.assert_allclose(y / scale, f(x), rtol=1e-5)


def test_even_attention_is_plain_statistics():
    x = drawn(2, 4, 5, 3)
    params = {"hidden_kernel": drawn(3, 2), "score_kernel": np.zeros((2, 3), "f")}
    where = drawn(2, 4, 5) > 0
    f = jax.jit(jp.attentive_statistics_pool)
    y = f(x, params, where=where)
    expected = jax.jit(jp.statistics_pool)(x, where=where[..., None])
    np.testing.assert_allclose(y, expected, **CLOSE)


class TestVLAD:
    x, centroids = drawn(2, 9, 3), drawn(4, 3, seed=1)

    def test_hard_assignment(self):
        y = jp.vlad_pool(
            self.x, {"centroids": self.centroids}, alpha=1e4, normalize=False
        ).reshape(2, 4, 3)
        residuals = self.x[:, :, None] - self.centroids
        nearest = np.argmin((residuals**2).sum(-1), -1)[..., None] == np.arange(4)
        expected = (residuals * nearest[..., None]).sum(1)
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)

    def test_norms_and_empty_clusters(self):
        far = np.float32([[1e3, 0, 0]])
        params = {"centroids": np.concatenate([self.centroids, far])}

        def pooled(params):
            return jp.vlad_pool(self.x, params, alpha=10.0)

        y, vjp = jax.vjp(jax.jit(pooled), params)
        clusters = np.linalg.norm(y.reshape(2, 5, 3), axis=-1)
        np.testing.assert_allclose(clusters, [[0.5] * 4 + [0]] * 2, atol=1e-6)
        gradient = vjp(drawn(2, 15, seed=2))[0]["centroids"]
        assert np.isfinite(gradient).all()
        assert gradient[:4].all()

    def test_arrays_from_elsewhere(self):
        params = {
            "centroids": self.centroids,
            "assign_kernel": drawn(3, 4, seed=2),
            "assign_bias": drawn(4, seed=3),
        }
        free = {
            **params,
            "assign_kernel": params["assign_kernel"] + 1.4 * self.centroids.T,
            "assign_bias": params["assign_bias"] - 0.7 * (self.centroids**2).sum(1),
        }
        expected = jp.vlad_pool(self.x, params, alpha=0.7)
        y = jp.vlad_pool(self.x, free, alpha=0.0)
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@every_learned_op
def test_every_array_learns_from_the_start(case):
    module = getattr(jaxpool.linen, case.op.module_name)(**case.kwargs)
    x = case.input()
    y, variables = jax.jit(module.init_with_output)(jax.random.key(0), x)
    target = drawn(*y.shape)
    loss = jax.jit(lambda v: jnp.sum(module.apply(v, x) * target))
    gradient = jax.grad(loss)(variables)
    assert all(np.abs(g).max() > 1e-6 for g in jax.tree.leaves(gradient))
