"""Windows as ONNX's own pools, where these mean the same.

`MaxPool` and `AveragePool` take one to three pooled axes behind two others. Windows
over other axes get there by a transposition, which mostly costs nothing (see
`onnx_graph`), and a reshape where they are not two. A sum is the mean times the number
of elements; divided by what makes it a mean again, it is `AveragePool` alone. A minimum
is the maximum of negatives.

Composed of slices instead are windows that may hold nothing but padding, of which
onnxruntime makes the lowest finite number; windows of integers that `MaxPool` does not
take and no float holds; and folds with any other function.
"""

import functools
import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.extend import core

from jaxpool._core.engine import identity
from jaxpool.deploy.onnx_graph import Graph, Value
from jaxpool.deploy.onnx_ops import astype, divided, traced

__all__ = ["KNOWN", "POOLS"]

# The dtypes of which onnxruntime takes the maximum, and what holds others exactly.
_MAXIMA = {"bool": "uint8", "int16": "float32", "uint16": "float32"}
_MAXIMA |= {"int32": "float64", "uint32": "float64", "bfloat16": "float32"}
_MAXIMA |= {name: name for name in ("int8", "uint8", "float16", "float32", "float64")}
_MEANS = {"bfloat16": "float32", "float16": "float16", "float32": "float32"}


