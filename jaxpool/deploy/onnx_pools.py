"""Windows as ONNX's own pools, where these mean the same.

`MaxPool` and `AveragePool` take up to three pooled axes behind two others. Windows over
other axes get there by a transposition, which mostly costs nothing (see `onnx_graph`),
and a reshape where the others are not two. A sum is a mean times the number of
elements: divided by what makes it a mean again, it is `AveragePool` alone, with the
padding counted or not. Maxima of the whole extent are `ReduceMax`.

The nodes are those that all versions and providers of onnxruntime compute right:

- Padding is a `Pad` in front unless it is the same at both ends, less than a window and
  without dilation: cuDNN's pools pad both ends alike (onnxruntime#29631), and CUDA's
  `MaxPool` misplaces dilated windows (#29637). Where padding counts in a mean, all axes
  must have the same, since onnxruntime 1.22 to 1.24 mix them up (#24681, #26708).
- `MaxPool` starts from the lowest finite number, which is what it gives for a window of
  nothing but -inf. So it is given halves, and its results are doubled: twice the lowest
  number is -inf, and the rest is exact. A wider dtype does the same, and what holds no
  -inf needs nothing. A minimum is the maximum of negatives, so of halves with a sign.
- Means with dilation are slices that are added up: `AveragePool` has known dilation
  since opset 19, and CUDA's ignored it.

Slices are also folded for dtypes that the pools do not take, and that no dtype that
they take can hold; and for folds with any other function. Powers are sums of powers, so
`AveragePool` and arithmetic: `LpPool` is not used. As there, and not as in JAX, they
overflow: what would scale them is left out (see `plainly`).
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core
from onnx.numpy_helper import to_array

from jaxpool._core.engine import identity
from jaxpool.deploy.agreement import DeployError
from jaxpool.deploy.onnx_graph import (
    Graph,
    Rule,
    Value,
    astype,
    constant,
    is_constant,
)
from jaxpool.deploy.onnx_program import traced
from jaxpool.deploy.onnx_shapes import padded, sliced
from jaxpool.deploy.onnx_sums import mean_of, reduced_in

__all__ = ["NODES", "RULES"]

NODES = ("MaxPool", "AveragePool", "GlobalAveragePool")
"""The nodes that are pools."""

# What holds the elements of each dtype, among those that onnxruntime's pools take.
_MAXIMA = {"bool": "uint8", "int16": "float32", "uint16": "float32"}
_MAXIMA |= {"int32": "float64", "uint32": "float64"}
_MAXIMA |= {"bfloat16": "float32", "float16": "float32"}
_MAXIMA |= {name: name for name in ("int8", "uint8", "float32", "float64")}
_MEANS = {"bfloat16": "float32", "float16": "float16", "float32": "float32"}
# Nodes whose results are never -inf, and those that only arrange what they read.
_FINITE_BELOW = {"Abs", "Erf", "Exp", "Relu", "Sigmoid", "Sqrt", "Tanh"}
_ARRANGE = {"MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"}


@dataclass(frozen=True)
class _Axis:
    """One pooled axis, as `lax.reduce_window` is told of it."""

    axis: int
    size: Any
    window: Any
    stride: int
    pads: tuple[Any, Any]
    spread: int
    dilation: int

    @property
    def idle(self) -> bool:
        """Whether it is not pooled."""
        return (self.window, self.stride, self.pads, self.spread) == (1, 1, (0, 0), 1)

    @property
    def out(self) -> Any:
        """The number of windows."""
        size = (self.size - 1) * self.spread + 1
        room = sum(self.pads) + size - (self.window - 1) * self.dilation
        return (room - 1) // self.stride + 1

    @property
    def even(self) -> bool:
        """Whether a pool can pad it; then every window holds an element."""
        low, high = self.pads
        if not (isinstance(low, int) and isinstance(high, int)):
            return False
        return 0 <= low == high < self.window and (low == 0 or self.dilation == 1)

    @property
    def counts(self) -> np.ndarray:
        """The number of elements in each window."""
        start = np.arange(self.out) * self.stride - self.pads[0]
        taps = start[:, None] + np.arange(self.window) * self.dilation
        return np.sum((taps >= 0) & (taps < self.size), 1)


@dataclass(frozen=True)
class _Windows:
    """The pooled axes of an array with `ndim` of them, in order."""

    ndim: int
    each: tuple[_Axis, ...]

    @classmethod
    def of(cls, shape: Sequence[Any], params: Mapping[str, Any]) -> "_Windows":
        """The windows over an operand of this shape, from an equation's parameters."""
        names = ("window_dimensions", "window_strides", "padding", "base_dilation")
        facts = (params[name] for name in (*names, "window_dilation"))
        rows = zip(range(len(shape)), shape, *facts, strict=True)
        return cls(
            len(shape), tuple(a for a in (_Axis(*r) for r in rows) if not a.idle)
        )

    @property
    def axes(self) -> tuple[int, ...]:
        """The pooled axes."""
        return tuple(a.axis for a in self.each)

    @property
    def plain(self) -> bool:
        """Whether a pool's attributes can say it: nothing between elements."""
        return all(a.spread == 1 and isinstance(a.window, int) for a in self.each)

    @property
    def whole(self) -> bool:
        """Whether one window covers everything."""
        facts = [(a.window, a.pads, a.spread, a.dilation) for a in self.each]
        return facts == [(a.size, (0, 0), 1, 1) for a in self.each]

    @property
    def known(self) -> bool:
        """Whether sizes are."""
        return all(isinstance(a.size, int) for a in self.each)

    @property
    def dilated(self) -> bool:
        """Whether there are gaps in a window."""
        return any(a.dilation != 1 for a in self.each)

    @property
    def even(self) -> bool:
        """Whether a pool can pad all axes."""
        return all(a.even for a in self.each)

    @property
    def taps(self) -> int:
        """The number of places of a window."""
        return math.prod(a.window for a in self.each)

    @property
    def counts(self) -> np.ndarray:
        """The number of elements in each window, with 1 for each axis not pooled."""
        counts = np.ones([1] * self.ndim)
        for a in self.each:
            counts = counts * a.counts.reshape([-1] + [1] * (self.ndim - a.axis - 1))
        return counts

    @property
    def first(self) -> np.ndarray:
        """The flat index over pooled axes of each window's first element."""
        index = np.zeros([1] * self.ndim, np.int64)
        for a in self.each:
            start = np.arange(a.out) * a.stride - a.pads[0]
            start = np.where(start < 0, start % a.dilation, start)
            index = index * a.size + start.reshape(
                [-1] + [1] * (self.ndim - a.axis - 1)
            )
        return index

    @property
    def attributes(self) -> dict[str, Any]:
        """What a pool is told."""
        return {
            "kernel_shape": [a.window for a in self.each],
            "strides": [a.stride for a in self.each],
            "pads": [a.pads[end] for end in (0, 1) for a in self.each],
            "dilations": [a.dilation for a in self.each] if self.dilated else None,
        }

    def parts(self) -> Iterator["_Windows"]:
        """The same over no more axes at once than a pool takes."""
        for i in range(0, len(self.each), 3):
            yield replace(self, each=self.each[i : i + 3])

    def out(self, shape: Sequence[Any]) -> tuple[Any, ...]:
        """The shape of the result."""
        sizes = {a.axis: a.out for a in self.each}
        return tuple(sizes.get(axis, size) for axis, size in enumerate(shape))


