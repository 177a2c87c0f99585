"""Pools of arrays whose pooled axes are split over devices.

On two devices here; tests/trust/test_devices.py asks more, of more devices.
"""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import jaxpool

pytestmark = pytest.mark.usefixtures("quick_compilation")

MESH = Mesh(np.array(jax.devices()[:2]), ("rows",))
ROWS = PartitionSpec(None, "rows")
SAME = {"window_shape": (3, 3), "strides": (2, 2), "padding": "SAME"}
X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 6, 3)), jnp.float32)


def agree(pool, options):
    """Values and gradients are those of the whole array."""
    split = jaxpool.sharded(pool, MESH, ROWS)

    def values(pool, x):
        return pool(x, **options)

    def gradient(pool, x):
        return jax.grad(lambda x: jnp.sum(jnp.sin(values(pool, x))))(x)

    for f in (values, gradient):
        f = jax.jit(f, static_argnums=0)
        np.testing.assert_allclose(f(split, X), f(pool, X), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(
    "options",
    [
        SAME,
        {**SAME, "padding": 1},
        {**SAME, "padding": "SAME_LOWER", "count_include_pad": False},
        {"window_shape": (5, 3), "padding": "SAME"},
        {"window_shape": (2, 3), "strides": (4, 1), "ceil_mode": True},
        {"window_shape": (3, 2), "strides": 2, "padding": ((0, 0), (1, 1))}
        | {"ceil_mode": True},
        {"window_shape": 3, "strides": (2, 4), "padding": ((1, 1), (1, 0))}
        | {"axis": (2, 1)},
    ],
    ids=str,
)
def test_means_count_what_they_count_in_the_whole_array(options):
    agree(jaxpool.avg_pool, options)


def test_both_axes_and_channels_first():
    mesh = Mesh(np.array(jax.devices()[:2]).reshape(1, 2), ("data", "columns"))
    spec = PartitionSpec("data", None, None, ("columns",))
    pool = jaxpool.sharded(jaxpool.max_pool, mesh, spec)
    x = jnp.moveaxis(X, -1, 1)[..., :4]
    options = {**SAME, "axis": (-2, -1)}
    np.testing.assert_array_equal(pool(x, **options), jaxpool.max_pool(x, **options))


def test_explicit_shardings():
    mesh = jax.make_mesh((2,), ("rows",), axis_types=(AxisType.Explicit,))
    pool = jaxpool.sharded(jaxpool.max_pool, mesh, ROWS)
    with jax.set_mesh(mesh):
        x = jax.device_put(X, NamedSharding(mesh, ROWS))
        y, g = jax.value_and_grad(lambda x: jnp.sum(pool(x, **SAME)))(x)
    f = lambda x: jnp.sum(jaxpool.max_pool(x, **SAME))  # noqa: E731
    wanted, gradient = jax.value_and_grad(f)(X)
    np.testing.assert_allclose(y, wanted, rtol=2e-6)
    np.testing.assert_array_equal(g, gradient)
    assert g.sharding.spec[1] == "rows"


def test_arguments_that_are_traced():
    pool = jaxpool.sharded(jaxpool.gem_pool, MESH, ROWS)
    losses = [
        lambda p, f=f: jnp.sum(f(X, **SAME, p=p)) for f in (pool, jaxpool.gem_pool)
    ]
    split, whole = (jax.jit(jax.grad(loss))(2.5) for loss in losses)
    np.testing.assert_allclose(split, whole, rtol=1e-5)


def test_it_takes_what_the_pool_takes():
    pool = jaxpool.sharded(jaxpool.avg_pool, MESH, ROWS)
    assert inspect.signature(pool) == inspect.signature(jaxpool.avg_pool)
    assert pool.__doc__ == jaxpool.avg_pool.__doc__


@pytest.mark.parametrize(
    ("pool", "error", "message"),
    [
        (jnp.max, TypeError, "`sharded`: `pool` must be a function of jaxpool with a"),
        (
            "max_pool",
            TypeError,
            "with a window, that returns one array; got 'max_pool'",
        ),
        (jaxpool.max_pool_with_argmax, TypeError, "that returns one array"),
        (jaxpool.global_avg_pool, TypeError, "with a window"),
        (jaxpool.exp_weighted_pool, ValueError, "must take one array; got 'exp_"),
    ],
)
def test_pools_it_cannot_split(pool, error, message):
    with pytest.raises(error) as caught:
        jaxpool.sharded(pool, MESH, ROWS)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("mesh", "spec", "error", "message"),
    [
        ("rows", ROWS, TypeError, "`mesh` must be a jax.sharding.Mesh; got 'rows'"),
        (MESH, (None, "rows"), TypeError, "`spec` must be a jax.sharding.Partit"),
        (MESH, PartitionSpec("up"), ValueError, "`spec` must name axes of `mesh`, ("),
        (MESH, PartitionSpec(None, None, 2), ValueError, "`spec` must name axes of"),
        (
            MESH,
            PartitionSpec(*[None] * 5),
            ValueError,
            "`spec` must have at most 4 entries",
        ),
        (MESH, PartitionSpec("rows"), ValueError, "`x` must give each of 2 devices as"),
    ],
)
def test_splits_it_does_not_take(mesh, spec, error, message):
    x = X[:1]
    with pytest.raises(error, match=r"`sharded`: .*got") as caught:
        jaxpool.sharded(jaxpool.max_pool, mesh, spec)(x, **SAME)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("pool", "options", "message"),
    [
        ("max_pool", {**SAME, "padding": "VALID"}, "`padding` must give 4 windows"),
        ("max_pool", {**SAME, "strides": (3, 3)}, "of 2 devices a multiple of the"),
        (
            "max_pool",
            {**SAME, "window_shape": (13, 1)},
            "no further than the 4 elements",
        ),
        ("max_pool", {**SAME, "where": X > 0}, "`where` must be None"),
        ("stochastic_pool", {**SAME, "key": jax.random.key(0)}, "`key` must be None"),
        ("max_pool", {**SAME, "window_shape": (0, 1)}, "`max_pool`: `window_shape`"),
    ],
)
def test_windows_it_cannot_split(pool, options, message):
    with pytest.raises(ValueError, match="got") as caught:
        jaxpool.sharded(getattr(jaxpool, pool), MESH, ROWS)(X, **options)
    assert message in str(caught.value)
