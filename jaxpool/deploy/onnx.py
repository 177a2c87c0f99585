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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np

import jaxpool
from jaxpool._core.plain import plainly
from jaxpool._core.window import as_int, fail
from jaxpool.deploy.agreement import (
    Artefact,
    DeployError,
    check_agreement,
    need,
    one_line,
)

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
from jaxpool.deploy.extremes import check_extremes  # noqa: E402
from jaxpool.deploy.functions import (  # noqa: E402
    as_arrays,
    as_avals,
    as_tolerance,
    evaluation,
    free_axes,
    other_sizes,
    results,
    unsized,
)
from jaxpool.deploy.onnx_graph import Graph, element_type, reads, renamed  # noqa: E402
from jaxpool.deploy.onnx_program import write  # noqa: E402

__all__ = ["LEAST_OPSET", "node_kinds", "onnx_model", "pool_nodes", "to_onnx"]

LEAST_OPSET = 17
"""The lowest opset that is written."""
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
    shapes: str | Sequence[str | None] | None = None,
    opset: int | None = None,
    tolerance: float | None = None,
    extremes: bool = True,
) -> Artefact:
    """Writes a function as an ONNX model that onnxruntime was seen to agree on.

    The model is run on the examples, on longer ones where sizes are free, and on
    extreme values, and compared with JAX. Max, min, mean and sum windows are ONNX's own
    pools, in forms that all versions and providers of onnxruntime compute right. The
    file appears whole or not at all.

    Mind that onnxruntime's maxima pass over NaN, all or some, which JAX propagates.
    Powers in Lp and GeM pools overflow where JAX's do not. All that JAX has compiled is
    compiled again when it is next called.

    Args:
      fn: any function of arrays whose results are arrays or a tree of these: a Flax NNX
        model after `eval()`, a closure over linen's parameters, an op of jaxpool's.
        Arrays it closes over become constants of the model.
      *inputs: an example of each argument, positional.
      out: the file to write, usually `.onnx`.
      dynamic_batch: whether axis 0 of the inputs, all the same, is of any size in the
        model; or that for each input.
      shapes: names for the axes of any size, as in `jax.export.symbolic_shape`: "b, h,
        w, _" for images in any number, of any height and width; `_` has the example's
        size. Axes of one name have one size. A text for all inputs, or one for each;
        None leaves an input to `dynamic_batch`.
      opset: the version of ONNX's operators, at least 17. By default the lowest that
        has the model's nodes, mostly 17 or 18: older runtimes and CUDA's provider lack
        kernels of newer ones.
      tolerance: how far results may differ, as a part of the largest absolute value of
        each output; integers never. By default 2e-5 or, if an output is float16, 4e-3:
        a model that computes in bfloat16 inside needs more.
      extremes: whether the file is also compared where the examples' elements, or half
        of them, are infinite, NaN, all masked, or at the ends of their dtypes; wherever
        JAX's result does not hang on NaN or on the order of a sum that overflows. A
        function with a `while_loop` is not, as it may never end.

    Returns:
      Where the file lies, how many of each kind of node it holds, and the largest
      difference seen.

    Raises:
      DeployError: for a function that draws random numbers, a primitive that no rule is
        for, a model that onnxruntime does not run, and for results that disagree.
      ValueError, TypeError: for bad arguments, as an opset without the model's nodes.
      ModuleNotFoundError: without `onnx` and `onnxruntime`, of the extra
        `jaxpool[onnx]`.

    Example:
      Images of any height and width, in any number:

      >>> import tempfile
      >>> import jax.numpy as jnp
      >>> import jaxpool
      >>> from jaxpool.deploy import to_onnx
      >>> pool = lambda image: jaxpool.avg_pool(image, (2, 2), (2, 2))
      >>> image = jnp.ones((1, 8, 8, 3))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     to_onnx(pool, image, out=f"{folder}/pool.onnx", shapes="b, h, w, _").nodes
      {'Transpose': 2, 'AveragePool': 1}
    """
    runtime = need("onnx", "onnxruntime")
    arrays = _arrays(inputs)
    avals = as_avals("to_onnx", arrays, dynamic_batch, shapes)
    model = _model(fn, arrays, avals, opset)
    content, error, limit = model.SerializeToString(), 0.0, 0.0
    run = _runner(runtime, content, arrays)
    for examples in (arrays, *other_sizes(arrays, avals)):
        expected = results(fn, examples)
        limit = max(_TOLERANCES.get(str(y.dtype), 0.0) for y in expected)
        limit = as_tolerance("to_onnx", tolerance, limit)
        error = max(error, check_agreement("ONNX", expected, run(examples), limit))
    if extremes:
        check_extremes("ONNX", fn, arrays, "reduce_window", run, limit)
    functions.write(Path(out), content)
    return Artefact(Path(out), node_kinds(model), error)