@dataclass(frozen=True)
class Windows:
    """What `lax.reduce_window` is told, for the axes that it pools."""

    axes: tuple[int, ...]
    size: tuple[Any, ...]
    window: tuple[int, ...]
    stride: tuple[int, ...]
    low: tuple[int, ...]
    high: tuple[int, ...]
    dilation: tuple[int, ...]

    @classmethod
    def of(cls, shape, params) -> "Windows":
        """The windows of an equation whose operand has this shape."""
        lows, highs = zip(*params["padding"], strict=True)
        window, stride = params["window_dimensions"], params["window_strides"]
        facts = (shape, window, stride, lows, highs, params["window_dilation"])
        idle = (1, 1, 0, 0)
        axes = tuple(
            axis
            for axis, fact in enumerate(zip(window, stride, lows, highs, strict=True))
            if fact != idle
        )
        return cls(axes, *(tuple(f[axis] for axis in axes) for f in facts))

    def counts(self) -> list[np.ndarray]:
        """For each axis, the number of elements in each of its windows."""
        counts = []
        for i, size in enumerate(self.size):
            span = (self.window[i] - 1) * self.dilation[i] + 1
            room = self.low[i] + size + self.high[i] - span
            start = np.arange(room // self.stride[i] + 1) * self.stride[i] - self.low[i]
            taps = start[:, None] + np.arange(self.window[i]) * self.dilation[i]
            counts.append(np.sum((taps >= 0) & (taps < size), 1))
        return counts

    @property
    def known(self) -> bool:
        """Whether every pooled size is."""
        return all(isinstance(size, int) for size in self.size)

    @property
    def full(self) -> bool:
        """Whether every window holds an element."""
        return self.known and all(np.all(counts) for counts in self.counts())

    @property
    def whole(self) -> bool:
        """Whether one window covers everything."""
        plain = {*self.low, *self.high} == {0} and {*self.dilation} == {1}
        return plain and self.window == self.size

    @property
    def attributes(self) -> dict[str, list[int]]:
        """The attributes of a pool."""
        dilated = any(d != 1 for d in self.dilation)
        return {
            "kernel_shape": list(self.window),
            "strides": list(self.stride),
            "pads": [*self.low, *self.high],
            "dilations": list(self.dilation) if dilated else None,
        }

    @property
    def fits(self) -> bool:
        """Whether pools take the padding: onnxruntime wants less than a window."""
        pads = zip(self.low, self.high, self.window, strict=True)
        return all(max(low, high) < window for low, high, window in pads)


def _native(g: Graph, x: Value, aval, w: Windows, pool, outputs: int = 1):
    """`pool(tensor)`, a node over the last axes of two others; back in JAX's shape."""
    others = [axis for axis in x.layout if axis not in w.axes]
    layout = (*others, *w.axes)
    name = g.tensor(x, layout)
    front = [x.shape[axis] for axis in others]
    if len(front) != 2:
        two = [math.prod(front[:-1]), front[-1]] if front else [1, 1]
        name = g.reshape(name, [*two, *w.size])
    names = pool(name)
    names = [names] if isinstance(names, str) else list(names)
    if len(front) != 2:
        back = [aval.shape[axis] for axis in layout]
        names = [g.reshape(name, back) for name in names]
    shape = tuple(aval.shape)
    return [Value(name, x.dtype, shape, shape, layout) for name in names]


def _extremum(g: Graph, eqn: Any, x: Value):
    largest = eqn.primitive.name == "reduce_window_max"
    aval, p = eqn.outvars[0].aval, eqn.params
    w = Windows.of(x.shape, p)
    kind = _MAXIMA.get(str(x.dtype))
    if not w.axes:
        return x
    if kind is None or any(d != 1 for d in p["base_dilation"]) or not w.full:
        return _composed(g, eqn, x, lax.max if largest else lax.min)
    if len(w.axes) > 3:
        return _axis_by_axis(g, eqn, x)
    given = astype(g, x, kind)
    (y,) = _maximum(g, given, aval, w, largest)
    return astype(g, y, aval.dtype)


def _maximum(g, x, aval, w, largest, outputs=1):
    """The values of `MaxPool`, or of its like for a minimum, and their places."""
    integer = np.issubdtype(x.dtype, np.integer)
    turn = "BitwiseNot" if integer else "Neg"
    if not largest:
        x = replace(x, data=g.node(turn, g.tensor(x, x.layout)), stored=x.shape)
    if not w.fits:
        x, aval_w = _padded(g, x, w, identity(x.dtype, True))
    else:
        aval_w = w
    if w.whole and outputs == 1 and not integer:
        names = _native(g, x, aval, w, functools.partial(g.node, "GlobalMaxPool"))
    else:
        pool = functools.partial(
            g.node, "MaxPool", outputs=outputs, **aval_w.attributes
        )
        names = _native(g, x, aval, aval_w, pool)
    if not largest:
        names[0] = replace(names[0], data=g.node(turn, names[0].data))
    return names


def _padded(g, x, w, value):
    """The array with its padding, and the windows over that."""
    pads = g.ints([*w.low, *w.high])
    places = g.ints([x.layout.index(axis) for axis in w.axes])
    filler = g.number(np.asarray(value, x.dtype))
    name = g.node("Pad", g.tensor(x, x.layout), pads, filler, places)
    shape = list(x.shape)
    for axis, low, high in zip(w.axes, w.low, w.high, strict=True):
        shape[axis] += low + high
    x = Value(name, x.dtype, tuple(shape), tuple(shape), x.layout)
    none = (0,) * len(w.axes)
    return x, replace(w, size=tuple(shape[a] for a in w.axes), low=none, high=none)


def _sum(g: Graph, eqn: Any, x: Value):
    aval, p = eqn.outvars[0].aval, eqn.params
    w = Windows.of(x.shape, p)
    kind = _MEANS.get(str(x.dtype))
    if not w.axes:
        return x
    if kind is None or any(d != 1 for d in p["base_dilation"]) or not w.known:
        return _composed(g, eqn, x, lax.add)
    if len(w.axes) > 3:
        return _axis_by_axis(g, eqn, x)
    given, whole = astype(g, x, kind), math.prod(w.window)

    def mean(include: int):
        if w.whole:
            pool = functools.partial(g.node, "GlobalAveragePool")
            return _native(g, given, aval, w, pool)[0]
        there, inner = (given, w) if w.fits else _padded(g, given, w, 0)
        pool = functools.partial(
            g.node, "AveragePool", count_include_pad=include, **inner.attributes
        )
        return _native(g, there, aval, inner, pool)[0]

    y = mean(1)
    times = g.number(np.asarray(whole, y.dtype))
    y = astype(g, replace(y, data=g.node("Mul", y.data, times)), aval.dtype)
    if kind == aval.dtype:
        counts = np.ones([1] * len(x.shape))
        for axis, number in zip(w.axes, w.counts(), strict=True):
            shape = [-1 if a == axis else 1 for a in range(len(x.shape))]
            counts = counts * number.reshape(shape)

        def quotient(op, other):
            found = divided(whole, lambda: mean(1), op, other)
            # A window without elements divides by 1, not by the 0 that is its count.
            if found is None and w.fits and counts.all():
                found = divided(counts, lambda: mean(0), op, other)
            return found

        g.sums[y.data] = quotient
    return y


def _axis_by_axis(g, eqn, x):
    """Windows over more axes than a pool takes: over one after the other."""
    p = dict(eqn.params)

    def along(x):
        for axis, facts in enumerate(_facts(p)):
            one = _idle(x.ndim)
            for name, fact in facts.items():
                one[name][axis] = fact
            x = eqn.primitive.bind(x, **{k: tuple(v) for k, v in one.items()})
        return x

    return traced(g, along, x)


_NAMES = ("window_dimensions", "window_strides", "padding", "base_dilation")
_NAMES += ("window_dilation",)


def _facts(params):
    """What `lax.reduce_window` is told, an axis at a time."""
    for facts in zip(*(params[name] for name in _NAMES), strict=True):
        yield dict(zip(_NAMES, facts, strict=True))


def _idle(ndim):
    return {n: [(0, 0) if n == "padding" else 1] * ndim for n in _NAMES}


def _composed(g, eqn, x, op):
    """Slices, folded along one axis after the other."""
    fill = 0 if op is lax.add else identity(x.dtype, op is lax.max)

    def folded(x):
        for axis, facts in enumerate(_facts(eqn.params)):
            if facts != {n: v[0] for n, v in _idle(1).items()}:
                (x,) = _fold(lambda a, b: [op(*a, *b)], [x], [fill], axis, facts)
        return x

    return traced(g, folded, x)


def _fold(op, arrays, fills, axis, facts):
    """The windows along one axis, folded in order."""
    low, high = facts["padding"]
    inner, parts = facts["base_dilation"] - 1, []
    for x, fill in zip(arrays, fills, strict=True):
        config = [(low, high, inner) if a == axis else (0, 0, 0) for a in range(x.ndim)]
        parts.append(lax.pad(x, jax.numpy.asarray(fill, x.dtype), config))
    size, step = parts[0].shape[axis], facts["window_strides"]
    reach = (facts["window_dimensions"] - 1) * facts["window_dilation"]
    out = (size - reach - 1) // step + 1
    taps = []
    for k in range(facts["window_dimensions"]):
        start = k * facts["window_dilation"]
        end = start + (out - 1) * step + 1
        taps.append([lax.slice_in_dim(x, start, end, step, axis) for x in parts])
    return functools.reduce(op, taps)


def _any_fold(g: Graph, eqn: Any, *values: Value):
    """`lax.reduce_window` with a function: of all taps of a window, in order."""
    p, n = eqn.params, len(values) // 2
    reducer = p["jaxpr"]
    closed = reducer if hasattr(reducer, "consts") else core.ClosedJaxpr(reducer, p["consts"])
    function = core.jaxpr_as_fun(closed)

    def folded(*operands):
        arrays, fills = list(operands[:n]), operands[n:]
        ndim = arrays[0].ndim
        pooled = [(a, f) for a, f in enumerate(_facts(p)) if f != _plain(ndim)]
        for axis, facts in reversed(pooled):
            arrays = _fold(lambda a, b: function(*a, *b), arrays, fills, axis, facts)
        return arrays

    return traced(g, folded, *values)


def _plain(ndim):
    return {n: v[0] for n, v in _idle(ndim).items()}


def _reduce_index(g: Graph, eqn: Any, x: Value, *mask: Value):
    """The places of maxima, which `MaxPool` gives too, counted over the pooled axes."""
    jaxpr = eqn.params["jaxpr"].jaxpr
    folds = [e for e in jaxpr.eqns if e.primitive.name == "reduce_window"]
    kind = _MAXIMA.get(str(x.dtype))
    if mask or not folds or kind is None:
        return None
    merged = _idle(len(x.shape))
    for fold in folds:
        for axis, facts in enumerate(_facts(fold.params)):
            if facts != _plain(1):
                for name, fact in facts.items():
                    merged[name][axis] = fact
    w = Windows.of(x.shape, merged)
    names = {e.primitive.name for e in folds[0].params["jaxpr"].eqns}
    if not (0 < len(w.axes) <= 3 and w.full and w.fits):
        return None
    (out,) = eqn.outvars
    given = astype(g, x, kind)
    found = _maximum(g, given, out.aval, w, "gt" in names, outputs=2)
    place = replace(found[1], dtype=np.dtype(np.int64))
    size = g.number(np.asarray(math.prod(w.size), np.int64))
    place = replace(place, data=g.node("Mod", place.data, size))
    return [astype(g, place, out.aval.dtype)]


def _stage(g: Graph, eqn: Any, *values: Value):
    """A primitive of jaxpool's own, as the slices that it is made of."""
    function = functools.partial(eqn.primitive.impl, **eqn.params)
    return traced(g, function, *values)


POOLS = {
    "pool_place": _stage,
    "pool_place_weighted": _stage,
    "pool_read": _stage,
    "pool_read_weighted": _stage,
    "reduce_window": _any_fold,
    "reduce_window_max": _extremum,
    "reduce_window_min": _extremum,
    "reduce_window_sum": _sum,
}
KNOWN = {"_reduce_index": _reduce_index}