def _pool(
    g: Graph, x: Value, w: _Windows, op: str, outputs: int = 1, **more: Any
) -> list[Value]:
    """The results of a pool of ONNX's over no more than three axes."""
    shape = w.out(x.shape)
    others = [axis for axis in x.layout if axis not in w.axes]
    layout = (*others, *w.axes)
    facts = {**w.attributes, **more}
    if w.whole and op == "AveragePool":
        op, facts = "GlobalAveragePool", {}
    name, front = g.tensor(x, layout), [x.shape[axis] for axis in others]
    if len(front) != 2:
        two = [math.prod(front[:-1]), front[-1]] if front else [1, 1]
        name = g.reshape(name, [*two, *(a.size for a in w.each)])
    names = g.node(op, name, outputs=outputs, **facts)
    names = [names] if outputs == 1 else names
    if len(front) != 2:
        names = [g.reshape(n, [shape[axis] for axis in layout]) for n in names]
    return [Value(n, x.dtype, shape, shape, layout) for n in names]


def _filled(g: Graph, x: Value, w: _Windows, fill: Any) -> tuple[Value, _Windows]:
    """The array with its padding, and the windows over it."""
    config = [(0, 0, 0)] * w.ndim
    for a in w.each:
        config[a.axis] = (*a.pads, 0)
    x = padded(g, x, constant(np.asarray(fill, x.dtype)), config)
    each = (replace(a, size=x.shape[a.axis], pads=(0, 0)) for a in w.each)
    return x, replace(w, each=tuple(each))