def onnx_model(
    fn: Callable[..., Any],
    *inputs: Any,
    dynamic_batch: bool | Sequence[bool] = True,
    shapes: str | Sequence[str | None] | None = None,
    opset: int | None = None,
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
    arrays = _arrays(inputs)
    avals = as_avals("to_onnx", arrays, dynamic_batch, shapes)
    return _model(fn, arrays, avals, opset)


def _model(
    fn: Callable[..., Any],
    arrays: Sequence[np.ndarray],
    avals: Sequence[Any],
    opset: int | None,
) -> Any:
    newest = onnx.defs.onnx_opset_version()
    if opset is not None:
        opset = as_int("to_onnx", "opset", opset, LEAST_OPSET, newest)
    closed, tree = _program(fn, arrays, avals)
    if not closed.out_avals:
        raise fail("to_onnx", "fn", "must return at least one array", tree)
    g, values = Graph(RULES), []
    for name, aval in zip(_names(fn, len(arrays)), closed.in_avals, strict=True):
        values.append(g.value(g.name(name), aval))
        for axis, size in enumerate(aval.shape):
            if not isinstance(size, int):
                g.sizes.setdefault(str(size), (values[-1].data, axis))
    results = write(g, closed, *values)
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
    made = zip(outputs, closed.out_avals, strict=True)
    graph = onnx.helper.make_graph(
        nodes,
        getattr(fn, "__name__", type(fn).__name__),
        [_described(v.data, v) for v in values],
        [_described(name, aval) for name, aval in made],
        [tensor for name, tensor in g.initializers.items() if name in read],
    )
    model = onnx.helper.make_model(
        graph,
        producer_name="jaxpool",
        producer_version=jaxpool.__version__,
        doc_string=f"`{graph.name}`, written from JAX {jax.__version__}.",
    )
    if model.ByteSize() > _MOST_BYTES:
        rule = "a model in one file must be smaller than 2 GiB"
        raise DeployError(f"`to_onnx`: {rule}; got {model.ByteSize()} bytes.")
    _choose_opset(model, opset, newest)
    return model


def _choose_opset(model: Any, opset: int | None, newest: int) -> None:
    """Gives a model the opset asked for, or the lowest that has its nodes."""
    problem = ""
    for version in [opset] if opset else range(LEAST_OPSET, newest + 1):
        del model.opset_import[:]
        model.opset_import.append(onnx.helper.make_opsetid("", version))
        model.ir_version = onnx.helper.find_min_ir_version_for(model.opset_import)
        try:
            return onnx.checker.check_model(model, full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as e:
            problem = one_line(e)
    if opset:
        _choose_opset(model, None, newest)
        lowest = model.opset_import[0].version
        if lowest > opset:
            rule = f"must be at least {lowest}, which nodes of this model need"
            raise fail("to_onnx", "opset", rule, opset)
    raise DeployError(f"`to_onnx`: onnx refuses the model: {problem}.")


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


def _arrays(inputs: Sequence[Any]) -> list[np.ndarray]:
    return [np.asarray(x) for x in as_arrays("to_onnx", inputs)]


def _program(
    fn: Callable[..., Any], arrays: Sequence[np.ndarray], avals: Sequence[Any]
) -> tuple[Any, Any]:
    """The function's program, and the tree of its results."""

    def trace(*avals):
        make = jax.make_jaxpr(lambda *xs: fn(*xs), return_shape=True)
        with plainly("reduce_window"), evaluation():
            return make(*avals)

    try:
        return trace(*avals)
    except DeployError:
        raise
    except Exception as error:
        if not free_axes(avals):
            raise
        # What is wrong with the function itself says so here.
        trace(*(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays))
        raise unsized("`to_onnx`", avals, error) from error


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


def _runner(
    runtime: Any, content: bytes, arrays: Sequence[np.ndarray]
) -> Callable[[Sequence[np.ndarray]], list[np.ndarray]]:
    """What gives onnxruntime's results for inputs like the examples."""
    if any(x.dtype.kind == "V" for x in arrays):
        rule = "onnxruntime takes arrays of NumPy's own dtypes: convert within `fn`"
        raise DeployError(f"`to_onnx`: {rule}; got {[str(x.dtype) for x in arrays]}.")
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # its errors are raised

    def quoted(call, *args, **kwargs):
        try:
            return call(*args, **kwargs)
        except Exception as error:  # it has a class for each kind, none of them public
            problem = f"onnxruntime {runtime.__version__} does not run the model"
            raise DeployError(f"`to_onnx`: {problem}: {one_line(error)}") from error

    provider = ["CPUExecutionProvider"]
    session = quoted(runtime.InferenceSession, content, options, providers=provider)
    names = [tensor.name for tensor in session.get_inputs()]
    return lambda inputs: quoted(
        session.run, None, dict(zip(names, inputs, strict=True))
    )
