"""Keys: every op that samples follows JAX's rules for them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import typical
from jax.extend.random import threefry_2x32
from jax.sharding import Mesh, PartitionSpec

import jaxpool
from jaxpool._core import draws

pytestmark = pytest.mark.usefixtures("quick_compilation")

every_sampling_op = pytest.mark.parametrize(
    "case", [c for c in typical() if c.op.takes_key], ids=lambda c: c.op.name
)
IMPLEMENTATIONS = ("threefry2x32", "rbg", "unsafe_rbg")


def sampled(case, **more):
    """The case in training: a function of an input and a key."""
    more |= {"samples": None} if "samples" in case.op.inputs else {}
    f = case.function(**{"deterministic": False, **more})
    return lambda x, key: jax.tree.leaves(f(x, key=key))[0]


def same(actual, expected):
    np.testing.assert_array_equal(np.asarray(actual), np.asarray(expected))


@every_sampling_op
def test_the_same_key_gives_the_same_result(case):
    # Compiled alike: what a compiler rounds differently is no matter of keys.
    f, x = jax.jit(sampled(case)), case.input()
    keys = jax.random.split(jax.random.key(0), 20)
    first = f(x, keys[0])
    same(f(x, keys[0]), first)
    assert any((f(x, key) != first).any() for key in keys[1:])
    same(jax.vmap(f, (None, 0))(x, keys[:3]), [f(x, key) for key in keys[:3]])
    close = dict(rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(sampled(case)(x, keys[0]), first, **close)


@every_sampling_op
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_typed_and_raw_keys(case, implementation):
    f, x = jax.jit(sampled(case)), case.input()
    typed = jax.random.key(0, impl=implementation)
    y = f(x, typed)
    jax.config.update("jax_legacy_prng_key", "allow")
    before = jax.config.jax_default_prng_impl  # which says what raw keys are
    jax.config.update("jax_default_prng_impl", implementation)
    try:
        same(f(x, jax.random.key_data(typed)), y)
    finally:
        jax.config.update("jax_default_prng_impl", before)
        jax.config.update("jax_legacy_prng_key", "error")


@every_sampling_op
def test_each_shard_has_its_key(case):
    f, x = sampled(case), jnp.asarray(case.input(batch=(4,)))
    keys = jax.random.split(jax.random.key(0), 2)
    mesh, rows = Mesh(np.array(jax.devices()[:2]), ("rows",)), PartitionSpec("rows")
    mapped = jax.shard_map(
        lambda x, key: f(x, key[0]), mesh=mesh, in_specs=(rows, rows), out_specs=rows
    )
    expected = jnp.concatenate([f(x[:2], keys[0]), f(x[2:], keys[1])])
    close = dict(rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(jax.jit(mapped)(x, keys), expected, **close)


@every_sampling_op
def test_no_key_is_used_twice(case):
    f, x = sampled(case), case.input()
    with jax.debug_key_reuse(True):
        f(x, jax.random.key(0))
        jax.jit(lambda x: jax.grad(lambda x: f(x, jax.random.key(0)).sum())(x))(x)
        with pytest.raises(jax.errors.KeyReuseError):
            jax.jit(lambda x, key: f(x, key) + f(x, key))(x, jax.random.key(0))


@pytest.mark.skipif(
    jax.__version_info__ < (0, 10), reason="what XLA plans; older ones plan worse"
)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("k", [3, 5])
@pytest.mark.parametrize(
    "case",
    [c for c in typical() if c.op.takes_key and "padding" in c.op.config],
    ids=lambda c: c.op.name,
)
def test_sampling_from_windows_takes_little_memory(case, k, training):
    # Numbers drawn, an input with its padding, and sums along one axis: not the
    # elements of each window. Compiled in full, or nothing is fused.
    jax.config.update("jax_disable_most_optimizations", False)
    x = jnp.zeros((4, 64, 64, 32))
    window = dict(window_shape=(k, k), strides=(2, 2), padding="SAME")
    grid = {"grid_shape": (4, 4)} if "grid_shape" in case.op.config else {}
    f = sampled(case, **window, **grid, **{} if training else {"deterministic": True})
    memory = jax.jit(f).lower(x, jax.random.key(0)).compile().memory_analysis()
    assert memory.temp_size_in_bytes <= 2 * x.nbytes


class TestUniform:
    """The numbers that draws are made from."""

    def test_is_threefry(self):
        words = np.random.default_rng(0).integers(0, 2**32, (4, 50), np.uint32)
        ours = jax.vmap(lambda *w: draws._threefry(w[:2], w[2:]))(*words)
        theirs = jax.vmap(threefry_2x32)(words[:2].T, words[2:].T)
        same(jnp.stack(ours, 1), theirs)

    @pytest.mark.usefixtures("x64")
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_is_uniform(self, dtype):
        bits = {"float32": 24, "float64": 53}[dtype]
        u = draws.uniform(jax.random.key(0), (64, 32, 512), dtype)
        assert u.dtype == dtype
        u = np.asarray(u)
        assert u.min() >= 0
        assert u.max() < 1
        whole = (u * 2.0**bits).astype(np.int64)
        same(whole, u * 2.0**bits)
        # Each bit is set in half of the numbers; neighbours are not alike.
        limit = 4 / np.sqrt(u.size)
        for bit in range(bits):
            assert abs((whole >> bit & 1).mean() - 0.5) < limit / 2
        for axis in range(3):
            pair = [
                np.take(u, np.arange(n, u.shape[axis] - 1 + n), axis) for n in (0, 1)
            ]
            assert abs(np.corrcoef(*map(np.ravel, pair))[0, 1]) < limit
        counts = np.histogram(u, 1000, (0, 1))[0]
        chi = np.sum((counts - u.size / 1000) ** 2) / (u.size / 1000)
        assert abs(chi - 999) < 4 * np.sqrt(2 * 999)

    def test_rows_do_not_depend_on_their_number(self):
        key = jax.random.key(1)
        few, many = (draws.uniform(key, (n, 3, 5), np.float32) for n in (2, 9))
        same(many[:2], few)
        assert len(np.unique(many)) == many.size


class TestMeanOverKeys:
    """The mean of several passes, for any function of a key."""

    def test_is_the_mean(self):
        x = np.random.default_rng(0).random((2, 6, 6, 3), np.float32)
        key = jax.random.key(0)

        def f(key):
            y = jaxpool.stochastic_pool(x, (2, 2), key=key)
            return {"y": y, "half": y.astype(jnp.bfloat16), "positive": y > 0.5}

        mean = jax.jit(functools.partial(jaxpool.mean_over_keys, f, passes=5))(key)
        each = [f(k) for k in jax.random.split(key, 5)]
        for name, dtype in (("y", "float32"), ("half", "bfloat16")):
            expected = np.mean([np.float32(y[name]) for y in each], 0)
            assert mean[name].dtype == dtype
            eps = float(jnp.finfo(dtype).eps)
            np.testing.assert_allclose(np.float32(mean[name]), expected, rtol=eps)
        expected = np.mean([y["positive"] for y in each], 0)
        np.testing.assert_allclose(mean["positive"], expected, rtol=1e-6)
        once = jaxpool.mean_over_keys(f, key, 1)
        same(once["y"], f(jax.random.split(key, 1)[0])["y"])

    def test_gradient_is_the_mean_of_gradients(self):
        x = jnp.asarray(np.random.default_rng(0).random((6, 6, 3), np.float32))
        key = jax.random.key(0)

        def loss(x, key):
            return jnp.sum(jaxpool.stochastic_pool(x, (2, 2), key=key) ** 2)

        def mean(x):
            return jaxpool.mean_over_keys(lambda key: loss(x, key), key, 4)

        each = [jax.grad(loss)(x, k) for k in jax.random.split(key, 4)]
        gradient = jax.jit(jax.grad(mean))(x)
        np.testing.assert_allclose(gradient, sum(each) / 4, rtol=1e-5, atol=1e-6)
        tangent = jax.jvp(mean, (x,), (x,))[1]
        np.testing.assert_allclose(tangent, jnp.sum(gradient * x), rtol=1e-5)

    def test_memory_does_not_grow_with_the_number_of_passes(self):
        jax.config.update("jax_disable_most_optimizations", False)
        x, key = jnp.ones((4, 32, 32, 16)), jax.random.key(0)

        def loss(x, key, passes):
            def f(key):
                return jnp.sin(jnp.sin(x * jax.random.uniform(key)))

            return jaxpool.mean_over_keys(f, key, passes).sum()

        gradient = jax.jit(jax.grad(loss), static_argnums=2)
        few, many = (
            gradient.lower(x, key, n).compile().memory_analysis().temp_size_in_bytes
            for n in (3, 30)
        )
        assert many <= few + x.nbytes / 10

    def test_refuses(self):
        key = jax.random.key(0)
        for args, error, message in (
            ((None, key, 2), TypeError, "`f` must be a function of a key"),
            ((jnp.sin, key, 0), ValueError, "`passes` must be at least 1; got 0"),
            ((jnp.sin, key, 2.0), TypeError, "`passes` must be made of ints"),
            ((jnp.sin, None, 2), ValueError, "`key` is needed to sample"),
        ):
            with pytest.raises(error, match=message):
                jaxpool.mean_over_keys(*args)
