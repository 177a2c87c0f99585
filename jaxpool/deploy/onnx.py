"""ONNX: a JAX function as a graph of nodes, run and compared before it is kept.

A function is traced once, with a symbolic batch, and its program written an equation
after the other by tables of rules:

  onnx_graph        values, nodes, sizes that are not known
  onnx_program      the walk
  onnx_elementwise, onnx_shapes, onnx_sums, onnx_index, onnx_control, onnx_rewrites
                    the rules for JAX's primitives
  onnx_pools        the rules for windows: ONNX's own pools
"""

import inspect
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np

import jaxpool
from jaxpool._core.plain import plainly
from jaxpool._core.window import as_flag, as_int, fail
from jaxpool.deploy.agreement import Artefact, DeployError, check_agreement, need

onnx = need("onnx", "onnx")

from jaxpool.deploy import (  # noqa: E402
    functions,
    onnx_control,
    onnx_elementwise,
    onnx_index,
    onnx_pools,
    onnx_rewrites,
    onnx_shapes,
    onnx_sums,
)
from jaxpool.deploy.functions import (  # noqa: E402
    as_arrays,
    as_tolerance,
    evaluation,
    results,
)
from jaxpool.deploy.onnx_graph import Graph, element_type, reads, renamed  # noqa: E402
from jaxpool.deploy.onnx_program import write  # noqa: E402

__all__ = ["OPSET", "node_kinds", "onnx_model", "pool_nodes", "to_onnx"]

OPSET = 21
"""The opset that is written by default; onnxruntime knows it since 1.20."""
_LEAST_OPSET = 20
_MOST_BYTES = 2**31 - 1
RULES = {
    **onnx_control.RULES,
    **onnx_elementwise.RULES,
    **onnx_index.RULES,
    **onnx_pools.RULES,
    **onnx_rewrites.RULES,
    **onnx_shapes.RULES,
    **onnx_sums.RULES,
}
"""How each primitive is written, by name."""
# Sums are added up in another order there, and functions differ in their last bits.
_TOLERANCES = {"float64": 1e-10, "float32": 2e-5, "float16": 4e-3}


def to_onnx(
    fn: Callable[..., Any],
    *inputs: Any,
    out: str | os.PathLike[str],
    dynamic_batch: bool | Sequence[bool] = True,
    opset: int = OPSET,
    tolerance: float | None = None,
) -> Artefact:
    """Writes a function as an ONNX model that onnxruntime was seen to agree on.

    The model is run on the examples and, where the batch is dynamic, on a batch of one
    more, and compared with JAX. Max, min, mean and sum windows are ONNX's own pools.
    The file appears whole or not at all.

    Values that are not finite are compared where the examples hold them. Mind that
    onnxruntime's `MaxPool` passes over NaN, all or some, which JAX propagates, and may
    give the lowest finite number for a window of nothing but -inf. Powers in Lp and GeM
    pools overflow where JAX's do not. All that JAX has compiled is compiled again when
    it is next called.

    Args:
      fn: any function of arrays whose results are arrays or a tree of these: a Flax NNX
        model after `eval()`, a closure over linen's parameters, an op of jaxpool's.
        Arrays it closes over become constants of the model.
      *inputs: an example of each argument, positional.
      out: the file to write, usually `.onnx`.
      dynamic_batch: whether axis 0 of the inputs, all the same, is of any size in the
        model; or that for each input.
      opset: the version of ONNX's operators, at least 20.
      tolerance: how far results may differ, as a part of the largest absolute value of
        each output; integers never. By default 2e-5 or, if an output is float16, 4e-3:
        a model that computes in bfloat16 inside needs more.

    Returns:
      Where the file lies, how many of each kind of node it holds, and the largest
      difference seen.

    Raises:
      DeployError: for a function that draws random numbers, a primitive that no rule is
        for, a model that onnxruntime does not run, and for results that disagree.
      ModuleNotFoundError: without `onnx` and `onnxruntime`, of the extra
        `jaxpool[onnx]`.

    Example:
      >>> import tempfile
      >>> import jax.numpy as jnp
      >>> import jaxpool
      >>> from jaxpool.deploy import to_onnx
      >>> pool = lambda image: jaxpool.max_pool(image, (2, 2), (2, 2))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     to_onnx(pool, jnp.ones((1, 8, 8, 3)), out=f"{folder}/pool.onnx").nodes
      {'Transpose': 2, 'MaxPool': 1}
    """
    runtime = need("onnx", "onnxruntime")
    arrays, dynamic = _arguments(inputs, dynamic_batch)
    model = onnx_model(fn, *inputs, dynamic_batch=dynamic, opset=opset)
    content, error = model.SerializeToString(), 0.0
    names = [tensor.name for tensor in model.graph.input]
    for examples in _examples(arrays, dynamic):
        expected = results(fn, examples)
        actual = _run(runtime, content, names, examples)
        limit = max(_TOLERANCES.get(str(y.dtype), 0.0) for y in expected)
        limit = as_tolerance("to_onnx", tolerance, limit)
        error = max(error, check_agreement("ONNX", expected, actual, limit))
    functions.write(Path(out), content)
    return Artefact(Path(out), node_kinds(model), error)


