"""What is special to one op: limits, extremes, chances, and numbers from papers."""

import functools
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from jax import lax
from jax.experimental.jet import jet
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.test_util import check_grads
from programs import equations

import jaxpool
from jaxpool._core import engine, indices
from jaxpool._core.geometry import Geometry
from jaxpool._core.window import Window
from jaxpool.testing import questions as ask

# The matrices A and B of the reference numbers.
A = np.arange(16.0, dtype=np.float32).reshape(4, 4, 1)
B = np.array([[0, 0, 1, 2], [0, 0, 3, 0], [-1, 2, 5, -3], [0.5, -4, 1, 1]], np.float32)[
    ..., None
]
TWO = {"window_shape": (2, 2), "strides": (2, 2)}


def normals(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


class TestStochastic:
    def draws(self, x, n=4096, **window):
        keys = jax.random.split(jax.random.key(0), n)
        f = jax.jit(jax.vmap(lambda k: jaxpool.stochastic_pool(x, **window, key=k)))
        return np.asarray(f(keys), np.float64)

    def test_expectation(self):
        for x, expected in (
            (A, [[4.2, 49 / 9], [229 / 21, 12.84]]),
            (B, [[0.0, 14 / 6], [4.25 / 2.5, 27 / 7]]),
        ):
            y = jaxpool.stochastic_pool(x, **TWO, deterministic=True)[..., 0]
            np.testing.assert_allclose(y, expected, rtol=1e-6)

    def test_draws_in_proportion(self):
        drawn = self.draws(B, **TWO)[..., 0]
        assert (drawn[:, 0, 0] == 0).all()
        for place, chances in {
            (0, 1): {1: 1 / 6, 2: 2 / 6, 3: 3 / 6, 0: 0},
            (1, 0): {2: 4 / 5, 0.5: 1 / 5, -1: 0, -4: 0},
            (1, 1): {5: 5 / 7, 1: 2 / 7, -3: 0},
        }.items():
            for value, chance in chances.items():
                share = (drawn[:, *place] == value).mean()
                error = math.sqrt(chance * (1 - chance) / len(drawn))
                assert abs(share - chance) <= 4 * error

    @pytest.mark.parametrize("window", [(3, 3), (7, 7)])
    def test_mean_of_draws_is_the_expectation(self, window):
        x = normals(1, 8, 9, 2)
        spec = {"window_shape": window, "padding": "SAME"}
        drawn = self.draws(x, **spec)
        expected = jaxpool.stochastic_pool(x, **spec, deterministic=True)
        error = drawn.std(0) / math.sqrt(len(drawn))
        assert (np.abs(drawn.mean(0) - expected) <= 4 * error + 1e-6).all()

    def test_windows_draw_independently(self):
        # 64 planes with the same two elements: neighbouring planes agree by chance.
        x = np.tile(np.array([1.0, 2.0], np.float32), (64, 1))[..., None]
        drawn = self.draws(x, n=64, window_shape=(2,))[..., 0, 0]
        share = (drawn[:, ::2] == drawn[:, 1::2]).mean()
        same = 1 / 9 + 4 / 9
        error = math.sqrt(same * (1 - same) / (64 * 32))
        assert abs(share - same) <= 4 * error

    def test_overlapping_windows_draw_independently(self):
        drawn = self.draws(
            np.array([1.0, 1, 1], np.float32)[:, None], window_shape=(2,)
        )
        # x is constant: look at where the gradient goes instead of the values.
        keys = jax.random.split(jax.random.key(0), 4096)
        x = jnp.ones((3, 1))

        def middle(key):
            f = lambda x: jaxpool.stochastic_pool(x, (2,), key=key)  # noqa: E731
            return jax.jacrev(f)(x)[:, 0, 1, 0]

        taken = np.asarray(jax.vmap(middle)(keys))  # whether each took element 1
        both = (taken.sum(1) == 2).mean()
        assert abs(both - 1 / 4) <= 4 * math.sqrt(3 / 16 / 4096)
        assert (drawn == 1).all()

    def test_gradient_goes_to_the_drawn_element(self):
        x, key = normals(2, 6, 6, 3), jax.random.key(1)
        f = lambda x: jaxpool.stochastic_pool(x, **TWO, key=key)  # noqa: E731
        g = np.asarray(jax.grad(lambda x: f(x).sum())(x))
        assert set(np.unique(g)) == {0, 1}
        taken = jaxpool.sum_pool(np.where(g == 1, x, 0), **TWO)
        np.testing.assert_array_equal(taken, f(x))

    @pytest.mark.parametrize("window", [(3, 3), (5, 4), (6, 7)], ids=str)
    def test_forms_agree_on_draws(self, window):
        # Sums of small whole numbers are exact, so that both draw the same elements.
        x = np.random.default_rng(0).integers(-2, 9, (2, 6, 7, 3)).astype(np.float32)
        valid = "VALID" if window == (6, 7) else "SAME"
        spec = dict(window_shape=window, padding=valid, key=jax.random.key(0))

        def both(form):
            with jaxpool.lowering(form):
                f = lambda x: jaxpool.stochastic_pool(x, **spec)  # noqa: E731
                y, pull = jax.vjp(f, x)
                return y, pull(y + 1)[0]

        y, g = both("auto")
        for actual, expected in zip((y, g), both("reduce_window"), strict=True):
            np.testing.assert_array_equal(actual, expected)
        np.testing.assert_array_equal(g.sum(), np.where(y > 0, y + 1, 0).sum())
        np.testing.assert_array_equal((g * x).sum(), (y * (y + 1)).sum())

    @pytest.mark.parametrize("window", [(2, 2), (4, 4), (6, 6)], ids=str)
    @pytest.mark.parametrize("exponent", [-120, 70, 124])
    def test_sums_neither_overflow_nor_vanish(self, window, exponent):
        x, key = np.abs(normals(2, 6, 6, 3)).clip(0.5, 8), jax.random.key(0)
        far = np.ldexp(x, exponent)
        for kwargs in ({"key": key}, {"deterministic": True}):
            f = lambda x, k=kwargs: jaxpool.stochastic_pool(x, window, **k)  # noqa: E731
            np.testing.assert_array_equal(np.ldexp(f(far), -exponent), f(x))

    @pytest.mark.parametrize("window", [(2, 2), (4, 4)], ids=str)
    def test_what_is_not_finite_reaches_its_windows_alone(self, window):
        x = np.abs(normals(1, 6, 6, 1))
        for bad in (np.nan, np.inf):
            for kwargs in ({"key": jax.random.key(0)}, {"deterministic": True}):
                f = lambda x, k=kwargs: jaxpool.stochastic_pool(x, window, **k)  # noqa: E731
                y, pull = jax.vjp(f, jnp.asarray(x).at[0, 0, 0].set(bad))
                g = pull(jnp.ones_like(y))[0]
                np.testing.assert_array_equal(y[0, 0, 0], bad)
                rest = f(x).ravel()[1:]
                np.testing.assert_allclose(y.ravel()[1:], rest, rtol=1e-6)
                assert g[0, 0, 0, 0] == 0
                assert np.isfinite(g).all()

    def test_refuses_planes_that_int32_cannot_count(self):
        x = jax.ShapeDtypeStruct((2**16, 2**15, 1), np.float32)
        f = lambda x: jaxpool.stochastic_pool(x, (20, 20), key=jax.random.key(0))  # noqa: E731
        with pytest.raises(ValueError, match=r"fewer than 2\*\*31 elements in a plane"):
            jax.eval_shape(f, x)

    def test_window_without_positive_elements(self):
        x = -np.abs(normals(1, 4, 4, 1))
        for kwargs in ({"key": jax.random.key(0)}, {"deterministic": True}):
            f = lambda x, k=kwargs: jaxpool.stochastic_pool(x, **TWO, **k)  # noqa: E731
            assert not f(x).any()
            for g in (jax.grad, lambda f: jax.grad(lambda x: jax.grad(f)(x).sum())):
                assert not g(lambda x, f=f: f(x).sum())(x).any()
                assert not g(lambda x, f=f: f(x).sum())(0 * x).any()

    def test_keys(self):
        x = normals(2, 6, 6, 3)
        f = lambda key: jaxpool.stochastic_pool(x, **TWO, key=key)  # noqa: E731
        keys = jax.random.split(jax.random.key(7), 3)
        each = np.stack([f(key) for key in keys])
        assert (each[0] != each[1]).any()
        np.testing.assert_array_equal(f(keys[0]), each[0])
        np.testing.assert_array_equal(jax.jit(f)(keys[0]), each[0])
        np.testing.assert_array_equal(jax.vmap(f)(keys), each)
        with jax.legacy_prng_key("allow"):
            raw = jax.random.key_data(keys[0])
            np.testing.assert_array_equal(f(raw), each[0])
        with jax.debug_key_reuse(True):
            jax.jit(f)(keys[0])

    def test_sharded(self):
        x, key = normals(4, 6, 6, 3), jax.random.key(1)
        f = lambda x: jaxpool.stochastic_pool(x, **TWO, key=key)  # noqa: E731
        rows = PartitionSpec("rows")
        manual = Mesh(np.array(jax.devices()), ("rows",))
        mapped = jax.shard_map(f, mesh=manual, in_specs=rows, out_specs=rows)
        each = np.concatenate([f(x[:2]), f(x[2:])])
        np.testing.assert_array_equal(jax.jit(mapped)(x), each)
        explicit = jax.make_mesh((2,), ("rows",), axis_types=(AxisType.Explicit,))
        with jax.set_mesh(explicit):
            y = jax.jit(f)(jax.device_put(x, NamedSharding(explicit, rows)))
        np.testing.assert_array_equal(y, f(x))

    def test_export_with_symbolic_batch(self):
        x, key = normals(3, 6, 6, 2), jax.random.key(1)
        f = lambda x, key: jaxpool.stochastic_pool(x, **TWO, key=key)  # noqa: E731
        shape = jax.export.symbolic_shape("batch, 6, 6, 2")
        spec = jax.ShapeDtypeStruct(shape, jnp.float32)
        platforms = ["cpu", "cuda", "tpu"]
        exported = jax.export.export(jax.jit(f), platforms=platforms)(spec, key)
        np.testing.assert_array_equal(exported.call(x, key), f(x, key))

    def test_export_with_symbolic_sizes_under_x64(self, x64):
        x, key = normals(2, 6, 6, 2), jax.random.key(1)
        f = lambda x, key: jaxpool.stochastic_pool(x, **TWO, key=key)  # noqa: E731
        shape = jax.export.symbolic_shape("n,h,w,2", constraints=["h >= 4", "w >= 4"])
        spec = jax.ShapeDtypeStruct(shape, x.dtype)
        exported = jax.export.export(jax.jit(f))(spec, key)
        np.testing.assert_array_equal(exported.call(x, key), f(x, key))

    def test_mask_and_large_numbers(self):
        x = jnp.array([1e30, 3e30, 2e30, 5.0])[:, None]
        mean = jaxpool.stochastic_pool(x, (3,), deterministic=True)
        np.testing.assert_allclose(mean[0, 0], 14 / 6 * 1e30, rtol=1e-6)
        only = np.array([False, False, True, False])[:, None]
        for kwargs in ({"key": jax.random.key(0)}, {"deterministic": True}):
            y = jaxpool.stochastic_pool(x, (4,), where=only, **kwargs)
            np.testing.assert_allclose(y, [[2e30]])
        half = jnp.full((4, 1), 6e4, jnp.float16)
        mean = jaxpool.stochastic_pool(half, (4,), deterministic=True)
        np.testing.assert_array_equal(mean, half[:1])


@pytest.mark.usefixtures("quick_compilation")
class TestUnpool:
    def test_undoes_pooling(self):
        x = np.abs(normals(2, 6, 7, 3)) + 1
        y, index = jaxpool.max_pool_with_argmax(x, **TWO)
        back = jaxpool.max_unpool(y, index, (6, 7))
        np.testing.assert_array_equal(back, np.where(back > 0, x, 0))
        np.testing.assert_array_equal(jaxpool.max_pool(back, **TWO), y)

    @pytest.mark.parametrize("axis", [None, (-2, -1), (1, 3), (3, 1)])
    def test_equals_the_oracle(self, axis):
        rng = np.random.default_rng(0)
        shape = {None: (2, 3, 2, 2), (-2, -1): (2, 2, 3, 2)}.get(axis, (2, 3, 2, 2))
        values = rng.normal(size=shape).astype(np.float32)
        indices = rng.integers(-3, 25, shape)  # with duplicates, some outside of 4 * 5
        sizes = (5, 4) if axis == (3, 1) else (4, 5)
        y = jaxpool.max_unpool(values, indices, sizes, axis=axis)
        pooled = {None: (1, 2), (-2, -1): (2, 3)}.get(axis, (1, 3))
        last = [np.moveaxis(a, pooled, (1, 2)) for a in (values, indices, y)]
        np.testing.assert_array_equal(last[2], oracle.unpool(*last[:2], (4, 5)))

    @pytest.mark.parametrize("batch", [(), (0,), (2, 3)], ids=str)
    def test_any_number_of_batch_axes(self, batch):
        x = normals(*batch, 4, 6, 2)
        values, indices = jaxpool.max_pool_with_argmax(x, **TWO)
        y = jax.jit(lambda v, i: jaxpool.max_unpool(v, i, (4, 6)))(values, indices)
        np.testing.assert_array_equal(y, oracle.unpool(values, indices, (4, 6)))

    @pytest.mark.parametrize("split", ["values", "indices", "both"])
    def test_sharded(self, split):
        """Under a mesh of explicit axes indices are split as values are."""
        x = normals(4, 4, 6, 2)
        values, indices = jaxpool.max_pool_with_argmax(x, **TWO)
        wanted = jaxpool.max_unpool(values, indices, (4, 6))
        mesh = jax.make_mesh((2,), ("rows",), axis_types=(AxisType.Explicit,))
        rows = PartitionSpec("rows", None, None, None)
        with jax.set_mesh(mesh):
            put = functools.partial(jax.device_put, device=NamedSharding(mesh, rows))
            if split == "both":
                values, indices = jax.jit(
                    lambda x: jaxpool.max_pool_with_argmax(x, **TWO)
                )(put(x))
                assert indices.sharding.spec == rows
            elif split == "values":
                values = put(values)
            else:
                indices = put(indices)
            unpool = lambda *given: jaxpool.max_unpool(*given, (4, 6))  # noqa: E731
            y = jax.jit(unpool)(values, indices)
            assert y.sharding.spec == rows
            columns = jax.device_put(
                indices, NamedSharding(mesh, PartitionSpec(None, "rows"))
            )
            with pytest.raises(ValueError, match="`indices` must not be sharded"):
                unpool(values, columns)
        np.testing.assert_array_equal(y, wanted)

    def test_export_with_symbolic_batch(self):
        f = lambda x: jaxpool.max_unpool(  # noqa: E731
            *jaxpool.max_pool_with_argmax(x, **TWO), (6, 6)
        )
        shape = jax.export.symbolic_shape("batch, 6, 6, 2")
        spec = jax.ShapeDtypeStruct(shape, jnp.float32)
        exported = jax.export.export(jax.jit(f), platforms=["cpu", "cuda", "tpu"])(spec)
        x = normals(3, 6, 6, 2)
        np.testing.assert_array_equal(exported.call(x), f(x))

    def test_gradient_goes_to_what_was_written(self):
        values = jnp.array([[1.0], [2.0], [3.0]])
        indices = jnp.array([[4], [4], [-1]])
        f = lambda v: (jaxpool.max_unpool(v, indices, (5,)) ** 2).sum()  # noqa: E731
        np.testing.assert_array_equal(jax.grad(f)(values), [[0], [4], [0]])
        check_grads(f, (values,), order=2)

    def test_shard_map(self):
        def there_and_back(x):
            return jaxpool.max_unpool(
                *jaxpool.max_pool_with_argmax(x, **TWO), x.shape[1:3]
            )

        def gradient(x):
            return jax.grad(lambda x: jnp.sum(there_and_back(x) ** 2))(x)

        x, rows = normals(4, 6, 6, 3), PartitionSpec("rows")
        mesh = Mesh(np.array(jax.devices()), ("rows",))
        for f in (there_and_back, gradient):
            mapped = jax.shard_map(f, mesh=mesh, in_specs=rows, out_specs=rows)
            np.testing.assert_array_equal(jax.jit(mapped)(x), f(x))

    def test_booleans(self):
        """Which JAX does not add up."""
        y = jaxpool.max_unpool(np.ones((2, 1), bool), np.array([[1], [2]]), (4,))
        assert y.dtype == bool
        assert y[:, 0].tolist() == [False, True, True, False]

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ((A, A, (8, 8)), TypeError, "`indices` must be integers"),
            ((A, A[:2].astype(int), (8, 8)), ValueError, "must have the shape"),
            ((A, A.astype(int), 8), ValueError, "`output_shape` must be a sequence"),
            ((A, A.astype(int), (8, 0)), ValueError, "must be at least 1; got 0"),
            ((A, A.astype(int), (8, None)), TypeError, "must be made of ints"),
            ((A, A.astype(int), (8,) * 4), ValueError, "must have between 1 and"),
        ],
    )
    def test_refuses(self, arguments, error, message):
        with pytest.raises(error, match="`max_unpool`: ") as raised:
            jaxpool.max_unpool(*arguments)
        assert message in str(raised.value)


