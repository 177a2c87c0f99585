"""ONNX: a JAX function as a graph of ONNX nodes, run and compared before it is kept."""

import functools
import inspect
import itertools
import os
import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np

import jaxpool
from jaxpool._core.window import fail
from jaxpool.deploy.agreement import Artefact, DeployError, check_agreement, need

onnx = need("onnx", "onnx")
from jaxpool.deploy import onnx_ops  # noqa: E402
from jaxpool.deploy.onnx_graph import Graph, Value, dim_at, element_type  # noqa: E402
from jaxpool.deploy.onnx_pools import KNOWN, POOLS  # noqa: E402

onnx_ops.RULES.update(POOLS)
onnx_ops._KNOWN.update(KNOWN)

__all__ = ["onnx_model", "to_onnx"]

OPSET = 21
_LEAST_OPSET = 20
# Sums differ by the order they are added up in, and libraries in the last bits.
_TOLERANCES = {"float64": 1e-10, "float32": 2e-5, "float16": 4e-3, "bfloat16": 4e-2}
_BATCH = "batch"


def to_onnx(
    fn: Callable[..., Any],
    *inputs: Any,
    out: str | os.PathLike[str],
    dynamic_batch: bool | Sequence[bool] = True,
    opset: int = OPSET,
    tolerance: float | None = None,
) -> Artefact:
    """Writes."""
    runtime = need("onnx", "onnxruntime")
    arrays = [_array(x) for x in inputs]
    model = onnx_model(fn, *arrays, dynamic_batch=dynamic_batch, opset=opset)
    content = model.SerializeToString()
    session = _session(runtime, content)
    error = 0.0
    for given in _examples(arrays, _dynamic(arrays, dynamic_batch)):
        expected = jax.tree.leaves(jax.jit(lambda *xs: fn(*xs))(*given))
        names = [i.name for i in session.get_inputs()]
        feed = {n: np.asarray(x) for n, x in zip(_inputs(model), given, strict=True)}
        actual = session.run(None, {n: feed[n] for n in names})
        expected = [np.asarray(y) for y in expected]
        limit = tolerance
        if limit is None:
            limits = [_TOLERANCES.get(str(y.dtype), 0.0) for y in expected]
            limit = max(limits, default=0.0)
        error = max(error, check_agreement("ONNX", expected, actual, limit))
    path = Path(out)
    _replace(path, content)
    return Artefact(path, kinds(model), error)


def kinds(model: Any) -> dict[str, int]:
    """How often a model holds each kind of node, most frequent first."""

    def all_of(graph):
        for node in graph.node:
            yield node.op_type
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    yield from all_of(attribute.g)

    return dict(Counter(all_of(model.graph)).most_common())


def onnx_model(
    fn: Callable[..., Any],
    *inputs: Any,
    dynamic_batch: bool | Sequence[bool] = True,
    opset: int = OPSET,
) -> Any:
    """Model."""
    arrays = [_array(x) for x in inputs]
    dynamic = _dynamic(arrays, dynamic_batch)
    closed, tree = _program(fn, arrays, dynamic)
    graph = Graph(opset)
    values, given = [], zip(_names(fn, len(arrays)), arrays, closed.in_avals, strict=True)
    for name, x, aval in given:
        name = graph.name(name)
        values.append(graph.value(name, aval))
        for axis, size in enumerate(aval.shape):
            if not isinstance(size, int):
                graph.sizes.setdefault(str(size), (name, axis))
    results = onnx_ops.write(graph, closed.jaxpr, closed.consts, *values)
    outputs = []
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    for path, v, aval in zip(paths, results, closed.out_avals, strict=True):
        name = graph.name("_".join(["output", *map(_plain, path)]))
        tensor = graph.tensor(v)
        graph.nodes.append(onnx.helper.make_node("Identity", [tensor], [name], name))
        outputs.append((name, aval))
    proto = onnx.helper.make_graph(
        graph.used([name for name, _ in outputs]),
        "jaxpool",
        [_info(v.data, v) for v in values],
        [_info(name, aval) for name, aval in outputs],
    )
    read = set(itertools.chain(*(onnx_graph_reads(n) for n in proto.node)))
    proto.initializer.extend(
        tensor for name, tensor in graph.initializers.items() if name in read
    )
    sets = [onnx.helper.make_opsetid("", opset)]
    model = onnx.helper.make_model(
        proto,
        opset_imports=sets,
        ir_version=onnx.helper.find_min_ir_version_for(sets),
        producer_name="jaxpool",
        producer_version=jaxpool.__version__,
        doc_string="",
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def onnx_graph_reads(node):
    from jaxpool.deploy.onnx_graph import reads

    return reads(node)


def _inputs(model):
    return [i.name for i in model.graph.input]


def _array(x):
    return np.asarray(jax.numpy.asarray(x))


def _dynamic(arrays, given):
    if isinstance(given, bool):
        return [given and x.ndim > 0 for x in arrays]
    return list(given)


def _plain(key):
    return str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key))))


def _program(fn, arrays, dynamic):
    (batch,) = jax.export.symbolic_shape(_BATCH)
    avals = [
        jax.ShapeDtypeStruct((batch, *x.shape[1:]) if free else x.shape, x.dtype)
        for x, free in zip(arrays, dynamic, strict=True)
    ]
    with jaxpool.lowering("reduce_window"):
        closed, tree = jax.make_jaxpr(lambda *xs: fn(*xs), return_shape=True)(*avals)
    return closed, tree


def _names(fn, n):
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):
        parameters = ()
    plain = [p.name for p in parameters if p.kind in (0, 1)]
    return [plain[i] if i < len(plain) else f"input_{i}" for i in range(n)]


def _info(name, aval):
    sizes = [size if isinstance(size, int) else str(size) for size in aval.shape]
    return onnx.helper.make_tensor_value_info(name, element_type(aval.dtype), sizes)


def _session(runtime, content):
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    return runtime.InferenceSession(
        content, options, providers=["CPUExecutionProvider"]
    )


def _examples(arrays, dynamic):
    yield arrays
    sizes = {x.shape[0] for x, free in zip(arrays, dynamic, strict=True) if free}
    if sizes:
        more = max(sizes) + 1
        yield [
            np.take(x, np.arange(more) % len(x), 0) if free else x
            for x, free in zip(arrays, dynamic, strict=True)
        ]


def _replace(path, content):
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
