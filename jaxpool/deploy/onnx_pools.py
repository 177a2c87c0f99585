"""Windows as ONNX's own pools, where these mean the same.

`MaxPool` and `AveragePool` take up to three pooled axes behind two others. Windows over
other axes get there by a transposition, which mostly costs nothing (see `onnx_graph`),
and a reshape where the others are not two. A minimum is the maximum of negatives. A sum
is a mean times the number of elements: divided by what makes it a mean again, it is
`AveragePool` alone, with the padding counted or not.

Slices are folded instead for windows that may hold nothing but padding, of which
onnxruntime makes the lowest finite number; for dtypes that its pools do not take, and
that no dtype that they take can hold; and for folds with any other function. Powers are
sums of powers, so `AveragePool` and arithmetic: `LpPool` is not used. As there, and not
as in JAX, they overflow: what would scale them is left out (see `plainly`).
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core

from jaxpool._core.engine import identity
from jaxpool.deploy.agreement import DeployError
from jaxpool.deploy.onnx_graph import Graph, Rule, Value, astype, is_constant
from jaxpool.deploy.onnx_program import traced
from jaxpool.deploy.onnx_sums import mean_of

__all__ = ["NODES", "RULES"]

NODES = ("MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool")
"""The nodes that are pools."""

# What holds the elements of each dtype, among those that onnxruntime's pools take.
_MAXIMA = {"bool": "uint8", "int16": "float32", "uint16": "float32"}
_MAXIMA |= {"int32": "float64", "uint32": "float64", "bfloat16": "float32"}
_MAXIMA |= {name: name for name in ("int8", "uint8", "float16", "float32", "float64")}
_MEANS = {"bfloat16": "float32", "float16": "float16", "float32": "float32"}


@dataclass(frozen=True)
class _Axis:
    """One pooled axis, as `lax.reduce_window` is told of it."""

    axis: int
    size: Any
    window: int
    stride: int
    pads: tuple[int, int]
    spread: int
    dilation: int

    @property
    def idle(self) -> bool:
        """Whether it is not pooled."""
        return (self.window, self.stride, self.pads, self.spread) == (1, 1, (0, 0), 1)

    @property
    def counts(self) -> np.ndarray:
        """The number of elements in each window."""
        low, high = self.pads
        room = low + self.size + high - (self.window - 1) * self.dilation
        start = np.arange(0, room, self.stride) - low
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
        """Whether sizes are known, and nothing is put between elements."""
        return all(a.spread == 1 and isinstance(a.size, int) for a in self.each)

    @property
    def full(self) -> bool:
        """Whether every window holds an element."""
        return all(a.counts.all() for a in self.each)

    @property
    def whole(self) -> bool:
        """Whether one window covers everything."""
        facts = [(a.window, a.pads, a.dilation) for a in self.each]
        return facts == [(a.size, (0, 0), 1) for a in self.each]

    @property
    def padded(self) -> bool:
        """Whether padding has to be there already: pools take less than a window."""
        return any(max(a.pads) >= a.window for a in self.each)

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
    def attributes(self) -> dict[str, Any]:
        """What a pool is told."""
        dilations = [a.dilation for a in self.each]
        return {
            "kernel_shape": [a.window for a in self.each],
            "strides": [a.stride for a in self.each],
            "pads": [a.pads[end] for end in (0, 1) for a in self.each],
            "dilations": dilations if set(dilations) != {1} else None,
        }

    def parts(self) -> Iterator["_Windows"]:
        """The same over no more axes at once than a pool takes."""
        for i in range(0, len(self.each), 3):
            yield replace(self, each=self.each[i : i + 3])

    def out(self, shape: Sequence[Any]) -> tuple[Any, ...]:
        """The shape of the result."""
        sizes = {a.axis: len(a.counts) for a in self.each}
        return tuple(sizes.get(axis, size) for axis, size in enumerate(shape))


def _pool(
    g: Graph, x: Value, w: _Windows, op: str, outputs: int = 1, **more: Any
) -> list[Value]:
    """The results of a pool of ONNX's over no more than three axes."""
    shape = w.out(x.shape)
    others = [axis for axis in x.layout if axis not in w.axes]
    layout = (*others, *w.axes)
    if w.padded:
        x = _filled(g, x, w, 0 if op == "AveragePool" else identity(x.dtype, True))
        each = (replace(a, size=x.shape[a.axis], pads=(0, 0)) for a in w.each)
        w = replace(w, each=tuple(each))
    facts = {**w.attributes, **more}
    if w.whole and outputs == 1 and x.dtype.kind == "f":
        op, facts = f"Global{op}", {}
    name, front = g.tensor(x, layout), [x.shape[axis] for axis in others]
    if len(front) != 2:
        two = [math.prod(front[:-1]), front[-1]] if front else [1, 1]
        name = g.reshape(name, [*two, *(a.size for a in w.each)])
    names = g.node(op, name, outputs=outputs, **facts)
    names = [names] if outputs == 1 else names
    if len(front) != 2:
        names = [g.reshape(n, [shape[axis] for axis in layout]) for n in names]
    return [Value(n, x.dtype, shape, shape, layout) for n in names]