def test_planes_that_int32_cannot_count():
    plane = jax.ShapeDtypeStruct((2**16, 2**15, 1), jnp.int8)
    for f in (
        lambda x: jaxpool.max_pool_with_argmax(x, (2, 2)),
        lambda x: jaxpool.adaptive_max_pool_with_argmax(x, (2, 2)),
        lambda x: jaxpool.max_unpool(A, A.astype(np.int32), x.shape[:2]),
    ):
        with pytest.raises(ValueError, match=r"must have fewer than 2\*\*31 elements"):
            jax.eval_shape(f, plane)


class TestConvertIndices:
    # For each convention, the axes that it counts of an array [N, H, W, C].
    AXES: ClassVar = {
        "plane": (1, 2),
        "tf": (1, 2, 3),
        "tf_batch": (0, 1, 2, 3),
        "onnx": (0, 3, 1, 2),
        "onnx_column_major": (0, 3, 2, 1),
    }
    shape = (2, 5, 4, 3)

    def flat(self, convention, dtype=np.int32):
        axes, every = self.AXES[convention], np.indices(self.shape)
        places, sizes = [every[a] for a in axes], [self.shape[a] for a in axes]
        return np.ravel_multi_index(places, sizes).astype(dtype)

    @pytest.mark.parametrize("source", AXES)
    @pytest.mark.parametrize("target", AXES)
    def test_from_each_to_each(self, source, target):
        f = functools.partial(
            jaxpool.convert_indices, source=source, target=target, input_shape=(5, 4)
        )
        given, expected = self.flat(source), self.flat(target)
        np.testing.assert_array_equal(f(given), expected)
        np.testing.assert_array_equal(jax.jit(f)(given), expected)
        first = np.moveaxis(given, 3, 1)  # channels first
        moved = np.moveaxis(f(first, axis=(2, 3)), 1, 3)
        np.testing.assert_array_equal(moved, expected)

    def test_three_axes_and_one(self):
        index = np.ravel_multi_index((1, 2, 3), (2, 3, 4))[None, None, None, None]
        y = jaxpool.convert_indices(index, (2, 3, 4), target="onnx_column_major")
        assert y.item() == np.ravel_multi_index((3, 2, 1), (4, 3, 2))
        y = jaxpool.convert_indices(np.array([[3, 3]]), 5, target="tf", axis=0)
        np.testing.assert_array_equal(y, [[6, 7]])

    def test_what_names_nothing_stays_so(self):
        indices = np.array([-1, 20, 19])[:, None, None]
        y = jaxpool.convert_indices(indices, (5, 4), target="tf")
        np.testing.assert_array_equal(y[:, 0, 0], [-1, -1, 19])

    def test_int64(self, x64):
        wide = {"dtype": jnp.int64, "target": "tf_batch"}
        y = jaxpool.convert_indices(self.flat("plane"), (5, 4), **wide)
        assert y.dtype == jnp.int64
        np.testing.assert_array_equal(y, self.flat("tf_batch"))
        far = jaxpool.convert_indices(np.array([[7]]), (2**30,), **wide)
        assert far.item() == 7
        back = jaxpool.convert_indices(
            np.array([[1], [2**31 + 5]]), (2**31,), source="tf_batch", axis=1, **wide
        )
        np.testing.assert_array_equal(back, [[1], [2**31 + 5]])

    def test_every_dtype(self):
        def given(indices):
            return indices[:, None], dict(input_shape=(300,), source="tf")

        def expected(indices, **_):
            return np.where((indices >= 0) & (indices < 300), indices, -1)

        ask.integer_widths("indices", 300, given, jaxpool.convert_indices, expected)

    @pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint32"])
    def test_dtype_of_the_result(self, dtype):
        """An unsigned one has its largest number for what names no element."""
        indices = np.array([[-1], [100], [300]], np.int32)
        y = jaxpool.convert_indices(indices, (101,), dtype=dtype)
        assert y.dtype == dtype
        none = np.array(-1).astype(dtype)
        np.testing.assert_array_equal(y[:, 0], [none, 100, none])

    def test_unsigned_indices_beyond_int32(self):
        size = 2**31 - 1
        indices = np.array([[[5]], [[size + 5]], [[2 * size]]], np.uint32)
        y = jaxpool.convert_indices(indices[:2], (size,), source="tf_batch")
        np.testing.assert_array_equal(y.ravel(), [5, 5])
        y = jaxpool.convert_indices(indices[1:], (size,), source="tf_batch")
        np.testing.assert_array_equal(y.ravel(), [5, -1])

    def test_the_way_to_an_unpooling(self):
        x = normals(2, 6, 8, 3)
        y, index = jaxpool.max_pool_with_argmax(x, **TWO)
        tf = jaxpool.convert_indices(index, (6, 8), target="tf_batch")
        np.testing.assert_array_equal(x.ravel()[tf], y)
        plane = jaxpool.convert_indices(tf, (6, 8), source="tf_batch")
        np.testing.assert_array_equal(plane, index)

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            (dict(indices=A), TypeError, "`indices` must be integers"),
            (dict(target="torch"), ValueError, "`target` must be one of plane"),
            (dict(source="torch"), ValueError, "`source` must be one of plane"),
            (dict(input_shape=4), ValueError, "`input_shape` must be a sequence"),
            (dict(input_shape=(4, 0)), ValueError, "`input_shape` must be at least"),
            (dict(dtype=jnp.int64), ValueError, "`dtype` needs `jax_enable_x64`"),
            (dict(dtype=float), TypeError, "`dtype` must be an integer type"),
            (dict(dtype=np.ones(2)), TypeError, "`dtype` must be an integer type"),
            (dict(source=np.ones(2)), ValueError, "`source` must be one of plane"),
            (dict(dtype=jnp.int8, target="tf"), ValueError, "hold indices up to 299"),
            (
                dict(dtype=jnp.uint8, input_shape=(16, 16)),
                ValueError,
                "hold indices up to 255, and another for no element",
            ),
        ],
    )
    def test_refuses(self, arguments, error, message):
        usual = {"indices": A.astype(int), "input_shape": (10, 10), "target": "plane"}
        if "target" in arguments and arguments["target"] == "tf":
            usual["indices"] = np.zeros((2, 2, 2, 3), int)
        with pytest.raises(error, match="`convert_indices`: ") as raised:
            jaxpool.convert_indices(**{**usual, **arguments})
        assert message in str(raised.value)


