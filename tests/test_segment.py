"""Segment pooling: identities, ids of nobody, masks, ties, NaN, and JAX's own sums."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families.segment import MODES, segment_pool
from jax.sharding import Mesh, PartitionSpec

import jaxpool

pytestmark = pytest.mark.usefixtures("quick_compilation")

F32 = dict(rtol=2e-6, atol=2e-6)
close = np.testing.assert_allclose
equal = np.testing.assert_array_equal
pool = jax.jit(jaxpool.segment_pool, static_argnums=2, static_argnames="mode")


def normals(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def loss(mode, ids, count, where=None):
    """A function of `x`: the weighted sum of the finite results."""

    def f(x):
        y = jaxpool.segment_pool(x, ids, count, mode=mode, where=where)
        weights = jnp.arange(1.0, y.size + 1, dtype=y.dtype).reshape(y.shape)
        return jnp.where(jnp.isfinite(y), y * weights, 0).sum()

    return f


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.uint32])
def test_ids_of_nobody_and_empty_segments(dtype):
    """Segment 1 is empty, and far more segments than an int8 could name."""
    x, ids = normals(4, 3), np.array([0, 2, 250, 0]).astype(dtype)
    y = pool(x, ids, 300, mode=MODES)
    wide = ids.astype(np.int64)
    equal(wide[2] < 0, dtype == np.int8)
    expected = segment_pool(x, segment_ids=wide, num_segments=300, mode=MODES)
    close(y, expected, **F32)
    empty = [0, 0, -np.inf, np.inf, 0, 0]
    equal(y[1].reshape(6, 3), np.repeat(empty, 3).reshape(6, 3))
    counts = pool(np.array([3, -4, 7], np.int32), ids[:3], 2, mode="max")
    equal(counts, [3, np.iinfo(np.int32).min])


def test_masks_hide_nan():
    x = normals(6, 3)
    ids = np.array([1, 0, 1, 0, 0, 1], np.int32)
    rng = np.random.default_rng(1)
    for where in (rng.random(6) > 0.5, rng.random((6, 3)) > 0.5, np.zeros(6, bool)):
        full = where[:, None] if where.ndim == 1 else where
        expected = segment_pool(x, where, segment_ids=ids, num_segments=2, mode=MODES)
        for secret in (np.nan, np.inf):
            hidden = np.where(full, x, secret).astype(np.float32)
            close(pool(hidden, ids, 2, mode=MODES, where=where), expected, **F32)
            g = jax.jit(jax.grad(loss(MODES, ids, 2, where)))(hidden)
            assert np.isfinite(g).all()
            assert not np.where(full, 0, g).any()


def test_the_first_of_equals_has_the_gradient():
    x = np.array([2.0, 5.0, 5.0, 2.0, 5.0, 2.0], np.float32)[:, None]
    ids = np.array([1, 0, 0, 1, 1, 1], np.int32)
    for mode, expected in (
        ("max", [0, 1, 0, 0, 2, 0]),
        ("min", [2, 1, 0, 0, 0, 0]),
    ):
        equal(jax.grad(loss(mode, ids, 2))(x)[:, 0], expected)


def test_nan_wins_and_has_the_gradient():
    x = np.array([9.0, np.nan, np.nan, -np.inf, np.inf], np.float32)[:, None]
    ids = np.array([0, 0, 0, 1, 2], np.int32)
    for mode in ("max", "min"):
        equal(pool(x, ids, 3, mode=mode)[:, 0], [np.nan, -np.inf, np.inf])
        f = functools.partial(jaxpool.segment_pool, num_segments=3, mode=mode)
        _, pullback = jax.vjp(lambda x: f(x, ids), x)  # noqa: B023
        equal(pullback(jnp.ones((3, 1)))[0][:, 0], [0, 1, 0, 1, 1])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_adds_in_float32(dtype):
    x = jnp.ones((4096, 1), dtype)
    ids = np.zeros(4096, np.int32)
    equal(pool(x, ids, 1, mode="sum").astype(jnp.float32), [[4096.0]])
    equal(pool(x * 3, ids, 1, mode="mean").astype(jnp.float32), [[3.0]])


def test_dtypes_of_integers():
    x, ids = np.arange(6, dtype=np.int8).reshape(3, 2), np.array([0, 1, 0], np.int32)
    assert pool(x, ids, 2, mode="max").dtype == jnp.int8
    assert pool(x, ids, 2, mode=("sum", "max")).dtype == jnp.sum(x).dtype
    assert pool(x, ids, 2, mode="mean").dtype == jnp.float32
    equal(pool(x > 2, ids, 2, mode=("max", "min")), [[1, 1, 0, 0], [0, 1, 0, 1]])


def test_equals_jax_segments():
    x, ids = normals(50, 3), np.random.default_rng(0).integers(-2, 9, 50)
    ids = ids.astype(np.int32)
    for mode in ("sum", "max", "min"):
        theirs = getattr(jax.ops, f"segment_{mode}")(x, ids, 7)
        close(pool(x, ids, 7, mode=mode), theirs, **F32)


def test_several_modes_of_rows_without_axes():
    with pytest.raises(ValueError, match="`mode` must be one for an array whose rows"):
        jaxpool.segment_pool(np.ones(3), np.array([0, 0, 1]), 2, mode=("sum", "max"))
    with pytest.raises(ValueError, match="must have elements along the pooled axes"):
        jaxpool.segment_pool(np.ones((0, 2)), np.ones(0, int), 2)


def test_symbolic_number_of_rows():
    x, ids = normals(5, 2), np.array([1, 0, 1, 1, 0], np.int32)
    rows, channels = jax.export.symbolic_shape("n, 2")
    spec = (
        jax.ShapeDtypeStruct((rows, channels), x.dtype),
        jax.ShapeDtypeStruct((rows,), ids.dtype),
    )
    f = lambda x, ids: jaxpool.segment_pool(x, ids, 2, mode=MODES)  # noqa: E731
    gradient = lambda x, ids: jax.grad(loss(MODES, ids, 2))(x)  # noqa: E731
    for g in (f, gradient):
        exported = jax.export.export(jax.jit(g))(*spec)
        close(exported.call(x, ids), jax.jit(g)(x, ids), **F32)


def test_batched_ids():
    x, ids = normals(2, 5, 3), np.array([[1, 0, 1, 1, 0], [0, 0, 1, 0, 1]], np.int32)
    f = functools.partial(jaxpool.segment_pool, num_segments=2, mode=MODES)
    y = jax.jit(jax.vmap(f))(x, ids)
    for i in range(2):
        close(y[i], pool(x[i], ids[i], 2, mode=MODES), **F32)


def test_each_device_pools_its_rows():
    """What the docstring says of `shard_map`: sums add up across devices."""
    x, ids = normals(4, 3), np.array([1, 0, 1, 1], np.int32)
    mesh = Mesh(np.array(jax.devices()), ("rows",))
    rows = PartitionSpec("rows")

    def f(x, ids):
        total = jaxpool.segment_pool(x, ids, 2, mode="sum")
        return jax.lax.psum(total, "rows")

    mapped = jax.shard_map(
        f, mesh=mesh, in_specs=(rows, rows), out_specs=PartitionSpec()
    )
    close(jax.jit(mapped)(x, ids), pool(x, ids, 2, mode="sum"), **F32)


def test_ids_at_the_call_of_a_module():
    from jaxpool import linen, nnx

    x, ids = normals(4, 3), np.array([1, 0, 1, 1], np.int32)
    expected = jaxpool.segment_pool(x, ids, 2, mode="max")
    close(nnx.SegmentPool(2, mode="max")(x, ids), expected)
    close(linen.SegmentPool(2, mode="max").apply({}, x, ids), expected)