def _filled(g: Graph, x: Value, w: _Windows, value: Any) -> Value:
    """The array with its padding."""
    config = [(0, 0, 0)] * w.ndim
    for a in w.each:
        config[a.axis] = (*a.pads, 0)
    fill = np.asarray(value, x.dtype)
    return traced(g, lambda x: lax.pad(x, fill, config), x)[0]


def _turned(g: Graph, x: Value) -> Value:
    """A value whose order is the other way round; twice, it is what it was."""
    op = "Neg" if x.dtype.kind == "f" else "BitwiseNot"
    return replace(x, data=g.node(op, g.tensor(x, x.layout)), stored=x.shape)


def _extremum(largest: bool) -> Rule:
    def rule(g, eqn, x):
        w, kind = _Windows.of(x.shape, eqn.params), _MAXIMA.get(str(x.dtype))
        if kind is None or not w.plain or not w.full:
            fill, op = identity(x.dtype, largest), lax.max if largest else lax.min
            return _folded(g, w, lambda a, b: [op(*a, *b)], [fill], x)[0]
        y = astype(g, x, kind)
        y = y if largest else _turned(g, y)
        for part in w.parts():
            (y,) = _pool(g, y, part, "MaxPool")
        return astype(g, y if largest else _turned(g, y), x.dtype)

    return Rule(rule)


def _sum(g: Graph, eqn: Any, x: Value) -> Value:
    w, kind = _Windows.of(x.shape, eqn.params), _MEANS.get(str(x.dtype))
    if kind is None or not w.plain:
        return _folded(g, w, lambda a, b: [lax.add(*a, *b)], [0], x)[0]

    def mean(include):
        y = astype(g, x, kind)
        for part in w.parts():
            (y,) = _pool(g, y, part, "AveragePool", count_include_pad=include)
        return y

    def quotient(op, other):
        found = mean_of(w.taps, functools.partial(mean, 1), op, other)
        if found is None and not w.padded and w.full and len(w.each) <= 3:
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

    def along(arrays, a):
        parts = []
        for x, fill in zip(arrays, fills, strict=True):
            config = [(0, 0, 0)] * x.ndim
            config[a.axis] = (*a.pads, a.spread - 1)
            parts.append(lax.pad(x, jnp.asarray(fill, x.dtype), config))
        reach = (a.window - 1) * a.dilation
        count = (parts[0].shape[a.axis] - reach - 1) // a.stride
        taps = []
        for start in range(0, reach + 1, a.dilation):
            end = start + count * a.stride + 1
            cut = (start, end, a.stride, a.axis)
            taps.append([lax.slice_in_dim(x, *cut) for x in parts])
        return functools.reduce(op, taps)

    def folded(*arrays):
        return functools.reduce(along, reversed(w.each), list(arrays))

    return traced(g, folded, *values)


def _reduce_index(g: Graph, eqn: Any, x: Value, *where: Value) -> list[Value] | None:
    """Where the extrema of `engine._reduce_index` stand: `MaxPool` says it too.

    None for what `MaxPool` does not know: masks, and windows that no pool takes.
    """
    (out,), kind = eqn.outvars, _MAXIMA.get(str(x.dtype))
    # One fold for each axis: together they are the windows.
    folds = [e for e in eqn.params["jaxpr"].eqns if e.primitive.name == "reduce_window"]
    found = [_Windows.of(x.shape, e.params).each for e in reversed(folds)]
    w = _Windows(len(x.shape), tuple(a for each in found for a in each))
    if where or kind is None or not (w.plain and w.full):
        return None
    if w.padded or not 0 < len(w.each) <= 3:
        return None
    reducer = folds[0].params["jaxpr"]
    largest = any(e.primitive.name == "gt" for e in reducer.eqns)
    x = astype(g, x, kind)
    places = _pool(g, x if largest else _turned(g, x), w, "MaxPool", outputs=2)[1]
    # Counted over all axes: what the others add are whole planes.
    plane = g.number(np.int64(math.prod(a.size for a in w.each)))
    places = replace(places, data=g.node("Mod", places.data, plane))
    return [astype(g, replace(places, dtype=np.dtype(np.int64)), out.aval.dtype)]


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
