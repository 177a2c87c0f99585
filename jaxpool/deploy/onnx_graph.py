"""An ONNX graph as it is written: values, nodes, and sizes that are not known yet.

A `Value` is a tensor seen through a permutation and a broadcast. Transposing one, or
broadcasting it, writes nothing: elementwise nodes work on what lies there, and a node
is written only where one needs another order of axes. So a chain of convolutions and
pools, channels last, is transposed once at each end.
"""

import ast
import hashlib
from collections import ChainMap, Counter
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import numpy as np
import onnx
from onnx import helper, numpy_helper

from jaxpool.deploy.agreement import DeployError

__all__ = [
    "Graph",
    "Rule",
    "Value",
    "astype",
    "broadcast",
    "constant",
    "element_type",
    "is_constant",
    "reads",
    "renamed",
    "squeeze",
    "transpose",
    "widened",
]

Shape = tuple[Any, ...]  # of ints and symbolic dimensions
# The arithmetic of sizes, as JAX writes them.
_OPERATORS = {ast.Add: "Add", ast.Sub: "Sub", ast.Mult: "Mul", ast.Pow: "Pow"}
_FUNCTIONS = {"max": "Max", "min": "Min", "mod": "Mod"}
# What onnxruntime has few kernels for is computed in what holds all its values.
_WIDE: dict[str, str] = dict.fromkeys(("int8", "uint8", "int16", "uint16"), "int32")
_WIDE |= {"uint32": "int64", "bfloat16": "float32", "bool": "int32"}


@dataclass(frozen=True)
class Rule:
    """How a primitive is written.

    Attributes:
      write: `write(graph, equation, *values)` returns its result, or a list of them.
      folds: what JAX evaluates of it where no input decides the operands: it, "whole";
        or, as its elements are computed one by one, what lies there, "stored"; or
        "never", as it is a view, or a program of others.
    """

    write: Callable[..., Any]
    folds: Literal["whole", "stored", "never"] = "whole"


@dataclass(frozen=True, eq=False)
class Value:
    """An array of JAX's as it lies in the graph.

    Attributes:
      data: the name of a tensor; or its elements, where no input decides them.
      dtype: its dtype.
      shape: what JAX takes for its shape.
      stored: the sizes that lie there, by JAX's axes: 1 where it is to be broadcast.
      layout: for each axis that lies there, which of JAX's it is. Constants lie as
        they are.
    """

    data: Any
    dtype: np.dtype
    shape: Shape
    stored: Shape
    layout: tuple[int, ...]

    @property
    def whole(self) -> bool:
        """Whether nothing is left to broadcast."""
        return self.stored == self.shape


def constant(data: Any, shape: Sequence[Any] | None = None) -> Value:
    """A value that no input decides, to be broadcast to `shape`."""
    data = data if isinstance(data, jax.Array) else np.asarray(data)
    shape = tuple(data.shape if shape is None else shape)
    return Value(data, data.dtype, shape, data.shape, tuple(range(data.ndim)))


def is_constant(value: Value) -> bool:
    """Whether no input decides it."""
    return not isinstance(value.data, str)


def element_type(dtype: Any) -> int:
    """ONNX's number for a dtype."""
    if str(dtype) == "bfloat16":  # which `onnx` knows since 1.18
        return onnx.TensorProto.BFLOAT16
    try:
        return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    except (KeyError, TypeError, ValueError):
        raise DeployError(f"`to_onnx`: ONNX has no dtype {dtype}.") from None


def widened(dtype: Any) -> np.dtype:
    """The dtype to compute in, where onnxruntime has no kernels for this one."""
    return np.dtype(_WIDE.get(str(dtype), dtype))


