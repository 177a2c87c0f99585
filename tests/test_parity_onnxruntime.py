"""The integers of ONNX Runtime's quantized pools on the CPU, one by one.

Everything is compared exactly: a rounding too many shows where means are halves.
"""

import functools

import jax
import numpy as np
import pytest

import jaxpool
from jaxpool import QuantParams

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

equal = np.testing.assert_array_equal
SAME, OTHER = ((0.1, 3), (0.1, 3)), ((0.37, -7), (0.23, 11))


def integers(shape, dtype=np.int8):
    limits = np.iinfo(dtype)
    rng = np.random.default_rng(0)
    return rng.integers(limits.min, limits.max + 1, shape).astype(dtype)


def run(nodes, x, output_type, tensors=(), level=99):
    """The result `y` of nodes that read `x` and named constants."""
    h = onnx.helper
    kind = h.np_dtype_to_tensor_dtype
    graph = h.make_graph(
        nodes,
        "pool",
        [h.make_tensor_value_info("x", kind(x.dtype), x.shape)],
        [h.make_tensor_value_info("y", kind(np.dtype(output_type)), None)],
        [onnx.numpy_helper.from_array(np.asarray(v), n) for n, v in tensors],
    )
    opsets = [h.make_opsetid("", 19), h.make_opsetid("com.microsoft", 1)]
    model = h.make_model(graph, opset_imports=opsets, ir_version=10)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel(level)
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": x})[0]


def constants(params, output, dtype):
    """Scales and zero points, by name, as the contributed ops take them."""
    (s, z), (s_out, z_out) = params, output
    values = (np.float32(s), dtype(z), np.float32(s_out), dtype(z_out))
    return list(zip(("s", "z", "s_out", "z_out"), values, strict=True))


def contributed(op, q, params, output, **attributes):
    names = ["x", "s", "z", "s_out", "z_out"]
    node = onnx.helper.make_node(op, names, ["y"], domain="com.microsoft", **attributes)
    return run([node], q, q.dtype, constants(params, output, q.dtype.type))


def ours(op, q, params, output, **given):
    pool = functools.partial(
        op,
        params=QuantParams(*params, q.dtype),
        output_params=QuantParams(*output, q.dtype),
        preset="onnx",
        **given,
    )
    y = pool(q)
    # Compiled as a whole, a product and a sum must not become one operation.
    equal(jax.jit(pool)(q), y)
    return y


@pytest.mark.parametrize(("params", "output"), [SAME, OTHER], ids=["same", "other"])
@pytest.mark.parametrize(
    ("window", "strides", "pads", "include"),
    [
        ((2, 2), (2, 2), (0, 0), False),
        ((3, 4), (2, 1), (1, 2), False),
        ((3, 4), (2, 1), (1, 2), True),
        ((1, 6), (1, 1), (0, 3), True),
    ],
    ids=str,
)
def test_avg_pool(window, strides, pads, include, params, output):
    q = integers((4, 10, 12, 3))
    attributes = dict(
        kernel_shape=window,
        strides=strides,
        pads=pads * 2,
        count_include_pad=int(include),
    )
    expected = contributed(
        "QLinearAveragePool", q, params, output, channels_last=1, **attributes
    )
    first = np.moveaxis(q, -1, 1)
    y = contributed("QLinearAveragePool", first, params, output, **attributes)
    equal(np.moveaxis(y, 1, -1), expected)
    y = ours(
        jaxpool.quantized_avg_pool,
        q,
        params,
        output,
        window_shape=window,
        strides=strides,
        padding=pads,
        count_include_pad=include,
    )
    equal(y, expected)


@pytest.mark.parametrize("spatial", [1, 3])
def test_lines_and_volumes(spatial):
    q = integers((2, *(7,) * spatial, 3))
    window = (2, 3, 2)[-spatial:]
    params, output = OTHER
    y = contributed(
        "QLinearAveragePool", q, params, output, channels_last=1, kernel_shape=window
    )
    pool = jaxpool.quantized_avg_pool
    equal(ours(pool, q, params, output, window_shape=window), y)


