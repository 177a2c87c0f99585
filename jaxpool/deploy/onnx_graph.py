"""An ONNX graph as it is written: values, nodes, and sizes that are not known yet.

A `Value` is a tensor seen through a permutation and a broadcast. Transposing one, or
broadcasting it, writes nothing: elementwise nodes work on what lies there, and a node
is written only where one needs another order of axes. So a chain of convolutions and
pools, channels last, is transposed once at each end.
"""

import ast
import operator
from collections import ChainMap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
import onnx
from onnx import helper, numpy_helper

from jaxpool.deploy.agreement import DeployError

__all__ = ["Graph", "Value", "constant", "dim_at", "element_type", "is_constant"]

Shape = tuple[Any, ...]  # of ints and symbolic dimensions
_NODES_OF = {ast.Add: "Add", ast.Sub: "Sub", ast.Mult: "Mul", ast.Pow: "Pow"}
_OF = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}
_OF[ast.Pow] = operator.pow
_FUNCTIONS = {"max": max, "min": min}
_FUNCTIONS |= {"floordiv": operator.floordiv, "mod": operator.mod}


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


def constant(data: Any, shape: Shape | None = None) -> Value:
    """A value that no input decides, to be broadcast to `shape`."""
    data = data if isinstance(data, jax.Array) else np.asarray(data)
    shape = data.shape if shape is None else tuple(shape)
    return Value(data, data.dtype, shape, data.shape, tuple(range(data.ndim)))


def is_constant(value: Value) -> bool:
    """Whether no input decides it."""
    return not isinstance(value.data, str)


def element_type(dtype: Any) -> int:
    """ONNX's number for a dtype."""
    try:
        return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    except (KeyError, TypeError, ValueError):
        raise DeployError(f"`to_onnx`: ONNX has no dtype {dtype}.") from None


def dim_at(dim: Any, sizes: dict[str, int]) -> int:
    """What a size of JAX's is where its symbols are known."""

    def visit(node):
        match node:
            case ast.Constant(value):
                return value
            case ast.Name(name):
                return sizes[name]
            case ast.UnaryOp(_, operand):
                return -visit(operand)
            case ast.BinOp(left, op, right):
                return _OF[type(op)](visit(left), visit(right))
            case ast.Call(ast.Name(name), args):
                return _FUNCTIONS[name](*map(visit, args))
        raise DeployError(f"`to_onnx`: no rule for the size {dim}.")

    return visit(ast.parse(str(dim), mode="eval").body)


class Graph:
    """Nodes in order, and the constants they read.

    The graphs inside loops and branches are `inner` ones: they see all names of the
    outer graph, as ONNX has it, and keep their nodes to themselves.
    """

    def __init__(self, opset: int, outer: "Graph | None" = None):
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.names: set[str] = outer.names if outer else set()
        self.initializers: dict[str, onnx.TensorProto]
        self.initializers = outer.initializers if outer else {}
        self.sizes: dict[str, tuple[str, int]] = outer.sizes if outer else {}
        self.numbers: dict[Any, str] = outer.numbers if outer else {}
        self.sums: dict[str, Any] = outer.sums if outer else {}
        self._done = outer._done.new_child() if outer else ChainMap()

    def inner(self) -> "Graph":
        """A graph for the body of a loop or a branch."""
        return Graph(self.opset, self)

    def name(self, wanted: str) -> str:
        """A name that nothing else has."""
        name, i = wanted, 0
        while name in self.names:
            i += 1
            name = f"{wanted}_{i}"
        self.names.add(name)
        return name

    def node(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """Writes a node, unless the same one is there; returns its outputs' names."""
        values = {k: v for k, v in attributes.items() if v is not None}
        key = (op, inputs, outputs, repr(sorted(values.items(), key=lambda kv: kv[0])))
        if any(isinstance(v, onnx.GraphProto) for v in values.values()):
            key = (op, len(self.names))
        if key not in self._done:
            names = [self.name(op.lower()) for _ in range(outputs)]
            node = helper.make_node(op, inputs, names, names[0], **values)
            self.nodes.append(node)
            self._done[key] = names[0] if outputs == 1 else tuple(names)
        return self._done[key]

    def number(self, array: Any) -> str:
        """The name of a constant tensor."""
        array = np.asarray(array)
        key = (array.dtype, array.shape, array.tobytes())
        if key not in self.numbers:
            element_type(array.dtype)
            name = self.name("constant")
            tensor = numpy_helper.from_array(np.ascontiguousarray(array), name)
            tensor.dims[:] = array.shape
            self.initializers[name], self.numbers[key] = tensor, name
        return self.numbers[key]

    def ints(self, values: Sequence[int]) -> str:
        """The name of a constant list of axes or sizes."""
        return self.number(np.asarray(values, np.int64))

    def dim(self, dim: Any) -> str:
        """The name of a size as a list of one int64, computed if it is symbolic."""

        def visit(node):
            match node:
                case ast.Constant(value):
                    return self.ints([value])
                case ast.Name(name):
                    tensor, axis = self.sizes[name]
                    return self.node("Shape", tensor, start=axis, end=axis + 1)
                case ast.UnaryOp(_, operand):
                    return self.node("Neg", visit(operand))
                case ast.BinOp(left, op, right):
                    return self.node(_NODES_OF[type(op)], visit(left), visit(right))
                case ast.Call(ast.Name("floordiv"), [left, right]):
                    a, b = visit(left), visit(right)
                    rest = self.node("Mod", a, b)
                    return self.node("Div", self.node("Sub", a, rest), b)
                case ast.Call(ast.Name(name), args):
                    return self.node(name.capitalize(), *map(visit, args))
            raise DeployError(f"`to_onnx`: no rule for the size {dim}.")

        return visit(ast.parse(str(dim), mode="eval").body)

    def shape(self, sizes: Sequence[Any]) -> str:
        """The name of a list of sizes."""
        if all(isinstance(size, int) for size in sizes):
            return self.ints(sizes)
        return self.node("Concat", *map(self.dim, sizes), axis=0)

    def reshape(self, tensor: str, sizes: Sequence[Any]) -> str:
        """Writes a reshape; of one unknown size ONNX asks nothing."""
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
            name = self.number(data.transpose(order[: data.ndim] if data.ndim else ()))
        else:
            name = value.data
            if value.layout != order:
                perm = [value.layout.index(axis) for axis in order]
                name = self.node("Transpose", name, perm=perm)
        if not expand:
            return name
        # What lies there already needs no size: Expand broadcasts both ways.
        sizes = zip(value.shape, value.stored or (1,) * len(order), strict=True)
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


def reads(node: onnx.NodeProto) -> set[str]:
    """The names that a node reads, the graphs inside it included."""
    names = set(node.input)
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            names |= {output.name for output in attribute.g.output}
            for inner in attribute.g.node:
                names |= reads(inner)
    return names