class Graph:
    """Nodes in order, and the constants they read.

    The graphs inside loops and branches are `inner` ones: they see all names of the
    outer graph, as ONNX has it, and keep their nodes to themselves.

    Attributes:
      rules: how each primitive, and some functions, are written; by name.
      nodes: those that are written.
      names: all that are taken.
      initializers: the constants, by name.
      sizes: for each symbol in a size, an input and the axis that has it.
      means: for a sum, what gives the mean that it is to become; see `onnx_pools`.
    """

    def __init__(self, rules: Mapping[str, Rule]):
        """An empty graph."""
        self.rules = rules
        self.nodes: list[onnx.NodeProto] = []
        self.names: set[str] = set()
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.sizes: dict[str, tuple[str, int]] = {}
        self.means: dict[str, Callable[[str, Value], Value | None]] = {}
        self._counts: Counter[str] = Counter()
        self._constants: dict[Any, str] = {}
        self._written: ChainMap[Any, list[str]] = ChainMap()

    def inner(self) -> "Graph":
        """A graph for the body of a loop or a branch."""
        graph = copy(self)
        graph.nodes, graph._written = [], self._written.new_child()
        return graph

    def name(self, wanted: str) -> str:
        """A name that nothing else has."""
        name = wanted
        while name in self.names:
            self._counts[wanted] += 1
            name = f"{wanted}_{self._counts[wanted]}"
        self.names.add(name)
        return name

    def node(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """Writes a node, unless the same one is there; returns its outputs' names."""
        given = {k: v for k, v in attributes.items() if v is not None}
        key = (op, inputs, repr(sorted(given.items(), key=lambda item: item[0])))
        names = self._written.get(key, [])
        if len(names) < outputs:
            names = [self.name(op.lower()) for _ in range(outputs)]
            self.nodes.append(helper.make_node(op, inputs, names, names[0], **given))
            self._written[key] = names
        return names[0] if outputs == 1 else names[:outputs]

    def number(self, array: Any) -> str:
        """The name of a constant tensor."""
        array = np.asarray(array)
        digest = hashlib.sha256(array.tobytes()).digest()
        key = (array.dtype, array.shape, digest)
        if key not in self._constants:
            element_type(array.dtype)
            name = self.name("constant")
            tensor = numpy_helper.from_array(np.ascontiguousarray(array), name)
            tensor.dims[:] = array.shape
            self.initializers[name], self._constants[key] = tensor, name
        return self._constants[key]

    def ints(self, values: Sequence[int]) -> str:
        """The name of a constant list of axes or sizes."""
        return self.number(np.asarray(values, np.int64))

    def size(self, size: Any) -> str:
        """The name of a size as a list of one int64, computed if it is symbolic."""

        def visit(node):
            match node:
                case ast.Constant(int(value)):
                    return self.ints([value])
                case ast.Name(name):
                    tensor, axis = self.sizes[name]
                    return self.node("Shape", tensor, start=axis, end=axis + 1)
                case ast.UnaryOp(ast.USub(), operand):
                    return self.node("Neg", visit(operand))
                case ast.BinOp(left, op, right):
                    return self.node(_OPERATORS[type(op)], visit(left), visit(right))
                case ast.Call(ast.Name("floordiv"), [left, right]):
                    a, b = visit(left), visit(right)
                    below = self.node("Sub", a, self.node("Mod", a, b))
                    return self.node("Div", below, b)
                case ast.Call(ast.Name(name), operands):
                    return self.node(_FUNCTIONS[name], *map(visit, operands))
            raise DeployError(f"`to_onnx`: there is no rule for the size {size}.")

        return visit(ast.parse(str(size), mode="eval").body)

    def shape(self, sizes: Sequence[Any]) -> str:
        """The name of a list of sizes."""
        if all(isinstance(size, int) for size in sizes):
            return self.ints(sizes)
        return self.node("Concat", *map(self.size, sizes), axis=0)

    def reshape(self, tensor: str, sizes: Sequence[Any]) -> str:
        """Writes a reshape; a single unknown size is whatever is left."""
        unknown = [i for i, size in enumerate(sizes) if not isinstance(size, int)]
        if len(unknown) == 1 and 0 not in sizes:
            sizes = [-1 if i in unknown else size for i, size in enumerate(sizes)]
        return self.node("Reshape", tensor, self.shape(sizes))

    def cast(self, tensor: str, dtype: Any) -> str:
        """Writes a cast."""
        return self.node("Cast", tensor, to=element_type(dtype))

    def tensor(
        self, value: Value, layout: Sequence[int] | None = None, whole: bool = True
    ) -> str:
        """The name of a tensor that holds `value` with its axes in the order `layout`.

        With `whole=False` axes to be broadcast may have size 1, as elementwise nodes
        take them.
        """
        order = tuple(range(len(value.shape)) if layout is None else layout)
        expand = whole and not value.whole
        if is_constant(value):
            data = np.asarray(value.data)
            known = all(isinstance(size, int) for size in value.shape)
            if expand and known:
                data, expand = np.broadcast_to(data, value.shape), False
            name = self.number(data.transpose(order))
        else:
            name = value.data
            if value.layout != order:
                perm = [value.layout.index(axis) for axis in order]
                name = self.node("Transpose", name, perm=perm)
        if not expand:
            return name
        # What lies there already needs no size: Expand broadcasts both ways.
        sizes = zip(value.shape, value.stored, strict=True)
        sizes = [1 if there == size else size for size, there in sizes]
        return self.node("Expand", name, self.shape([sizes[axis] for axis in order]))

    def value(self, data: str, aval: Any, **given: Any) -> Value:
        """A tensor that lies there as JAX takes it, unless `given` says otherwise."""
        shape = tuple(aval.shape)
        value = Value(data, aval.dtype, shape, shape, tuple(range(len(shape))))
        return replace(value, **given)

    def used(self, outputs: Sequence[str]) -> list[onnx.NodeProto]:
        """The nodes that `outputs` are made of."""
        needed, kept = set(outputs), []
        for node in reversed(self.nodes):
            if needed & set(node.output):
                kept.append(node)
                needed |= reads(node)
        return kept[::-1]


def transpose(v: Value, permutation: Sequence[int]) -> Value:
    """A view of a value with its axes in another order."""
    perm = tuple(permutation)
    data, layout = v.data, tuple(perm.index(axis) for axis in v.layout)
    if is_constant(v):
        data, layout = np.asarray(data).transpose(perm), tuple(range(len(perm)))
    shape, stored = (tuple(s[axis] for axis in perm) for s in (v.shape, v.stored))
    return Value(data, v.dtype, shape, stored, layout)


def broadcast(g: Graph, v: Value, shape: Sequence[Any], axes: Sequence[int]) -> Value:
    """A view of a value with its axis i as axis `axes[i]` of `shape`."""
    shape, axes = tuple(shape), tuple(axes)
    new = [axis for axis in range(len(shape)) if axis not in axes]
    stored: list[Any] = [1] * len(shape)
    for axis, size in zip(axes, v.stored, strict=True):
        stored[axis] = size
    if is_constant(v):
        return constant(np.asarray(v.data).reshape(stored), shape)
    data, layout = v.data, tuple(axes[axis] for axis in v.layout)
    if new:
        in_order = layout == tuple(sorted(layout))
        places = new if in_order else range(len(new))
        layout = tuple(range(len(shape))) if in_order else (*new, *layout)
        data = g.node("Unsqueeze", data, g.ints(places))
    return Value(data, v.dtype, shape, tuple(stored), layout)


def squeeze(g: Graph, v: Value, axes: Sequence[int]) -> Value:
    """A value without some axes, all of size 1."""
    kept = [axis for axis in range(len(v.shape)) if axis not in axes]
    shape, stored = (tuple(s[axis] for axis in kept) for s in (v.shape, v.stored))
    if is_constant(v):
        return constant(np.asarray(v.data).reshape(stored), shape)
    places = [place for place, axis in enumerate(v.layout) if axis in axes]
    layout = tuple(kept.index(axis) for axis in v.layout if axis not in axes)
    data = g.node("Squeeze", v.data, g.ints(places)) if places else v.data
    return Value(data, v.dtype, shape, stored, layout)


def astype(g: Graph, v: Value, dtype: Any) -> Value:
    """A value in another dtype."""
    dtype = np.dtype(dtype)
    if v.dtype == dtype:
        return v
    data = np.asarray(v.data).astype(dtype) if is_constant(v) else g.cast(v.data, dtype)
    return replace(v, data=data, dtype=dtype)


def _graphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The graphs inside a node."""
    kind = onnx.AttributeProto.GRAPH
    return [attribute.g for attribute in node.attribute if attribute.type == kind]


def reads(node: onnx.NodeProto) -> set[str]:
    """The names that a node reads, the graphs inside it included."""
    names = set(node.input)
    for graph in _graphs(node):
        names.update(*(reads(inner) for inner in graph.node))
    return names


def renamed(nodes: Sequence[onnx.NodeProto], names: Mapping[str, str]) -> None:
    """Gives tensors other names, wherever nodes write or read them."""
    for node in nodes:
        for tensors in (node.input, node.output):
            tensors[:] = [names.get(name, name) for name in tensors]
        for graph in _graphs(node):
            renamed(graph.node, names)
