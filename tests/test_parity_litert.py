"""The integers of TensorFlow Lite's quantized pools (LiteRT), one by one.

A model is one op, written with the runtime's own schema.
"""

import jax
import numpy as np
import pytest

import jaxpool
from jaxpool import QuantParams

schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
flatbuffers = pytest.importorskip("flatbuffers")
litert = pytest.importorskip("ai_edge_litert.interpreter")

equal = np.testing.assert_array_equal
KINDS = {
    np.dtype(np.int8): schema.TensorType.INT8,
    np.dtype(np.uint8): schema.TensorType.UINT8,
    np.dtype(np.float32): schema.TensorType.FLOAT32,
}


def tensor(name, like, params):
    t = schema.TensorT()
    t.name, t.shape, t.type, t.buffer = name, like.shape, KINDS[like.dtype], 0
    if params is not None:
        t.quantization = schema.QuantizationParametersT()
        t.quantization.scale = [params.scale]
        t.quantization.zeroPoint = [params.zero_point]
    return t


def run(code, options, x, like, params, resolver="BUILTIN", version=2):
    """The result, of the shape and dtype of `like`, of one op."""
    op, kind = schema.OperatorT(), schema.OperatorCodeT()
    kind.builtinCode = kind.deprecatedBuiltinCode = code
    kind.version = version
    op.opcodeIndex, op.inputs, op.outputs = 0, [0], [1]
    if options is not None:
        name = type(options).__name__.removesuffix("T")
        op.builtinOptionsType = getattr(schema.BuiltinOptions, name)
        op.builtinOptions = options
    graph, model = schema.SubGraphT(), schema.ModelT()
    graph.tensors = [
        tensor(n, a, None if a.dtype == np.float32 else params)
        for n, a in (("x", x), ("y", like))
    ]
    graph.inputs, graph.outputs, graph.operators = [0], [1], [op]
    model.version, model.operatorCodes, model.subgraphs = 3, [kind], [graph]
    model.buffers = [schema.BufferT()]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    interpreter = litert.Interpreter(
        model_content=bytes(builder.Output()),
        experimental_op_resolver_type=getattr(litert.OpResolverType, resolver),
    )
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


def pool(code, window, strides, padding, x, like, params, **more):
    options = schema.Pool2DOptionsT()
    options.filterHeight, options.filterWidth = window
    options.strideH, options.strideW = strides
    options.padding = getattr(schema.Padding, padding)
    return run(code, options, x, like, params, **more)


def integers(shape, dtype):
    limits = np.iinfo(dtype)
    rng = np.random.default_rng(0)
    return rng.integers(limits.min, limits.max + 1, shape).astype(dtype)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
@pytest.mark.parametrize(
    ("window", "strides", "padding"),
    [
        ((2, 2), (2, 2), "VALID"),
        ((3, 4), (2, 1), "SAME"),
        ((4, 3), (3, 2), "SAME"),
        ((6, 7), (1, 1), "VALID"),
    ],
    ids=str,
)
def test_avg_and_max_pool(window, strides, padding, dtype):
    q, params = integers((8, 10, 12, 5), dtype), QuantParams(0.1, 4, dtype)
    codes = schema.BuiltinOperator
    given = dict(window_shape=window, strides=strides, padding=padding)
    averages = jax.jit(lambda q: jaxpool.quantized_avg_pool(q, params=params, **given))(
        q
    )
    largest = np.asarray(jaxpool.quantized_max_pool(q, **given))
    for code, y in (
        (codes.AVERAGE_POOL_2D, np.asarray(averages)),
        (codes.MAX_POOL_2D, largest),
    ):
        for resolver in ("BUILTIN_REF", "BUILTIN_WITHOUT_DEFAULT_DELEGATES", "BUILTIN"):
            given_there = (window, strides, padding, q, y, params)
            equal(y, pool(code, *given_there, resolver=resolver))


def test_global_avg_pool():
    q, params = integers((16, 6, 7, 5), np.int8), QuantParams(0.1, 4)
    y = jaxpool.quantized_global_avg_pool(q, params=params, keepdims=True)
    code = schema.BuiltinOperator.AVERAGE_POOL_2D
    equal(y, pool(code, (6, 7), (1, 1), "VALID", q, np.asarray(y), params))


def test_quantize_and_dequantize():
    x = np.arange(-256, 256, dtype=np.float32) * np.float32(0.25)
    params = QuantParams(0.5, 3)
    q = np.asarray(jaxpool.quantize(x, params, rounding="away"))
    codes = schema.BuiltinOperator
    equal(
        q, run(codes.QUANTIZE, schema.QuantizeOptionsT(), x, q, params, "BUILTIN_REF")
    )
    reals = np.asarray(jaxpool.dequantize(q, params))
    options = schema.DequantizeOptionsT()
    equal(reals, run(codes.DEQUANTIZE, options, q, reals, params))