def _no_minus_infinity(g: Graph, name: str) -> bool:
    """Whether it is known that a tensor holds no -inf."""
    node = next((node for node in reversed(g.nodes) if name in node.output), None)
    if node is None:
        tensor = g.initializers.get(name)
        return tensor is not None and bool(np.all(to_array(tensor) > -np.inf))
    known = (_no_minus_infinity(g, name) for name in node.input)
    if node.op_type in ("Max", "Min"):
        return any(known) if node.op_type == "Max" else all(known)
    return node.op_type in _FINITE_BELOW or (node.op_type in _ARRANGE and next(known))


def _times(g: Graph, x: Value, factor: float) -> Value:
    """A multiple of a value; for integers and -1, the other order without overflow."""
    if factor == 1:
        return x
    name = g.tensor(x, x.layout)
    if x.dtype.kind == "f":
        name = g.node("Mul", name, g.number(np.asarray(factor, x.dtype)))
    else:
        name = g.node("BitwiseNot", name)
    return replace(x, data=name, stored=x.shape)


def _given(
    g: Graph, x: Value, w: _Windows, largest: bool
) -> tuple[Value, np.ndarray, float]:
    """What `MaxPool` is given: elements, what pads them, and their factor."""
    kind = np.dtype(_MAXIMA[str(x.dtype)])
    y, fill = astype(g, x, kind), identity(x.dtype, largest).astype(kind)
    factor = 1.0 if largest else -1.0
    if kind.kind != "f":
        return _times(g, y, factor), fill if largest else ~fill, factor
    rounds = kind != x.dtype  # the lowest number, back in a narrow dtype
    finite = largest and w.even and isinstance(y.data, str)
    if not rounds and not (finite and _no_minus_infinity(g, y.data)):
        factor /= 2
    return _times(g, y, factor), fill * kind.type(factor), factor


def _whole(g: Graph, x: Value, w: _Windows, op: str) -> Value:
    """One window over everything, as a reduction; onnxruntime has none of uint64."""
    wide, dtype, shape = astype(g, x, reduced_in(op, x.dtype)), x.dtype, w.out(x.shape)
    if w.each:
        places = g.ints(sorted(x.layout.index(axis) for axis in w.axes))
        name = g.node(op, g.tensor(wide, x.layout), places, keepdims=1)
        wide = replace(wide, data=name, shape=shape, stored=shape)
    return astype(g, wide, dtype)


def _extremum(largest: bool) -> Rule:
    def rule(g, eqn, x):
        w = _Windows.of(x.shape, eqn.params)
        if w.whole and x.dtype != np.uint64:
            return _whole(g, x, w, "ReduceMax" if largest else "ReduceMin")
        if str(x.dtype) not in _MAXIMA or not w.plain:
            fill, op = identity(x.dtype, largest), lax.max if largest else lax.min
            return _folded(g, w, lambda a, b: [op(*a, *b)], [fill], x)[0]
        y, fill, factor = _given(g, x, w, largest)
        for part in w.parts():
            y, part = (y, part) if part.even else _filled(g, y, part, fill)
            (y,) = _pool(g, y, part, "MaxPool")
        return astype(g, _times(g, y, 1 / factor), x.dtype)

    return Rule(rule)


def _sum(g: Graph, eqn: Any, x: Value) -> Value:
    w, kind = _Windows.of(x.shape, eqn.params), _MEANS.get(str(x.dtype))
    if w.whole and not (w.known and kind) and x.dtype != np.uint64:
        return _whole(g, x, w, "ReduceSum")
    if kind is None or not w.plain or w.dilated:
        return _folded(g, w, lambda a, b: [lax.add(*a, *b)], [0], x)[0]

    def mean(include):
        y = astype(g, x, kind)
        for part in w.parts():
            alike = part.even and len({a.pads for a in part.each}) == 1
            if include and not alike:
                y, part = _filled(g, y, part, 0)
            (y,) = _pool(g, y, part, "AveragePool", count_include_pad=include)
        return y

    def quotient(op, other):
        found = mean_of(w.taps, functools.partial(mean, 1), op, other)
        if found is None and w.known and w.even and len(w.each) <= 3:
            found = mean_of(w.counts, functools.partial(mean, 0), op, other)
        return found

    y = mean(1)
    times = g.number(np.asarray(w.taps, y.dtype))
    y = replace(y, data=g.node("Mul", g.tensor(y, y.layout), times))
    g.means[y.data] = quotient
    return astype(g, y, x.dtype)