@pytest.mark.usefixtures("quick_compilation")
class TestPower:
    def test_reference_numbers(self):
        y = jaxpool.lp_pool(A, **TWO, p=3)[..., 0]
        powers = [[0 + 1 + 64 + 125, 8 + 27 + 216 + 343]]
        np.testing.assert_allclose(y[:1], np.cbrt(powers), rtol=1e-6)
        np.testing.assert_allclose(
            jaxpool.global_gem_pool(A[None])[0, 0], 900 ** (1 / 3), rtol=1e-6
        )

    @pytest.mark.parametrize("size", [1e-30, 1e-15, 1.0, 1e15, 1e30])
    @pytest.mark.parametrize("p", [1.0, 2.0, 3.0, 8.0])
    def test_extreme_magnitudes(self, size, p):
        x = jnp.array([[3 * size], [-4 * size]], jnp.float32)
        expected = size * (3**p + 4**p) ** (1 / p)
        y, g = jax.value_and_grad(lambda x: jaxpool.lp_pool(x, (2,), p=p).sum())(x)
        np.testing.assert_allclose(y, expected, rtol=2e-6)
        unit = expected / size
        slope = [[(3 / unit) ** (p - 1)], [-((4 / unit) ** (p - 1))]]
        np.testing.assert_allclose(g, slope, rtol=1e-5)

    @pytest.mark.parametrize("p", [0.5, 1.0, 2.0, 3.0, math.inf])
    def test_zeros_have_no_gradient(self, p):
        for x in (jnp.zeros((4, 1)), jnp.array([[0.0], [0], [2], [1]])):
            f = lambda x: jaxpool.lp_pool(x, (2,), (2,), p=p).sum()  # noqa: E731
            g = jax.grad(f)(x)
            assert np.isfinite(g).all()
            assert not g[:2].any()
            assert np.isfinite(jax.hessian(f)(x)).all()

    def test_limits(self):
        x = np.abs(normals(1, 6, 6, 2))
        largest = jaxpool.lp_pool(x, **TWO, p=math.inf)
        np.testing.assert_array_equal(largest, jaxpool.max_pool(x, **TWO))
        ones = jaxpool.lp_pool(x, **TWO, p=1.0, normalize=True)
        np.testing.assert_allclose(ones, jaxpool.avg_pool(x, **TWO), rtol=1e-6)
        near = jaxpool.lp_pool(x, **TWO, p=40.0)
        np.testing.assert_allclose(near, largest, rtol=0.05)

    def test_one_order_for_each_channel(self):
        x = np.abs(normals(1, 6, 6, 2))
        y = jaxpool.lp_pool(x, **TWO, p=jnp.array([1.0, 3.0]))
        for channel, p in enumerate((1.0, 3.0)):
            alone = jaxpool.lp_pool(x, **TWO, p=p)[..., channel]
            np.testing.assert_allclose(y[..., channel], alone, rtol=1e-6)
        for f in (functools.partial(jaxpool.lp_pool, **TWO), jaxpool.global_gem_pool):
            check_grads(jax.jit(lambda p, f=f: f(x, p=p)), (jnp.ones(2) * 2,), 2)