def onnx_model(
    fn: Callable[..., Any],
    *inputs: Any,
    dynamic_batch: bool | Sequence[bool] = True,
    opset: int = OPSET,
) -> Any:
    """The model that `to_onnx` writes, as `onnx.ModelProto`, not yet run.

    Arguments and errors as in :func:`to_onnx`. `onnx` has checked it, the shapes of all
    nodes included. Inputs have the names of the function's arguments; the output is
    `output`, several are `output_0` and so on, or have their keys in place of numbers.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxpool
      >>> from jaxpool.deploy.onnx import onnx_model
      >>> model = onnx_model(jaxpool.global_avg_pool, jnp.ones((1, 8, 8, 3)))
      >>> model.graph.input[0].name
      'x'
    """
    newest = onnx.defs.onnx_opset_version()
    opset = as_int("to_onnx", "opset", opset, _LEAST_OPSET, newest)
    arrays, dynamic = _arguments(inputs, dynamic_batch)
    closed, tree = _program(fn, arrays, dynamic)
    if not closed.out_avals:
        raise fail("to_onnx", "fn", "must return at least one array", tree)
    g, values = Graph(RULES), []
    for name, aval in zip(_names(fn, len(arrays)), closed.in_avals, strict=True):
        values.append(g.value(g.name(name), aval))
        for axis, size in enumerate(aval.shape):
            if not isinstance(size, int):
                g.sizes.setdefault(str(size), (values[-1].data, axis))
    try:
        results = write(g, closed, *values)
    except Exception as error:
        if type(error).__name__ != "InconclusiveDimensionOperation":
            raise  # JAX has moved the name of that class
        raise _no_batch(error) from error
    names, outputs = {}, []
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    for path, v in zip(paths, results, strict=True):
        outputs.append(g.name("_".join(["output", *map(_key, path)])))
        tensor = g.tensor(v)
        taken = {*g.initializers, *(given.data for given in values), *names}
        if tensor in taken:  # an output has to be a node's, and no other output
            g.nodes.append(onnx.helper.make_node("Identity", [tensor], [outputs[-1]]))
        else:
            names[tensor] = outputs[-1]
    nodes = g.used([*names, *outputs])
    renamed(nodes, names)
    read = set().union(*map(reads, nodes))
    avals = zip(outputs, closed.out_avals, strict=True)
    graph = onnx.helper.make_graph(
        nodes,
        getattr(fn, "__name__", type(fn).__name__),
        [_described(v.data, v) for v in values],
        [_described(name, aval) for name, aval in avals],
        [tensor for name, tensor in g.initializers.items() if name in read],
    )
    versions = [onnx.helper.make_opsetid("", opset)]
    model = onnx.helper.make_model(
        graph,
        opset_imports=versions,
        ir_version=onnx.helper.find_min_ir_version_for(versions),
        producer_name="jaxpool",
        producer_version=jaxpool.__version__,
        doc_string=f"`{graph.name}`, written from JAX {jax.__version__}.",
    )
    if model.ByteSize() > _MOST_BYTES:
        rule = "a model in one file must be smaller than 2 GiB"
        raise DeployError(f"`to_onnx`: {rule}; got {model.ByteSize()} bytes.")
    onnx.checker.check_model(model, full_check=True)
    return model


def node_kinds(model: Any) -> dict[str, int]:
    """How often a model holds each kind of node, most frequent first.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxpool
      >>> from jaxpool.deploy.onnx import node_kinds, onnx_model
      >>> pool = lambda image: jaxpool.avg_pool(image, (2, 2), (2, 2))
      >>> node_kinds(onnx_model(pool, jnp.ones((1, 8, 8, 3))))
      {'Transpose': 2, 'AveragePool': 1}
    """

    def kinds(graph):
        for node in graph.node:
            yield node.op_type
            for attribute in node.attribute:
                yield from kinds(attribute.g)

    return dict(Counter(kinds(model.graph)).most_common())


