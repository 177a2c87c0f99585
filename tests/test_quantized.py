"""What the quantized ops promise beyond the contract: parameters, limits, sums."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxpool
from jaxpool import QuantParams

equal = np.testing.assert_array_equal


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0.0,), ValueError, "`scale` must be a finite number greater than 0"),
        ((-1.0,), ValueError, "`scale` must be a finite number"),
        ((np.nan,), ValueError, "`scale` must be a finite number"),
        ((np.inf,), ValueError, "`scale` must be a finite number"),
        ((1e-60,), ValueError, "in float32 too; got 1e-60"),
        ((1e60,), ValueError, "in float32 too; got 1e\\+60"),
        (("1",), TypeError, "`scale` must be a finite number"),
        ((None,), TypeError, "`scale` must be a finite number"),
        ((np.ones(2),), TypeError, "`scale` must be a finite number"),
        ((1.0, 128), ValueError, "`zero_point` must be at most 127; got 128"),
        ((1.0, -129), ValueError, "`zero_point` must be at least -128; got -129"),
        ((1.0, -1, "uint8"), ValueError, "`zero_point` must be at least 0; got -1"),
        ((1.0, 0.0), TypeError, "`zero_point` must be made of ints; got 0.0"),
        ((1.0, 0, "int16"), ValueError, "`dtype` must be 'int8' or 'uint8'"),
        ((1.0, 0, "byte code"), TypeError, "`dtype` must be 'int8' or 'uint8'"),
        ((1.0, 0, jax.random.key(0)), TypeError, "`dtype` must be 'int8' or 'uint8'"),
    ],
    ids=str,
)
def test_params_are_checked(arguments, error, message):
    with pytest.raises(error, match=f"^`QuantParams`: .*{message}"):
        QuantParams(*arguments)


def test_params_are_static():
    params = QuantParams(np.float32(0.1), np.int64(3), jnp.uint8)
    assert params == QuantParams(0.1, 3, "uint8")
    assert hash(params) == hash(QuantParams(0.1, 3, np.uint8))
    assert np.float32(params.scale) == np.float32(0.1)
    assert jax.tree.leaves(params) == []
    q, same = jax.jit(lambda x, p: (jaxpool.quantize(x, p), p))(jnp.ones(2), params)
    assert same == params
    equal(q, [13, 13])
    with pytest.raises(TypeError, match="`scale` must be a finite number"):
        jax.jit(QuantParams)(0.1)


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_quantize_inverts_dequantize(dtype):
    limits = np.iinfo(dtype)
    q = np.arange(limits.min, limits.max + 1).astype(dtype)
    for scale in (0.1, 3.0, 1e-30):
        params = QuantParams(scale, 7, dtype)
        x = jaxpool.dequantize(q, params)
        assert x.dtype == jnp.float32
        equal(jaxpool.quantize(x, params), q)
        equal(jaxpool.quantize(x.astype(jnp.bfloat16), params).dtype, dtype)


def test_quantize_rounds_and_saturates():
    x = jnp.array([0.5, 1.5, -0.5, -1.5, 0.49999997, np.nan, np.inf, -np.inf, 1e30])
    for rounding, expected in (("even", [0, 2, 0, -2]), ("away", [1, 2, -1, -2])):
        q = jaxpool.quantize(x, QuantParams(1.0, 4), rounding=rounding)
        equal(q, [*(v + 4 for v in expected), 4, 4, 127, -128, 127])


@pytest.mark.parametrize(
    ("preset", "windows", "whole"),
    [
        ("tflite", [7, 6, -7, -6], [7, 6, -7, -6]),
        ("torch", [6, 6, -6, -6], [6, 6, -6, -6]),
        ("onnx", [6, 6, -6, -6], [7, 5, -7, -5]),  # 3 + 3.5, 2.5, -9.5, -8.5
    ],
)
def test_what_halves_become(preset, windows, whole):
    q = jnp.array([[6, 7], [5, 6], [-6, -7], [-5, -6]], jnp.int8)[..., None]
    given = dict(params=QuantParams(0.5, 3), preset=preset)
    y = jaxpool.quantized_avg_pool(q.reshape(8, 1), (2,), strides=(2,), **given)
    equal(y[:, 0], windows)
    equal(jaxpool.quantized_global_avg_pool(q, **given)[:, 0], whole)


def test_bad_arguments():
    params, x = QuantParams(), jnp.ones((1, 2, 2, 1))
    unsigned = x.astype(jnp.uint8)
    other = "must have the dtype of `params`, int8"
    for call, error, message in (
        (lambda: jaxpool.quantize(x, params, rounding=""), ValueError, "`rounding`"),
        (lambda: jaxpool.quantize(x, 0.1), TypeError, "`params` must be a QuantParams"),  # pyright: ignore
        (lambda: jaxpool.quantize("x", params), TypeError, "must be an array of"),
        (
            lambda: jaxpool.quantize(np.ones(2) * 1j, params),
            TypeError,
            "`x` must be real",
        ),
        (lambda: jaxpool.dequantize(x, params), TypeError, "`q` must be int8 or uint8"),
        (lambda: jaxpool.dequantize(unsigned, params), TypeError, other),
        (
            lambda: jaxpool.quantized_avg_pool(unsigned, (2, 2), params=params),
            TypeError,
            other,
        ),
    ):
        with pytest.raises(error, match=message):
            call()


@pytest.mark.parametrize("preset", ["tflite", "onnx", "torch"])
def test_every_preset_under_masks_and_transforms(preset):
    q = np.random.default_rng(0).integers(-128, 128, (2, 8, 6, 3)).astype(np.int8)
    params = QuantParams(0.1, 5)
    given = dict(params=params, preset=preset)

    def pool(q, where=None):
        return jaxpool.quantized_avg_pool(
            q, (3, 2), padding="SAME", **given, where=where
        )

    expected = pool(q)
    equal(jax.vmap(pool)(q), expected)
    explicit = jax.make_mesh((2,), ("rows",), axis_types=(AxisType.Explicit,))
    rows = NamedSharding(explicit, PartitionSpec("rows"))
    with jax.set_mesh(explicit):
        y = jax.jit(pool)(jax.device_put(q, rows))
    equal(y, expected)
    assert y.sharding.spec[0] == "rows"
    # Hiding a column is not having it, and a window of nothing has the real 0.
    seen = np.arange(6) < 4
    narrow, masked = pool(q[:, :, :4]), pool(q, seen[:, None])
    same = slice(0, 3) if preset == "torch" else slice(0, 4)  # which counts padding
    equal(masked[:, :, same], narrow[:, :, same])
    equal(masked[:, 1:-1, 5:], np.full((2, 6, 1, 3), 5))
    whole = functools.partial(jaxpool.quantized_global_avg_pool, **given)
    alone = q[:, :, :4] if preset != "torch" else q[:, :, :4].reshape(2, 32, 3)
    equal(whole(q, where=seen[:, None]), whole(alone))
    equal(whole(q, where=False), np.full((2, 3), 5))


def test_sums_never_overflow():
    lowest = QuantParams(1.0, 127)
    largest = jax.ShapeDtypeStruct((1, 2**22, 1), jnp.int8)
    jax.eval_shape(jaxpool.quantized_global_avg_pool, largest)
    larger = jax.ShapeDtypeStruct((1, 2**22 + 1, 1), jnp.int8)
    with pytest.raises(ValueError, match="`x` must hold at most 4194304 elements"):
        jax.eval_shape(jaxpool.quantized_global_avg_pool, larger)
    with pytest.raises(ValueError, match="`window_shape` must hold at most 4194304"):
        jax.eval_shape(
            lambda x: jaxpool.quantized_avg_pool(x, (2**22 + 1,), padding=1), larger
        )
    x = jnp.full((1, 2**22, 1), -128, jnp.int8)
    for preset in ("tflite", "torch", "onnx"):
        y = jaxpool.quantized_global_avg_pool(x, params=lowest, preset=preset)
        equal(y, [[-128]])


def test_windows_must_have_a_known_size():
    shape = jax.export.symbolic_shape("b, n, 2")
    x = jax.ShapeDtypeStruct(shape, jnp.int8)
    with pytest.raises(ValueError, match="must have pooled axes of known size"):
        jax.eval_shape(jaxpool.quantized_global_avg_pool, x)
    with pytest.raises(ValueError, match="must have pooled axes of known size"):
        jax.eval_shape(lambda x: jaxpool.quantized_avg_pool(x, (2,), preset="onnx"), x)

    def pool(x):
        return jaxpool.quantized_avg_pool(x, (2,), padding="SAME")

    exported = jax.export.export(jax.jit(pool))(x)
    q = jnp.array([1, 2, 4, 7], jnp.int8)[None, :, None] * jnp.ones((1, 1, 2), jnp.int8)
    equal(exported.call(q)[0, :, 0], [2, 3, 6, 7])


def test_modules():
    nnx = pytest.importorskip("jaxpool.nnx")
    linen = pytest.importorskip("jaxpool.linen")
    params = QuantParams(0.1, 3)
    q = jaxpool.quantize(jnp.linspace(-9, 9, 50).reshape(1, 5, 5, 2), params)
    given = dict(window_shape=(2, 2), params=params, preset="torch")
    expected = jaxpool.quantized_avg_pool(q, **given)
    equal(nnx.QuantizedAvgPool(**given)(q), expected)
    equal(linen.QuantizedAvgPool(**given).apply({}, q), expected)