@pytest.mark.usefixtures("quick_compilation")
class TestPool:
    def test_any_reducer_every_derivative(self, x64):
        x = np.random.default_rng(0).uniform(0.5, 1.5, (1, 5, 5, 1))
        for reduce_fn, init in ((lax.mul, 1.0), (jnp.logaddexp, -np.inf)):
            f = lambda x, r=reduce_fn, i=init: jaxpool.pool(  # noqa: E731
                x, i, r, (2, 3), (2, 1), "VALID"
            )
            check_grads(jax.jit(f), (x,), order=2, rtol=1e-3)

    def test_init_counts_as_in_lax(self):
        x = normals(1, 6, 6, 2)
        window = (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0))
        for init, reduce_fn in ((2.0, lax.max), (-1.0, lax.min), (1.0, lax.mul)):
            expected = lax.reduce_window(x, init, reduce_fn, *window)
            y = jaxpool.pool(x, init, reduce_fn, (3, 3), (2, 2), 1)
            np.testing.assert_allclose(y, expected, rtol=1e-6)
            traced = jax.jit(
                lambda i, r=reduce_fn: jaxpool.pool(x, i, r, (3, 3), (2, 2), 1)
            )(init)
            np.testing.assert_allclose(traced, expected, rtol=1e-6)


class TestEngine:
    geometry = Geometry.of(
        Window.of("test", (3, 2), (2, 1), "SAME", axis=(1, 2)), (2, 6, 7, 3)
    )

    @pytest.mark.parametrize(
        "axes", [(-3, -2), (-3, -1), (-4, -2), (-1,), (-4, -3, -1)]
    )
    def test_put_is_the_transpose_of_take(self, axes):
        shape = (4, 5, 3, 2)
        sizes = [shape[a] for a in axes]
        out = list(shape)
        for a in axes:
            out[a] = 2
        x, y = normals(*shape), normals(*out, seed=1)
        index = np.random.default_rng(0).integers(-1, math.prod(sizes), out)
        taken = indices.take(x, jnp.asarray(index), axes)
        put = indices.put(y, jnp.asarray(index), axes, sizes)
        assert put.shape == x.shape
        np.testing.assert_allclose((taken * y).sum(), (x * put).sum(), rtol=1e-4)
        assert not np.asarray(taken)[index < 0].any()

    def test_index_points_at_the_extremum(self):
        x = np.round(normals(2, 6, 7, 3))
        for largest in (True, False):
            y, index = engine.window_choice(x, self.geometry, largest)
            taken = indices.take(x, index, self.geometry.pooled)
            np.testing.assert_array_equal(taken, y)

    def test_gradient_in_half_precision_adds_in_float32(self):
        x = jnp.zeros((31, 31, 1), jnp.bfloat16).at[15, 15].set(1)
        f = lambda x: jaxpool.max_pool(x, (31, 31), padding=15).sum()  # noqa: E731
        assert jax.grad(f)(x)[15, 15, 0] == jnp.bfloat16(961)

    @pytest.mark.parametrize("op", [jaxpool.max_pool, jaxpool.sum_pool])
    @pytest.mark.parametrize("strides", [1, 2, 3, 5])
    @pytest.mark.parametrize("ceil_mode", [False, True])
    def test_never_a_negative_or_dilated_pad(self, op, strides, ceil_mode):
        def f(x):
            return op(x, (2, 3), strides, ceil_mode=ceil_mode)

        with jaxpool.lowering("reduce_window"):
            program = jax.make_jaxpr(f)(normals(1, 7, 8, 1)).jaxpr
        windows = [e for e in equations(program) if "window_dimensions" in e.params]
        assert windows
        for window in windows:
            assert min(min(pair) for pair in window.params["padding"]) >= 0
            assert set(window.params["base_dilation"]) == {1}

    @pytest.mark.parametrize("strides", [(2, 2), (2, 1), (3, 3)])
    @pytest.mark.parametrize("window", [(1, 1), (2, 1), (2, 2)])
    def test_gradient_of_a_large_mean(self, window, strides):
        # XLA's CPU backend has miscompiled dilated sums of 8192 elements and more.
        x = normals(2, 96, 64, 8)
        y = jaxpool.avg_pool(x, window, strides)
        g = normals(*y.shape, seed=1)
        _, pullback = jax.vjp(lambda x: jaxpool.avg_pool(x, window, strides), x)
        expected = np.zeros(x.shape)
        for i in range(window[0]):
            for j in range(window[1]):
                rows = slice(i, i + (y.shape[1] - 1) * strides[0] + 1, strides[0])
                columns = slice(j, j + (y.shape[2] - 1) * strides[1] + 1, strides[1])
                expected[:, rows, columns] += g / math.prod(window)
        np.testing.assert_allclose(pullback(g)[0], expected, rtol=1e-6, atol=1e-6)