def pool_nodes(nodes: dict[str, int]) -> list[str]:
    """The kinds of pools among a model's nodes; without any, it is composed of others.

    Example:
      >>> from jaxpool.deploy.onnx import pool_nodes
      >>> pool_nodes({"Transpose": 2, "MaxPool": 1})
      ['MaxPool']
    """
    return [kind for kind in nodes if kind in onnx_pools.NODES]


def _arguments(
    inputs: Sequence[Any], dynamic_batch: bool | Sequence[bool]
) -> tuple[list[np.ndarray], list[bool]]:
    """The examples, and whether axis 0 of each is of any size."""
    arrays = [np.asarray(x) for x in as_arrays("to_onnx", inputs)]
    if isinstance(dynamic_batch, bool):
        dynamic = [dynamic_batch and x.ndim > 0 for x in arrays]
    else:
        dynamic = [as_flag("to_onnx", "dynamic_batch", free) for free in dynamic_batch]
    if len(dynamic) != len(arrays):
        rule = f"must have one entry for each of the {len(arrays)} inputs"
        raise fail("to_onnx", "dynamic_batch", rule, dynamic_batch)
    pairs = list(zip(arrays, dynamic, strict=True))
    if any(free and x.ndim == 0 for x, free in pairs):
        rule = "must be False for an input without axes"
        raise fail("to_onnx", "dynamic_batch", rule, dynamic_batch)
    sizes = {len(x) for x, free in pairs if free}
    if len(sizes) > 1 or 0 in sizes:
        rule = "must have one batch size, at least 1, where the batch is dynamic"
        raise fail("to_onnx", "inputs", rule, [x.shape for x in arrays])
    return arrays, dynamic


def _program(
    fn: Callable[..., Any], arrays: Sequence[np.ndarray], dynamic: Sequence[bool]
) -> tuple[Any, Any]:
    """The function's program, and the tree of its results."""

    def trace(*avals):
        make = jax.make_jaxpr(lambda *xs: fn(*xs), return_shape=True)
        with plainly("reduce_window"), evaluation():
            return make(*avals)

    avals = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays]
    if not any(dynamic):
        return trace(*avals)
    (batch,) = jax.export.symbolic_shape("batch")
    pairs = zip(avals, dynamic, strict=True)
    free = [a.update(shape=(batch, *a.shape[1:])) if f else a for a, f in pairs]
    try:
        return trace(*free)
    except DeployError:
        raise
    except Exception as error:
        trace(*avals)  # what is wrong with the function itself says so here
        raise _no_batch(error) from error


def _no_batch(error: Exception) -> DeployError:
    return DeployError(
        "`to_onnx`: the function does not take a batch of any size. Pass "
        "`dynamic_batch=False`, or say for each input whether its axis 0 is the batch. "
        f"JAX says: {error}"
    )


def _names(fn: Callable[..., Any], count: int) -> list[str]:
    """What the function calls its arguments."""
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):  # of a function in C
        parameters = ()
    names = [
        p.name
        for p in parameters
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    return [*names, *(f"input_{i}" for i in range(len(names), count))][:count]


def _key(entry: Any) -> str:
    """One step on the way to a leaf of a tree."""
    known = ("key", "idx", "name")
    return str(next(getattr(entry, name) for name in known if hasattr(entry, name)))


def _described(name: str, aval: Any) -> Any:
    sizes = [size if isinstance(size, int) else str(size) for size in aval.shape]
    return onnx.helper.make_tensor_value_info(name, element_type(aval.dtype), sizes)


def _run(
    runtime: Any, content: bytes, names: Sequence[str], arrays: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """What onnxruntime gives."""
    if any(x.dtype.kind == "V" for x in arrays):
        rule = "onnxruntime takes arrays of NumPy's own dtypes: convert within `fn`"
        raise DeployError(f"`to_onnx`: {rule}; got {[str(x.dtype) for x in arrays]}.")
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # its errors are raised
    try:
        session = runtime.InferenceSession(
            content, options, providers=["CPUExecutionProvider"]
        )
        return session.run(None, dict(zip(names, arrays, strict=True)))
    except Exception as error:  # it has a class for each kind, none of them public
        problem = f"onnxruntime {runtime.__version__} does not run the model: {error}"
        raise DeployError(f"`to_onnx`: {problem}") from error


def _examples(
    arrays: Sequence[np.ndarray], dynamic: Sequence[bool]
) -> Iterator[list[np.ndarray]]:
    """The examples, and what is made of them for a batch of one more."""
    yield list(arrays)
    if any(dynamic):
        pairs = zip(arrays, dynamic, strict=True)
        yield [
            np.take(x, np.arange(len(x) + 1) % len(x), 0) if free else x
            for x, free in pairs
        ]