def _any_fold(g: Graph, eqn: Any, *values: Value) -> list[Value]:
    p, n = eqn.params, len(values) // 2
    if not all(map(is_constant, values[n:])):
        rule = "the first value of `lax.reduce_window` must be a constant"
        raise DeployError(f"`to_onnx`: {rule}, not what an input decides.")
    closed = p["jaxpr"]
    if not hasattr(closed, "consts"):
        closed = core.ClosedJaxpr(closed, p["consts"])
    function = core.jaxpr_as_fun(closed)
    w = _Windows.of(values[0].shape, p)
    op = lambda a, b: function(*a, *b)  # noqa: E731
    fills = [np.asarray(v.data) for v in values[n:]]
    return _folded(g, w, op, fills, *values[:n])


def _folded(
    g: Graph,
    w: _Windows,
    op: Callable[[Any, Any], Any],
    fills: Sequence[Any],
    *values: Value,
) -> list[Value]:
    """The elements of each window folded in order, an axis after the other."""
    arrays, n = list(values), len(values)
    for a in reversed(w.each):
        pads = [(0, 0, 0)] * w.ndim
        pads[a.axis] = (*a.pads, a.spread - 1)
        for i, fill in enumerate(fills):
            fill = constant(np.asarray(fill, arrays[i].dtype))
            arrays[i] = padded(g, arrays[i], fill, pads)
        taps = [
            _every(g, x, a.axis, start, a.stride, a.out)
            for start in range(0, a.window * a.dilation, a.dilation)
            for x in arrays
        ]

        def fold(*taps):
            each = (list(taps[i : i + n]) for i in range(0, len(taps), n))
            return functools.reduce(op, each)

        arrays = traced(g, fold, *taps)
    return arrays


def _every(g: Graph, x: Value, axis: int, start: int, stride: int, count: Any) -> Value:
    """The elements along an axis from `start` in steps."""
    first, last, step = [0] * len(x.shape), list(x.shape), [1] * len(x.shape)
    first[axis], last[axis] = start, start + (count - 1) * stride + 1
    step[axis] = stride
    shape = tuple(count if i == axis else size for i, size in enumerate(x.shape))
    return sliced(g, jax.ShapeDtypeStruct(shape, x.dtype), x, first, last, step)


def _reduce_index(g: Graph, eqn: Any, x: Value, *where: Value) -> list[Value] | None:
    """Where the extrema of `engine._reduce_index` stand: `MaxPool` says it too.

    None for what `MaxPool` does not know: masks, and windows that no pool takes.
    """
    (out,) = eqn.outvars
    # One fold for each axis: together they are the windows.
    folds = [e for e in eqn.params["jaxpr"].eqns if e.primitive.name == "reduce_window"]
    found = [_Windows.of(x.shape, e.params).each for e in reversed(folds)]
    w = _Windows(len(x.shape), tuple(a for each in found for a in each))
    if where or str(x.dtype) not in _MAXIMA or not (w.plain and w.known):
        return None
    if not 0 < len(w.each) <= 3 or not all(a.counts.all() for a in w.each):
        return None
    reducer = folds[0].params["jaxpr"]
    largest = any(e.primitive.name == "gt" for e in reducer.eqns)
    y, fill, _ = _given(g, x, w, largest)
    y, over = (y, w) if w.even else _filled(g, y, w, fill)
    best, place = _pool(g, y, over, "MaxPool", outputs=2)
    place = replace(place, dtype=np.dtype(np.int64))
    limits = np.finfo if best.dtype.kind == "f" else np.iinfo
    first = w.first

    def index(best, place):
        """Counted over pooled axes alone, and over what is no padding."""
        flat, step = np.int64(0), 1
        for a, full in zip(reversed(w.each), reversed(over.each), strict=True):
            at, place = (f(place, np.int64(full.size)) for f in (lax.rem, lax.div))
            flat = flat + (at - np.int64(a.pads[0] - full.pads[0])) * np.int64(step)
            step *= a.size
        # Where nothing is above padding, or what it starts from, `MaxPool` finds that.
        lowest = np.maximum(fill, limits(best.dtype).min)
        return jnp.where(best <= lowest, first, flat)

    (place,) = traced(g, index, best, place)
    return [astype(g, place, out.aval.dtype)]


def _stage(g: Graph, eqn: Any, *values: Value) -> list[Value]:
    """A primitive of jaxpool's own, as the slices that it is made of."""
    return traced(g, functools.partial(eqn.primitive.impl, **eqn.params), *values)


RULES = {
    "call _reduce_index": Rule(_reduce_index),
    "pool_place": Rule(_stage),
    "pool_place_weighted": Rule(_stage),
    "pool_read": Rule(_stage),
    "pool_read_weighted": Rule(_stage),
    "reduce_window": Rule(_any_fold),
    "reduce_window_max": _extremum(True),
    "reduce_window_min": _extremum(False),
    "reduce_window_sum": Rule(_sum),
}