def test_mean_of_threes_is_three():
    for size in (1, 2, 3, 5, 6, 7, 9, 10, 11, 13, 23, 31, 39):
        assert jaxpool.avg_pool(jnp.full((size, 1), 3.0), (size,))[0, 0] == 3
        assert jaxpool.global_avg_pool(jnp.full((1, size, 1), 3.0))[0, 0] == 3


def test_64_bit_types_may_come_and_go():
    # What JAX made of a table without them, it must not take for one with them.
    def loss(x):
        return jnp.sum(jaxpool.adaptive_max_pool(x, (7, 4)) ** 2)

    x = np.random.default_rng(0).normal(size=(2, 5, 6, 3))
    for wide in (False, True, False):
        jax.config.update("jax_enable_x64", wide)
        try:
            g = jax.grad(loss)(jnp.asarray(x))
            assert jax.jit(jax.grad(loss))(jnp.asarray(x)).dtype == g.dtype
        finally:
            jax.config.update("jax_enable_x64", False)
        assert g.dtype == (np.float64 if wide else np.float32)


def test_output_shape():
    shape = (8, 112, 111, 64)
    for kwargs in (
        {"strides": (2, 2), "padding": "SAME"},
        {"strides": 2, "ceil_mode": True, "axis": (1, 2)},
        {"window_dilation": (3, 1), "padding": ((1, 2), 0)},
    ):
        expected = jax.eval_shape(
            lambda x, k=kwargs: jaxpool.max_pool(x, (3, 2), **k),
            jax.ShapeDtypeStruct(shape, jnp.float32),
        )
        assert jaxpool.output_shape(shape, (3, 2), **kwargs) == expected.shape
    with pytest.raises(ValueError, match="`input_shape` must be at least 0; got -1"):
        jaxpool.output_shape((-1, 4, 4, 3), (2, 2))
    with pytest.raises(ValueError, match="`input_shape` must have fewer than"):
        jaxpool.output_shape((1, 4, 2**31, 3), (2, 2))