@pytest.mark.parametrize(("params", "output"), [SAME, OTHER], ids=["same", "other"])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_global_avg_pool(dtype, params, output):
    params = (params[0], abs(params[1]))
    for sizes in ((2, 2), (6, 7), (14, 14)):
        q = integers((32, *sizes, 12), dtype)
        y = contributed("QLinearGlobalAveragePool", q, params, output, channels_last=1)
        pool = functools.partial(jaxpool.quantized_global_avg_pool, keepdims=True)
        equal(ours(pool, q, params, output), y)
        # One window over everything goes the same way.
        attributes = dict(channels_last=1, kernel_shape=sizes)
        z = contributed("QLinearAveragePool", q, params, output, **attributes)
        equal(z, y)
        pool = functools.partial(jaxpool.quantized_avg_pool, window_shape=sizes)
        equal(ours(pool, q, params, output), y)


def test_quantize_pool_dequantize_is_fused_into_the_same():
    """What exporters write: DequantizeLinear, AveragePool, QuantizeLinear."""
    q = integers((4, 3, 10, 10))
    node = onnx.helper.make_node
    nodes = [
        node("DequantizeLinear", ["x", "s", "z"], ["r"]),
        node("AveragePool", ["r"], ["a"], kernel_shape=[2, 2], strides=[2, 2]),
        node("QuantizeLinear", ["a", "s_out", "z_out"], ["y"]),
    ]
    for params, output in (SAME, OTHER):
        y = run(nodes, q, np.int8, constants(params, output, np.int8))
        given = dict(window_shape=(2, 2), strides=(2, 2), axis=(-2, -1))
        equal(ours(jaxpool.quantized_avg_pool, q, params, output, **given), y)


def test_overhang_counts_there():
    """It divides by the whole window behind the input too; ONNX and PyTorch do not."""
    q = np.full((1, 3, 3, 1), 90, np.int8)
    attributes = dict(kernel_shape=(2, 2), strides=(2, 2), ceil_mode=1)
    params, output = (1.0, 0), (1.0, 0)
    y = contributed(
        "QLinearAveragePool",
        q,
        params,
        output,
        channels_last=1,
        count_include_pad=1,
        **attributes,
    )
    equal(y[0, ..., 0], [[90, 45], [45, 22]])
    y = ours(
        jaxpool.quantized_avg_pool,
        q,
        params,
        output,
        window_shape=(2, 2),
        strides=(2, 2),
        ceil_mode=True,
        count_include_pad=True,
    )
    equal(y, np.full((1, 2, 2, 1), 90))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_quantize_and_dequantize(dtype):
    x = np.random.default_rng(0).standard_normal(4096).astype(np.float32) * 20
    x[:512] = np.arange(-256, 256) * np.float32(0.05)  # halves
    scale, zero = np.float32(0.1), dtype(5)
    tensors = [("s", scale), ("z", zero)]
    params = QuantParams(scale, zero, dtype)
    node = onnx.helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"])
    q = run([node], x, dtype, tensors)
    equal(jaxpool.quantize(x, params), q)
    equal(jax.jit(lambda x: jaxpool.quantize(x, params))(x), q)
    node = onnx.helper.make_node("DequantizeLinear", ["x", "s", "z"], ["y"])
    equal(jaxpool.dequantize(q, params), run([node], q, np.float32, tensors))


def test_max_pool():
    q = integers((2, 3, 9, 8))
    node = onnx.helper.make_node(
        "MaxPool", ["x"], ["y"], kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 1]
    )
    y = jaxpool.quantized_max_pool(
        q, (3, 2), strides=(2, 1), padding=((1, 1), (0, 1)), axis=(-2, -1)
    )
    equal(y, run([node], q, np.int8))