def test_integers_are_not_cut_short():
    for value in (2**31, -(2**31) - 1):
        x = np.array([[0], [value]])
        with pytest.raises(ValueError, match=f"`x` must hold .*int32.*; got {value}"):
            jaxpool.max_pool(x, (2,))
    with pytest.raises(ValueError, match="`x` must hold integers of uint32"):
        jaxpool.max_pool(np.array([[0], [2**32]], np.uint64), (2,))
    x = np.array([[-(2**31)], [2**31 - 1]])
    np.testing.assert_array_equal(jaxpool.max_pool(x, (2,)), [[2**31 - 1]])


@pytest.mark.usefixtures("quick_compilation")
class TestSymbolicSizes:
    """Height and width that are known only when the exported program is called."""

    CASES: ClassVar = {
        "max": lambda x: jaxpool.max_pool(x, (3, 2), (2, 1), [(1, 1), (0, 1)]),
        "max, same": lambda x: jaxpool.max_pool(x, (3, 3), (2, 2), "SAME"),
        "argmax": lambda x: jaxpool.max_pool_with_argmax(x, (2, 2), (2, 2))[0],
        "avg": lambda x: jaxpool.avg_pool(
            x, (3, 3), (2, 2), "SAME", count_include_pad=False
        ),
        "sum": lambda x: jaxpool.sum_pool(x, (3, 3), (1, 1), 1),
        "lp": lambda x: jaxpool.lp_pool(x, (2, 2), (2, 2), normalize=True),
        "mixed": lambda x: jaxpool.mixed_pool(x, (2, 2), (2, 2)),
        "global max": jaxpool.global_max_pool,
        "global avg": jaxpool.global_avg_pool,
        "global lse": jaxpool.global_lse_pool,
    }

    @pytest.mark.parametrize("name", CASES)
    def test_export(self, name):
        f = self.CASES[name]

        def loss(x):
            return (f(x) ** 2).sum()

        shape = jax.export.symbolic_shape(
            "b, h, w, 3", constraints=["h >= 5", "w >= 5"]
        )
        spec = jax.ShapeDtypeStruct(shape, jnp.float32)
        for function in (f, jax.grad(loss)):
            exported = jax.export.export(jax.jit(function))(spec)
            for sizes in ((2, 9, 11), (1, 6, 5)):
                x = normals(*sizes, 3)
                expected = jax.jit(function)(x)
                np.testing.assert_allclose(
                    exported.call(x), expected, rtol=1e-5, atol=1e-6
                )

    def test_rules_that_need_a_known_size(self):
        spec = jax.ShapeDtypeStruct(jax.export.symbolic_shape("b, h, 6, 3"), "float32")
        for f in (
            lambda x: jaxpool.max_pool(x, (2, 2), ceil_mode=True),
            lambda x: jaxpool.adaptive_max_pool(x, (2, 2)),
        ):
            with pytest.raises(ValueError, match="must have pooled axes of known size"):
                jax.eval_shape(f, spec)


@pytest.mark.parametrize("window", [(2, 2), (5, 5), (6, 7)])
@pytest.mark.parametrize(
    "pool",
    [
        jaxpool.avg_pool,
        functools.partial(jaxpool.avg_pool, padding="SAME", count_include_pad=False),
        jaxpool.sum_pool,
        lambda x, _: jaxpool.global_avg_pool(x),
        jaxpool.adaptive_avg_pool,
    ],
)
def test_taylor_series_go_through_sums_and_means(pool, window):
    """`jet` pushes each coefficient through what is linear."""
    x, v, w = np.random.default_rng(0).normal(size=(3, 2, 6, 7, 3)).astype(np.float32)
    f = functools.partial(lambda window, x: pool(x, window), window)
    y, series = jet(f, (x,), ([jnp.asarray(v), jnp.asarray(w)],))
    for actual, given in zip((y, *series), (x, v, w), strict=True):
        np.testing.assert_allclose(actual, f(given), rtol=1e-5, atol=1e-5)
