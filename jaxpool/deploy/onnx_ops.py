"""How each of JAX's primitives is written as ONNX nodes: tables, and what fills them.

  ELEMENTWISE  the node of the same meaning, or a few of them
  RULES        what has to know shapes, axes or parameters
  REWRITES     a JAX function of simpler primitives, which is traced and written instead
  CALLS        what only holds a program: that is written in its place
  RANDOM       what draws numbers: refused

A primitive of which no operand depends on an input is evaluated by JAX.
"""

import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core
from onnx import helper

from jaxpool.deploy.agreement import DeployError
from jaxpool.deploy.onnx_graph import (
    Graph,
    Value,
    constant,
    element_type,
    is_constant,
)

__all__ = ["ELEMENTWISE", "REWRITES", "RULES", "broadcast", "expand", "write"]

# What onnxruntime has few kernels for is computed in what holds all its values.
_WIDE: dict[Any, Any] = dict.fromkeys(("int8", "uint8", "int16", "uint16"), "int32")
_WIDE |= {"uint32": "int64", "bfloat16": "float32", "bool": "int32"}

Rule = Callable[..., Any]


def write(graph: Graph, jaxpr: Any, constants: Sequence[Any], *args: Value):
    """Writes a program; returns its results."""
    given = zip(jaxpr.constvars, map(_as_value, constants), strict=True)
    values = dict(given) | dict(zip(jaxpr.invars, args, strict=True))

    def read(atom):
        if isinstance(atom, core.Literal):
            return constant(np.asarray(atom.val, atom.aval.dtype))
        return values[atom]

    for eqn in _needed(jaxpr):
        results = _equation(graph, eqn, *map(read, eqn.invars))
        results = results if isinstance(results, list) else [results]
        values.update(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _as_value(array: Any) -> Value:
    return array if isinstance(array, Value) else constant(array)


def _needed(jaxpr: Any) -> list[Any]:
    """The equations that the results are made of."""
    needed, kept = set(), []
    needed |= {v for v in jaxpr.outvars if not isinstance(v, core.Literal)}
    for eqn in reversed(jaxpr.eqns):
        if needed.intersection(eqn.outvars):
            kept.append(eqn)
            needed |= {v for v in eqn.invars if not isinstance(v, core.Literal)}
    return kept[::-1]


def _equation(g: Graph, eqn: Any, *values: Value):
    name = eqn.primitive.name
    if name in RANDOM:
        raise DeployError(
            f"`to_onnx`: the function draws random numbers (`{name}`), and ONNX has no "
            "generator that draws the same. Pass `deterministic=True`, or call the "
            "model's `eval()`."
        )
    if name in CALLS:
        closed = next(eqn.params[k] for k in _BODIES if k in eqn.params)
        special = _KNOWN.get(eqn.params.get("name"))
        results = special(g, eqn, *values) if special else None
        if results is not None:
            return results
        return write(g, *_opened(closed), *values)
    if all(map(is_constant, values)) and name not in _SYMBOLIC:
        results = _evaluated(eqn, values)
        if results is not None:
            return results
    if name in ELEMENTWISE:
        return _elementwise(g, eqn, *values)
    rule = RULES.get(name)
    if rule is None:
        operands = ", ".join(str(v.aval) for v in eqn.invars)
        problem = f"there is no rule for the primitive `{name}` of {operands}"
        raise DeployError(f"`to_onnx`: {problem}.")
    return rule(g, eqn, *values)


def _opened(closed: Any) -> tuple[Any, Sequence[Any]]:
    """A program and its constants."""
    return getattr(closed, "jaxpr", closed), getattr(closed, "consts", ())


def _evaluated(eqn: Any, values: Sequence[Value]):
    """The results of an equation that no input decides, if their sizes are known."""
    arrays = [v.data for v in values]
    if eqn.primitive.name in ELEMENTWISE:
        # As small as they lie there: they may stand for as many as the batch has.
        ranks = [v.stored for v in values if v.stored]
        stored = np.broadcast_shapes(*ranks)
        arrays = [
            np.broadcast_to(v.data, stored) if v.stored else v.data for v in values
        ]
    else:
        shapes = [v.aval.shape for v in (*eqn.invars, *eqn.outvars)]
        if not all(isinstance(size, int) for size in itertools.chain(*shapes)):
            return None
        arrays = [
            v.data if v.whole else np.broadcast_to(v.data, v.shape) for v in values
        ]
    with x64():
        results = eqn.primitive.bind(*arrays, **eqn.params)
    results = results if eqn.primitive.multiple_results else [results]
    avals = [v.aval for v in eqn.outvars]
    return [constant(r, a.shape) for r, a in zip(results, avals, strict=True)]


@contextlib.contextmanager
def x64():
    """64-bit types, and promotion as NumPy has it, for what is written here."""
    context = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
    with (
        context(True),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        yield


def expand(function: Callable[..., Any]) -> Rule:
    """The rule that writes `function(*arrays, **params)` of JAX in its place."""

    def rule(g, eqn, *values):
        return traced(g, functools.partial(function, **eqn.params), *values)

    return rule


def traced(g: Graph, function: Callable[..., Any], *values: Value):
    """Writes a function of JAX's, called with `values`."""
    with x64():
        avals = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in values]
        closed = jax.make_jaxpr(function)(*avals)
    return write(g, closed.jaxpr, closed.consts, *values)


# --- elementwise -----------------------------------------------------------------------


def _elementwise(g: Graph, eqn: Any, *values: Value):
    (out,) = eqn.outvars
    name, aval = eqn.primitive.name, out.aval
    same = _same_case(values) if name == "select_n" else None
    if same is not None:
        return same
    if name in ("div", "mul"):
        mean = g.sums.get(values[0].data if not is_constant(values[0]) else None)
        mean = mean and mean(name, values[1])
        if mean is not None:
            return mean
    wide = _WIDE.get(str(aval.dtype), aval.dtype)
    if name not in _AS_THEY_ARE:
        values = tuple(astype(g, v, _WIDE.get(str(v.dtype), v.dtype)) for v in values)
    elif name == "select_n":
        values = (values[0], *(astype(g, v, wide) for v in values[1:]))
    full = [v for v in values if v.shape]
    layout = max(
        (v for v in full if not is_constant(v)),
        key=lambda v: sum(size != 1 for size in v.stored),
        default=constant(np.zeros([1] * len(aval.shape))),
    ).layout
    names = [g.tensor(v, layout if v.shape else (), whole=False) for v in values]
    how = ELEMENTWISE[name]
    if isinstance(how, str):
        data = g.node(how, *names)
    else:
        data = how(g, eqn, *names)
    stored = tuple(
        next((size for size in sizes if size != 1), 1)
        for sizes in zip(*(v.stored for v in full), strict=True)
    )
    if name in ("select_n", *_WIDENS) and wide != aval.dtype:
        data = g.cast(data, aval.dtype)
    return g.value(data, aval, stored=stored, layout=layout)


def _same_case(values: Sequence[Value]) -> Value | None:
    """What a choice between equals is."""
    _, first, *rest = values
    for other in rest:
        if first is other:
            continue
        if not (is_constant(first) and is_constant(other)):
            return None
        if not np.array_equal(np.asarray(first.data), np.asarray(other.data)):
            return None
    return first


def astype(g: Graph, v: Value, dtype: Any) -> Value:
    """A value in another dtype."""
    dtype = np.dtype(dtype)
    if v.dtype == dtype:
        return v
    data = np.asarray(v.data).astype(dtype) if is_constant(v) else g.cast(v.data, dtype)
    return replace(v, data=data, dtype=dtype)


def _chain(*ops: str) -> Rule:
    """One node after the other, each of the one before."""

    def how(g, eqn, *names):
        for op in ops:
            names = (g.node(op, *names),)
        return names[0]

    return how


def _bits(logical: str, bitwise: str) -> Rule:
    def how(g, eqn, *names):
        boolean = eqn.invars[0].aval.dtype == jnp.bool_
        return g.node(logical if boolean else bitwise, *names)

    return how


def _integer_pow(g, eqn, x):
    y, dtype = eqn.params["y"], _WIDE.get(str(eqn.outvars[0].aval.dtype))
    if y == 2:
        return g.node("Mul", x, x)
    return g.node(
        "Pow", x, g.number(np.asarray(y, dtype or eqn.outvars[0].aval.dtype))
    )


def _is_finite(g, eqn, x):
    odd = g.node("Or", g.node("IsInf", x), g.node("IsNaN", x))
    return g.node("Not", odd)


def _select(g, eqn, which, *cases):
    if eqn.invars[0].aval.dtype == jnp.bool_:
        return g.node("Where", which, cases[1], cases[0])
    chosen = cases[0]
    for i, case in enumerate(cases[1:], 1):
        here = g.node("Equal", which, g.number(np.asarray(i, np.int32)))
        chosen = g.node("Where", here, case, chosen)
    return chosen


def _clamp(g, eqn, low, x, high):
    return g.node("Min", g.node("Max", x, low), high)


def _convert(g, eqn, x):
    return g.cast(x, eqn.params["new_dtype"])


def _remainder(g, eqn, x, y):
    return g.node("Mod", x, y, fmod=1)


def _erfc(g, eqn, x):
    one = g.number(np.asarray(1, eqn.outvars[0].aval.dtype))
    return g.node("Sub", one, g.node("Erf", x))


def _not_equal(g, eqn, x, y):
    return g.node("Not", g.node("Equal", x, y))


ELEMENTWISE: dict[str, str | Rule] = {
    "abs": "Abs",
    "acos": "Acos",
    "acosh": "Acosh",
    "add": "Add",
    "add_any": "Add",
    "and": _bits("And", "BitwiseAnd"),
    "asin": "Asin",
    "asinh": "Asinh",
    "atan": "Atan",
    "atanh": "Atanh",
    "ceil": "Ceil",
    "clamp": _clamp,
    "convert_element_type": _convert,
    "cos": "Cos",
    "cosh": "Cosh",
    "div": "Div",
    "eq": "Equal",
    "erf": "Erf",
    "erfc": _erfc,
    "exp": "Exp",
    "floor": "Floor",
    "ge": "GreaterOrEqual",
    "gt": "Greater",
    "integer_pow": _integer_pow,
    "is_finite": _is_finite,
    "le": "LessOrEqual",
    "log": "Log",
    "logistic": "Sigmoid",
    "lt": "Less",
    "max": "Max",
    "min": "Min",
    "mul": "Mul",
    "ne": _not_equal,
    "neg": "Neg",
    "not": _bits("Not", "BitwiseNot"),
    "or": _bits("Or", "BitwiseOr"),
    "pow": "Pow",
    "rem": _remainder,
    "rsqrt": _chain("Sqrt", "Reciprocal"),
    "select_n": _select,
    "sign": "Sign",
    "sin": "Sin",
    "sinh": "Sinh",
    "sqrt": "Sqrt",
    "sub": "Sub",
    "tan": "Tan",
    "tanh": "Tanh",
    "xor": _bits("Xor", "BitwiseXor"),
}
_COMPARISONS = {"eq", "ne", "lt", "le", "gt", "ge", "is_finite"}
_AS_THEY_ARE = {"and", "or", "xor", "not", "select_n", "convert_element_type"}
# Computed wide, their results are cast back.
_WIDENS = set(ELEMENTWISE) - _COMPARISONS - _AS_THEY_ARE


# --- shapes ----------------------------------------------------------------------------


def _identity(g, eqn, *values):
    return list(values)


def transpose(v: Value, permutation: Sequence[int]) -> Value:
    """A view of a value; nothing is written."""
    perm = tuple(permutation)
    data, layout = v.data, tuple(perm.index(axis) for axis in v.layout)
    if is_constant(v):
        data, layout = np.asarray(data).transpose(perm), tuple(range(len(perm)))
    shape, stored = ([s[axis] for axis in perm] for s in (v.shape, v.stored))
    return Value(data, v.dtype, tuple(shape), tuple(stored), layout)


def _transpose(g, eqn, x):
    return transpose(x, eqn.params["permutation"])


def broadcast(g: Graph, v: Value, shape: Sequence[Any], axes: Sequence[int]) -> Value:
    """A view of a value with axis i as axis `axes[i]` of `shape`."""
    shape, axes = tuple(shape), tuple(axes)
    new = [axis for axis in range(len(shape)) if axis not in axes]
    stored: list[Any] = [1] * len(shape)
    for axis, size in zip(axes, v.stored, strict=True):
        stored[axis] = size
    if is_constant(v):
        data = np.asarray(v.data).reshape(stored)
        return replace(constant(data, shape), dtype=v.dtype)
    layout = tuple(axes[axis] for axis in v.layout)
    if not new:
        return replace(v, shape=shape, stored=tuple(stored), layout=layout)
    if layout == tuple(sorted(layout)):
        layout, places = tuple(range(len(shape))), new
    else:
        layout, places = (*new, *layout), range(len(new))
    data = g.node("Unsqueeze", v.data, g.ints(places))
    return Value(data, v.dtype, shape, tuple(stored), layout)


def _broadcast_in_dim(g, eqn, x, *sizes):
    params = eqn.params
    return broadcast(g, x, params["shape"], params["broadcast_dimensions"])


def squeeze(g: Graph, v: Value, axes: Sequence[int]) -> Value:
    """A value without some axes, of size 1."""
    axes = {axis % len(v.shape) for axis in axes}
    kept = [axis for axis in range(len(v.shape)) if axis not in axes]
    shape, stored = (tuple(s[axis] for axis in kept) for s in (v.shape, v.stored))
    if is_constant(v):
        data = np.asarray(v.data).reshape(stored)
        return replace(constant(data, shape), dtype=v.dtype)
    places = [place for place, axis in enumerate(v.layout) if axis in axes]
    layout = tuple(kept.index(axis) for axis in v.layout if axis not in axes)
    data = g.node("Squeeze", v.data, g.ints(places)) if places else v.data
    return Value(data, v.dtype, shape, stored, layout)


def _squeeze(g, eqn, x):
    return squeeze(g, x, eqn.params["dimensions"])


def _reshape(g, eqn, x, *sizes):
    out = eqn.outvars[0].aval
    wanted = list(out.shape)
    unit = [axis for axis, size in enumerate(x.shape) if size == 1]
    rest = [axis for axis in range(len(x.shape)) if axis not in unit]
    places = [axis for axis, size in enumerate(wanted) if size != 1]
    if [x.shape[a] for a in rest] == [wanted[a] for a in places]:
        return broadcast(g, squeeze(g, x, unit), wanted, places)  # axes of size 1
    return g.value(g.reshape(g.tensor(x), wanted), out)


def _expand_dims(g, eqn, x):
    shape = eqn.outvars[0].aval.shape
    new = eqn.params["dimensions"]
    return broadcast(g, x, shape, [a for a in range(len(shape)) if a not in new])


def _order(*values: Value) -> tuple[int, ...]:
    """In which order the axes of most of them lie."""
    for v in values:
        if not is_constant(v):
            return v.layout
    return values[0].layout


def _concatenate(g, eqn, *values):
    layout = _order(*values)
    axis = layout.index(eqn.params["dimension"])
    data = g.node("Concat", *(g.tensor(v, layout) for v in values), axis=axis)
    return g.value(data, eqn.outvars[0].aval, layout=layout)


def _slice(g, eqn, x):
    start, limit = eqn.params["start_indices"], eqn.params["limit_indices"]
    step = eqn.params["strides"] or [1] * len(start)
    cut = [
        axis
        for axis, size in enumerate(x.shape)
        if not (start[axis] == 0 and limit[axis] == size and step[axis] == 1)
    ]
    return _sliced(g, eqn.outvars[0].aval, x, cut, start, limit, step)


def _sliced(g, aval, x, cut, start, limit, step):
    if not cut:
        return x
    # What is the same all along an axis is not cut along it.
    there = [axis for axis in cut if x.stored[axis] == x.shape[axis]]
    stored = tuple(
        1 if x.stored[axis] != x.shape[axis] else size
        for axis, size in enumerate(aval.shape)
    )
    layout = x.layout
    data = g.tensor(x, layout, whole=False)
    if there:
        places = g.ints([layout.index(axis) for axis in there])
        bounds = [g.shape([s[axis] for axis in there]) for s in (start, limit)]
        steps = g.shape([step[axis] for axis in there])
        data = g.node("Slice", data, *bounds, places, steps)
    return g.value(data, aval, stored=stored, layout=layout)


def _rev(g, eqn, x):
    axes, n = eqn.params["dimensions"], len(x.shape)
    start, limit, step = [-1] * n, [np.iinfo(np.int32).min] * n, [-1] * n
    return _sliced(g, eqn.outvars[0].aval, x, axes, start, limit, step)


def _dynamic_slice(g, eqn, x, *starts):
    sizes = eqn.params["slice_sizes"]
    pairs = zip(x.shape, sizes, strict=True)
    cut = [axis for axis, (size, wanted) in enumerate(pairs) if size != wanted]
    begin = _starts(g, [starts[axis] for axis in cut])
    last = g.shape([x.shape[axis] - sizes[axis] for axis in cut])
    begin = g.node("Max", g.node("Min", begin, last), g.ints([0]))
    end = g.node("Add", begin, g.shape([sizes[axis] for axis in cut]))
    places = g.ints([x.layout.index(axis) for axis in cut])
    data = g.node("Slice", g.tensor(x, x.layout), begin, end, places)
    return g.value(data, eqn.outvars[0].aval, layout=x.layout)


def _starts(g, starts: Sequence[Value]) -> str:
    """Scalars as one list of int64."""
    lists = [broadcast(g, astype(g, v, np.int64), (1,), ()) for v in starts]
    return g.node("Concat", *map(g.tensor, lists), axis=0)


def _pad(g, eqn, x, value):
    config = eqn.params["padding_config"]
    if any(inner for _, _, inner in config):
        return traced(g, functools.partial(_spread, padding_config=config), x, value)
    axes = [axis for axis, (low, high, _) in enumerate(config) if low or high]
    if not axes:
        return x
    layout, wide = x.layout, _PADDED.get(str(x.dtype), x.dtype)
    x, value = (astype(g, v, wide) for v in (x, value))
    pads = g.ints([config[axis][end] for end in (0, 1) for axis in axes])
    places = g.ints([layout.index(axis) for axis in axes])
    data = g.node("Pad", g.tensor(x, layout), pads, g.tensor(value), places)
    aval = eqn.outvars[0].aval
    data = data if wide == aval.dtype else g.cast(data, aval.dtype)
    return g.value(data, aval, layout=layout)


_PADDED = {"bfloat16": "float32", "int16": "int32", "uint16": "int32"}


def _spread(x, value, padding_config):
    """`lax.pad` with something between the elements."""
    for axis, (_, _, inner) in enumerate(padding_config):
        size = x.shape[axis]
        if inner and size > 1:
            x = lax.expand_dims(x, [axis + 1])
            after = [(0, inner, 0) if a == axis + 1 else (0, 0, 0) for a in range(x.ndim)]
            x = lax.pad(x, value, after)
            shape = list(x.shape)
            shape[axis : axis + 2] = [size * (inner + 1)]
            x = lax.slice_in_dim(x.reshape(shape), 0, shape[axis] - inner, axis=axis)
    return lax.pad(x, value, [(low, high, 0) for low, high, _ in padding_config])


def _iota(g, eqn, *sizes):
    aval, axis = eqn.outvars[0].aval, eqn.params["dimension"]
    size, stored = aval.shape[axis], [1] * len(aval.shape)
    stored[axis] = size
    if isinstance(size, int):
        return constant(np.arange(size, dtype=aval.dtype).reshape(stored), aval.shape)
    zero, one = (g.number(np.asarray(n, np.int64)) for n in (0, 1))
    end = g.node("Squeeze", g.dim(size), g.ints([0]))
    line = g.cast(g.node("Range", zero, end, one), aval.dtype)
    line = g.value(line, jax.ShapeDtypeStruct((size,), aval.dtype))
    return broadcast(g, line, aval.shape, [axis])


def _dim_as_value(g, eqn):
    aval = eqn.outvars[0].aval
    dim = g.node("Squeeze", g.dim(eqn.params["dim"]), g.ints([0]))
    return g.value(g.cast(dim, aval.dtype), aval)


# --- reductions ------------------------------------------------------------------------


def _reduce(op: str, via: Any = None) -> Rule:
    """A reduction over axes, of booleans as what `via` says."""

    def rule(g, eqn, x):
        aval, axes = eqn.outvars[0].aval, eqn.params["axes"]
        if not axes:
            return x
        wide = via or _WIDE.get(str(x.dtype), x.dtype)
        name = g.tensor(astype(g, x, wide), x.layout)
        places = [x.layout.index(axis) for axis in axes]
        name = g.node(op, name, g.ints(sorted(places)), keepdims=0)
        name = name if np.dtype(wide) == aval.dtype else g.cast(name, aval.dtype)
        kept = [axis for axis in range(len(x.shape)) if axis not in axes]
        layout = tuple(kept.index(axis) for axis in x.layout if axis not in axes)
        out = g.value(name, aval, layout=layout)
        if op == "ReduceSum" and all(isinstance(x.shape[axis], int) for axis in axes):
            count = math.prod(x.shape[axis] for axis in axes)
            arguments = (g.tensor(astype(g, x, wide), x.layout), g.ints(sorted(places)))

            def mean():
                return replace(out, data=g.node("ReduceMean", *arguments, keepdims=0))

            if np.issubdtype(np.dtype(wide), np.floating) and wide == aval.dtype:
                g.sums[name] = functools.partial(divided, count, mean)
        return out

    return rule


def divided(count: Any, mean: Callable[[], Value], op: str, other: Value):
    """`mean()`, if that is what dividing (or multiplying) a sum by `other` makes."""
    if not is_constant(other):
        return None
    factor = np.asarray(other.data)
    factor = factor if op == "div" else np.float64(1) / np.where(factor, factor, 1)
    exact = np.all(np.asarray(factor, np.float64) == np.asarray(count, np.float64))
    return mean() if exact else None


def _arg(op: str) -> Rule:
    def rule(g, eqn, x):
        (axis,) = eqn.params["axes"]
        aval = eqn.outvars[0].aval
        x = astype(g, x, _WIDE.get(str(x.dtype), x.dtype))
        name = g.node(op, g.tensor(x, x.layout), axis=x.layout.index(axis), keepdims=0)
        layout = [a - (a > axis) for a in x.layout if a != axis]
        return g.value(g.cast(name, aval.dtype), aval, layout=tuple(layout))

    return rule


def _cumsum(g, eqn, x):
    aval, wide = eqn.outvars[0].aval, _WIDE.get(str(x.dtype), x.dtype)
    axis = g.number(np.asarray(x.layout.index(eqn.params["axis"]), np.int64))
    name = g.tensor(astype(g, x, wide), x.layout)
    name = g.node("CumSum", name, axis, reverse=int(eqn.params["reverse"]))
    name = name if wide == aval.dtype else g.cast(name, aval.dtype)
    return g.value(name, aval, layout=x.layout)


def _top(g, x: Value, axis: int, k: int, largest: int) -> list[Value]:
    """The first k along an axis, sorted, and where they stood, as int64."""
    wide = _WIDE.get(str(x.dtype), x.dtype)
    name = g.tensor(astype(g, x, wide), x.layout)
    place = x.layout.index(axis)
    names = g.node("TopK", name, g.ints([k]), outputs=2, axis=place, largest=largest)
    shape = tuple(k if a == axis else size for a, size in enumerate(x.shape))
    best = Value(names[0], np.dtype(wide), shape, shape, x.layout)
    where = Value(names[1], np.dtype(np.int64), shape, shape, x.layout)
    return [astype(g, best, x.dtype), where]


def _top_k(g, eqn, x):
    axis = eqn.params.get("axis", len(x.shape) - 1) % len(x.shape)
    best, where = _top(g, x, axis, eqn.params["k"], 1)
    return [best, astype(g, where, eqn.outvars[1].aval.dtype)]


def _sort(g, eqn, *values):
    """By the least significant key first: sorting by the others keeps its order."""
    axis, size = eqn.params["dimension"], values[0].shape[eqn.params["dimension"]]
    for key in reversed(range(eqn.params["num_keys"])):
        best, where = _top(g, values[key], axis, size, 0)
        place, moved = where.layout.index(axis), []
        for i, v in enumerate(values):
            if i == key:
                moved.append(best)
                continue
            name = g.tensor(v, where.layout)
            name = g.node("GatherElements", name, where.data, axis=place)
            moved.append(replace(where, data=name, dtype=v.dtype))
        values = moved
    return list(values)


# --- products --------------------------------------------------------------------------


def _dot_general(g, eqn, x, y):
    aval = eqn.outvars[0].aval
    (x_sum, y_sum), (x_batch, y_batch) = eqn.params["dimension_numbers"]
    wide = np.dtype(_WIDE.get(str(aval.dtype), aval.dtype))
    x, y = astype(g, x, wide), astype(g, y, wide)
    x_free, y_free = (
        [axis for axis in range(len(v.shape)) if axis not in (*sums, *batch)]
        for v, sums, batch in ((x, x_sum, x_batch), (y, y_sum, y_batch))
    )
    plain = len(x_sum) == 1 and len(y_free) == 1 and (not x_batch or len(x_free) == 1)
    if plain:
        layouts = (*x_batch, *x_free, *x_sum), (*y_batch, *y_sum, *y_free)
        names = [g.tensor(v, order) for v, order in zip((x, y), layouts, strict=True)]
        name = g.node("MatMul", *names)
    else:
        letters = iter("abcdefghijklmnopqrstuvwxyz")
        x_of = {axis: next(letters) for axis in range(len(x.shape))}
        pairs = zip((*x_sum, *x_batch), (*y_sum, *y_batch), strict=True)
        y_of = {b: x_of[a] for a, b in pairs}
        y_of |= {axis: next(letters) for axis in y_free}
        left, right = "".join(x_of.values()), "".join(y_of[a] for a in sorted(y_of))
        out = [x_of[a] for a in (*x_batch, *x_free)] + [y_of[a] for a in y_free]
        equation = f"{left},{right}->{''.join(out)}"
        name = g.node("Einsum", g.tensor(x), g.tensor(y), equation=equation)
    name = name if wide == aval.dtype else g.cast(name, aval.dtype)
    return g.value(name, aval)


def _conv(g, eqn, x, kernel):
    aval, p = eqn.outvars[0].aval, eqn.params
    wide = np.dtype(_WIDE.get(str(aval.dtype), aval.dtype))
    if p["batch_group_count"] != 1 or not np.issubdtype(wide, np.floating):
        raise DeployError("`to_onnx`: a convolution of integers, or grouped by batch.")
    numbers, x, kernel = p["dimension_numbers"], *(astype(g, v, wide) for v in (x, kernel))
    if any(d > 1 for d in p["lhs_dilation"]):
        return _conv_transpose(g, eqn, x, kernel)
    lows, highs = zip(*p["padding"], strict=True)
    given = [g.tensor(x, numbers.lhs_spec), g.tensor(kernel, numbers.rhs_spec)]
    name = g.node(
        "Conv",
        *given,
        kernel_shape=[kernel.shape[axis] for axis in numbers.rhs_spec[2:]],
        strides=list(p["window_strides"]),
        pads=[*lows, *highs],
        dilations=list(p["rhs_dilation"]),
        group=p["feature_group_count"],
    )
    name = name if wide == aval.dtype else g.cast(name, aval.dtype)
    return g.value(name, aval, layout=tuple(numbers.out_spec))


def _conv_transpose(g, eqn, x, kernel):
    """A convolution of an input with zeros between its elements."""
    p, aval = eqn.params, eqn.outvars[0].aval
    numbers, spread = p["dimension_numbers"], p["lhs_dilation"]
    spatial = numbers.rhs_spec[2:]
    reach = [
        (kernel.shape[axis] - 1) * d
        for axis, d in zip(spatial, p["rhs_dilation"], strict=True)
    ]
    lows = [r - low for r, (low, _) in zip(reach, p["padding"], strict=True)]
    highs = [r - high for r, (_, high) in zip(reach, p["padding"], strict=True)]
    more = [max(-high, 0) for high in highs]
    steps = zip(more, spread, strict=True)
    strided = any(s != 1 for s in p["window_strides"])
    if strided or p["feature_group_count"] != 1 or min(lows) < 0 or any(
        n >= s for n, s in steps
    ):
        return traced(g, functools.partial(_spread_conv, **p), x, kernel)
    if is_constant(kernel):
        kernel = replace(kernel, data=np.flip(np.asarray(kernel.data), spatial))
    else:
        n = len(kernel.shape)
        ends = [-1] * n, [np.iinfo(np.int32).min] * n, [-1] * n
        aval_of = jax.ShapeDtypeStruct(kernel.shape, kernel.dtype)
        kernel = _sliced(g, aval_of, kernel, spatial, *ends)
    out, into, *_ = numbers.rhs_spec
    given = [g.tensor(x, numbers.lhs_spec), g.tensor(kernel, (into, out, *spatial))]
    name = g.node(
        "ConvTranspose",
        *given,
        kernel_shape=[kernel.shape[axis] for axis in spatial],
        strides=list(spread),
        pads=[*lows, *(max(high, 0) for high in highs)],
        dilations=list(p["rhs_dilation"]),
        output_padding=more,
    )
    name = name if x.dtype == aval.dtype else g.cast(name, aval.dtype)
    return g.value(name, aval, layout=tuple(numbers.out_spec))


def _spread_conv(x, kernel, *, lhs_dilation, dimension_numbers, **params):
    config = [(0, 0, 0)] * x.ndim
    for axis, d in zip(dimension_numbers.lhs_spec[2:], lhs_dilation, strict=True):
        config[axis] = (0, 0, d - 1)
    x = lax.pad(x, jnp.zeros((), x.dtype), config)
    params = {k: v for k, v in params.items() if k != "out_sharding"}
    return lax.conv_general_dilated(
        x, kernel, dimension_numbers=dimension_numbers, **params
    )


# --- reading and writing by index ------------------------------------------------------


def _gather(g, eqn, x, indices):
    """Along one axis as `Gather`; all else by the flat index of each element."""
    p, aval = eqn.params, eqn.outvars[0].aval
    d, sizes = p["dimension_numbers"], p["slice_sizes"]
    simple = (
        len(d.start_index_map) == 1
        and tuple(d.collapsed_slice_dims) == tuple(d.start_index_map)
        and not d.operand_batching_dims
        and all(
            size == full or axis in d.collapsed_slice_dims
            for axis, (size, full) in enumerate(zip(sizes, x.shape, strict=True))
        )
    )
    mode = str(p["mode"])
    if not simple or ("FILL" in mode and not _within(indices, x, d)):
        return traced(g, functools.partial(_gather_flat, **p), x, indices)
    (axis,) = d.start_index_map
    if "CLIP" in mode and not _within(indices, x, d):
        last = x.shape[axis] - 1
        indices = traced(g, lambda i: jnp.clip(i, 0, last), indices)[0]
    indices = squeeze(g, indices, [-1])
    place, batch = x.layout.index(axis), len(indices.shape)
    layout = _order(x)
    name = g.node("Gather", g.tensor(x, layout), g.tensor(indices), axis=place)
    # There the axes of the indices lie where the axis was.
    kept = [a for a in range(len(x.shape)) if a != axis]
    offset = dict(zip(kept, d.offset_dims, strict=True))
    rest = [a for a in range(len(aval.shape)) if a not in d.offset_dims]
    assert len(rest) == batch
    order = [a for stored in layout for a in (rest if stored == axis else [offset[stored]])]
    return g.value(name, aval, layout=tuple(order))


def _within(indices, x, d) -> bool:
    """Whether indices into one axis are known to lie within it."""
    size = x.shape[d.start_index_map[0]]
    if not is_constant(indices) or not isinstance(size, int):
        return False
    given = np.asarray(indices.data)
    return bool(np.all((given >= 0) & (given < size)))


def _places(shape, indices, window, d, into, batching, mode):
    """Where in a flat array each element of a gather or scatter stands, and whether.

    `window` has the axes of the windows: their sizes, and what they are of the result.
    """
    sizes, offset_dims, collapsed = window
    strides = [math.prod(shape[a + 1 :]) for a in range(len(shape))]
    first, inside = jnp.zeros(indices.shape[:-1], jnp.int32), jnp.array(True)
    for k, axis in enumerate(into):
        index = indices[..., k].astype(jnp.int32)
        last = shape[axis] - sizes[axis]
        inside = inside & (index >= 0) & (index <= last)
        first = first + jnp.clip(index, 0, last) * strides[axis]
    for axis, place in batching:
        first = first + lax.broadcasted_iota(jnp.int32, first.shape, place) * strides[axis]
    rank = first.ndim + len(offset_dims)
    batch = [a for a in range(rank) if a not in offset_dims]
    kept = [a for a in range(len(shape)) if a not in collapsed]
    full = [1] * rank
    for place, axis in zip(offset_dims, kept, strict=True):
        full[place] = sizes[axis]
    for place, size in zip(batch, first.shape, strict=True):
        full[place] = size
    place = lax.broadcast_in_dim(first, full, batch)
    for at, axis in zip(offset_dims, kept, strict=True):
        place = place + lax.broadcasted_iota(jnp.int32, full, at) * strides[axis]
    inside = jnp.broadcast_to(inside, first.shape)
    return place, lax.broadcast_in_dim(inside, full, batch)


def _gather_flat(
    x, indices, *, dimension_numbers, slice_sizes, mode, fill_value, **unused
):
    d = dimension_numbers
    batching = zip(d.operand_batching_dims, d.start_indices_batching_dims, strict=True)
    collapsed = (*d.collapsed_slice_dims, *d.operand_batching_dims)
    window = (slice_sizes, d.offset_dims, collapsed)
    place, inside = _places(
        x.shape, indices, window, d, d.start_index_map, batching, mode
    )
    y = _take(x.reshape(-1), place)
    if "FILL" not in str(mode):
        return y
    fill = _fill(x.dtype) if fill_value is None else fill_value
    return jnp.where(inside, y, jnp.asarray(fill, x.dtype))


def _fill(dtype):
    """What `lax.gather` gives for nothing."""
    if jnp.issubdtype(dtype, jnp.inexact):
        return np.nan
    if dtype == jnp.bool_:
        return True
    limits = jnp.iinfo(dtype)
    return limits.max if limits.min == 0 else limits.min


def _take(x, place):
    numbers = lax.GatherDimensionNumbers((), (0,), (0,))
    mode = lax.GatherScatterMode.PROMISE_IN_BOUNDS
    return lax.gather(x, place[..., None], numbers, (1,), mode=mode)


def _scatter(reduction: str, function: Rule) -> Rule:
    """Into a flat array as `ScatterElements`; all else as a flat one."""

    def rule(g, eqn, x, indices, updates):
        p = eqn.params
        d = p["dimension_numbers"]
        flat = len(x.shape) == 1 and not d.update_window_dims
        if not flat or "FILL" in str(p["mode"]):
            flat = functools.partial(_scatter_flat, function, **p)
            return traced(g, flat, x, indices, updates)
        wide = _WIDE.get(str(x.dtype), x.dtype) if reduction != "none" else x.dtype
        names = [g.tensor(astype(g, x, wide)), g.tensor(squeeze(g, indices, [-1]))]
        names.append(g.tensor(astype(g, updates, wide)))
        name = g.node("ScatterElements", *names, axis=0, reduction=reduction)
        return g.value(name if wide == x.dtype else g.cast(name, x.dtype), eqn.outvars[0].aval)

    return rule


def _scatter_flat(function, x, indices, updates, *, dimension_numbers, mode, **unused):
    d = dimension_numbers
    collapsed = (*d.inserted_window_dims, *d.operand_batching_dims)
    kept = [a for a in range(x.ndim) if a not in collapsed]
    sizes = [1] * x.ndim
    for axis, place in zip(kept, d.update_window_dims, strict=True):
        sizes[axis] = updates.shape[place]
    batching = zip(d.operand_batching_dims, d.scatter_indices_batching_dims, strict=True)
    window = (sizes, d.update_window_dims, collapsed)
    into = d.scatter_dims_to_operand_dims
    place, inside = _places(x.shape, indices, window, d, into, batching, mode)
    flat, size = x.reshape(-1), math.prod(x.shape)
    if "FILL" in str(mode):
        place = jnp.where(inside, place, size)  # a place behind all others
        flat = jnp.concatenate([flat, jnp.zeros(1, x.dtype)])
    numbers = lax.ScatterDimensionNumbers((), (0,), (0,))
    mode = lax.GatherScatterMode.PROMISE_IN_BOUNDS
    place, updates = place.reshape(-1, 1), updates.reshape(-1)
    flat = function(flat, place, updates, numbers, mode=mode)
    return flat[:size].reshape(x.shape)


def _dynamic_update_slice(g, eqn, x, update, *starts):
    if not all(map(is_constant, starts)):
        return traced(g, _update_slice, x, update, *starts)
    starts = [int(v.data) for v in starts]
    pairs = zip(starts, x.shape, update.shape, strict=True)
    starts = [
        start if size == n else min(max(start, 0), size - n) if n != size else 0
        for start, size, n in pairs
    ]
    return traced(g, functools.partial(_replaced, starts), x, update)


def _replaced(starts, x, update):
    """`x` with `update` in it, by concatenation along one axis after the other."""
    for axis, (start, n) in enumerate(zip(starts, update.shape, strict=True)):
        if x.shape[axis] == n:
            continue
        end = start + n
        inner = _replaced(
            [0 if a <= axis else s for a, s in enumerate(starts)],
            lax.slice_in_dim(x, start, end, axis=axis),
            update,
        )
        parts = [
            lax.slice_in_dim(x, 0, start, axis=axis),
            inner,
            lax.slice_in_dim(x, end, x.shape[axis], axis=axis),
        ]
        parts = [part for part in parts if part.shape[axis] != 0]
        return lax.concatenate(parts, axis)
    return update


def _update_slice(x, update, *starts):
    axes = tuple(range(x.ndim))
    numbers = lax.ScatterDimensionNumbers(axes, (), axes)
    mode = lax.GatherScatterMode.CLIP
    return lax.scatter(x, jnp.stack(starts), update, numbers, mode=mode)


# --- loops and branches ----------------------------------------------------------------


def _graph(g: Graph, name: str, inputs, outputs: Iterable[str]):
    kinds = [
        helper.make_tensor_value_info(n, element_type(v.dtype), None)
        if v is not None
        else n
        for n, v in inputs
    ]
    results = [
        helper.make_tensor_value_info(n, element_type(dtype), None)
        for n, dtype in outputs
    ]
    return helper.make_graph(g.used([n for n, _ in outputs]), name, kinds, results)


def _body(g: Graph, name, avals, program: Callable[..., list[tuple[str, Any]]]):
    """A graph with an input for each of `avals`; `program` writes it into a graph."""
    inner = g.inner()
    inputs = [inner.value(inner.name("given"), aval) for aval in avals]
    outputs = [
        # Each output has to be one of the graph's own, by a name of its own.
        (_own(inner, n), dtype)
        for n, dtype in program(inner, *inputs)
    ]
    return _graph(inner, name, [(v.data, v) for v in inputs], outputs)


def _own(g: Graph, name: str) -> str:
    """The same tensor under a name that nothing else has."""
    own = g.name("result")
    g.nodes.append(helper.make_node("Identity", [name], [own], own))
    return own


def _outputs(g, values, avals):
    pairs = zip(values, avals, strict=True)
    return [(g.tensor(replace(v, dtype=a.dtype)), a.dtype) for v, a in pairs]


def _scan(g, eqn, *values):
    p = eqn.params
    jaxpr, consts = _opened(p["jaxpr"])
    n, m = p["num_consts"], p["num_consts"] + p["num_carry"]
    fixed, carry, xs = values[:n], values[n:m], values[m:]
    outs = [v.aval for v in jaxpr.outvars]
    if not xs:  # Scan needs something to go along
        line = np.zeros(p["length"], np.int32)
        xs, extra = (constant(line),), [jax.ShapeDtypeStruct((), np.int32)]
    else:
        extra = []
    avals = [v.aval for v in jaxpr.invars[n:]] + extra

    def program(inner, *given):
        given = given[: len(given) - len(extra)]
        results = write(inner, jaxpr, consts, *fixed, *given)
        return _outputs(inner, results, outs)

    body = _body(g, "scan", avals, program)
    backward = int(p["reverse"])
    names = g.node(
        "Scan",
        *map(g.tensor, (*carry, *xs)),
        outputs=len(eqn.outvars),
        body=body,
        num_scan_inputs=len(xs),
        scan_input_directions=[backward] * len(xs),
        scan_output_directions=[backward] * (len(outs) - len(carry)) or None,
    )
    names = [names] if isinstance(names, str) else names
    return [g.value(name, v.aval) for name, v in zip(names, eqn.outvars, strict=True)]


def _while(g, eqn, *values):
    p = eqn.params
    n, m = p["cond_nconsts"], p["cond_nconsts"] + p["body_nconsts"]
    cond_fixed, body_fixed, carry = values[:n], values[n:m], values[m:]
    condition, body = _opened(p["cond_jaxpr"]), _opened(p["body_jaxpr"])
    scalar = jax.ShapeDtypeStruct((), np.int64), jax.ShapeDtypeStruct((), np.bool_)
    avals = [v.aval for v in eqn.outvars]

    def program(inner, step, going, *given):
        results = write(inner, *body, *body_fixed, *given)
        (more,) = write(inner, *condition, *cond_fixed, *results)
        return [(inner.tensor(more), np.bool_), *_outputs(inner, results, avals)]

    (going,) = write(g, *condition, *cond_fixed, *carry)
    names = g.node(
        "Loop",
        "",
        g.tensor(going),
        *map(g.tensor, carry),
        outputs=len(avals),
        body=_body(g, "loop", [*scalar, *avals], program),
    )
    names = [names] if isinstance(names, str) else names
    return [g.value(name, aval) for name, aval in zip(names, avals, strict=True)]


def _cond(g, eqn, index, *values):
    branches = [_opened(closed) for closed in eqn.params["branches"]]
    if is_constant(index):
        which = min(max(int(index.data), 0), len(branches) - 1)
        return write(g, *branches[which], *values)
    avals = [v.aval for v in eqn.outvars]

    def branch(i):
        return lambda inner: _outputs(inner, write(inner, *branches[i], *values), avals)

    def choice(g, first):
        """The branches from `first` on."""
        here = g.tensor(index)
        test = g.node("Less", here, g.number(np.asarray(first + 1, index.dtype)))
        if first + 2 == len(branches):
            other = branch(first + 1)
        else:
            other = lambda inner: choice(inner, first + 1)  # noqa: E731
        names = g.node(
            "If",
            test,
            outputs=len(avals),
            then_branch=_body(g, "then", [], branch(first)),
            else_branch=_body(g, "else", [], other),
        )
        names = [names] if isinstance(names, str) else names
        return [(name, aval.dtype) for name, aval in zip(names, avals, strict=True)]

    names = choice(g, 0)
    return [g.value(n, aval) for (n, _), aval in zip(names, avals, strict=True)]


def _platform_index(g, eqn):
    """ONNX is no platform of JAX's: it gets what others get."""
    platforms = list(eqn.params["platforms"])
    if None not in platforms:
        raise DeployError("`to_onnx`: `lax.platform_dependent` without a default.")
    return constant(np.asarray(platforms.index(None), np.int32))


# --- rewritten in JAX ------------------------------------------------------------------


def _stack(*arrays, axis):
    return lax.concatenate([lax.expand_dims(x, [axis]) for x in arrays], axis)


def _tile(x, reps):
    for axis, n in enumerate(reps):
        x = lax.concatenate([x] * n, axis)
    return x


def _split(x, sizes, axis):
    ends = list(itertools.accumulate(sizes))
    pairs = zip(ends, sizes, strict=True)
    return [lax.slice_in_dim(x, end - n, end, axis=axis) for end, n in pairs]


def _log1p(x, **unused):
    u = 1 + x
    exact = jnp.log(u) * (x / jnp.where(u == 1, 1, u - 1))
    return jnp.where((u == 1) | jnp.isinf(u), jnp.where(u == 1, x, u), exact)


def _expm1(x, **unused):
    u = jnp.exp(x)
    log = jnp.log(u)
    odd = (u == 1) | (u == 0) | jnp.isinf(u)
    exact = (u - 1) * (x / jnp.where(odd | (log == 0), 1, log))
    return jnp.where(u == 1, x, jnp.where(odd, u - 1, exact))


def _round(x, rounding_method):
    if "EVEN" in str(rounding_method):
        return lax.round(x, lax.RoundingMethod.TO_NEAREST_EVEN)
    whole = jnp.sign(x) * jnp.floor(jnp.abs(x))
    return jnp.where(jnp.abs(x - whole) >= 0.5, whole + jnp.sign(x), whole)


def _rounded(g, eqn, x):
    if "EVEN" in str(eqn.params["rounding_method"]):
        x = astype(g, x, _WIDE.get(str(x.dtype), x.dtype))
        name = g.node("Round", g.tensor(x, x.layout, whole=False))
        return astype(g, replace(x, data=name), eqn.outvars[0].aval.dtype)
    return expand(_round)(g, eqn, x)


def _atan2(y, x):
    quadrant = jnp.where(y < 0, -np.pi, np.pi).astype(x.dtype)
    angle = jnp.arctan(y / jnp.where(x == 0, 1, x))
    angle = jnp.where(x < 0, angle + quadrant, angle)
    straight = jnp.where(y == 0, 0, quadrant / 2).astype(x.dtype)
    return jnp.where(x == 0, straight, angle)


def _shift(g, eqn, x, n):
    """By a power of two: to the right it rounds down, as it does with bits."""
    right = eqn.primitive.name == "shift_right_arithmetic"

    def shifted(x, n):
        power = jnp.left_shift(1, n) if isinstance(n, np.ndarray) else 2**n
        if not right:
            return (x * power).astype(x.dtype)
        return jnp.floor_divide(x, power)

    if not is_constant(n):
        raise DeployError(f"`to_onnx`: `{eqn.primitive.name}` by what an input decides.")
    by = np.asarray(np.left_shift(np.int64(1), np.asarray(n.data, np.int64)))
    if right:
        function = lambda x: jnp.floor_divide(x.astype(jnp.int64), by)  # noqa: E731
    else:
        function = lambda x: x.astype(jnp.int64) * by  # noqa: E731
    (y,) = traced(g, function, x)
    return astype(g, y, x.dtype)


def _bitcast(x, new_dtype):
    """Floats as their bits, and back, for float32: by arithmetic, in float64."""
    if (x.dtype, new_dtype) == (jnp.float32, jnp.int32):
        size = jnp.abs(x.astype(jnp.float64))
        number = jnp.isfinite(size) & (size > 0)
        safe = jnp.where(number, size, 1)
        e = jnp.floor(jnp.log(safe) / np.log(2.0))
        e = jnp.where(2.0**e > safe, e - 1, e)
        e = jnp.where(2.0 ** (e + 1) <= safe, e + 1, e)
        e = jnp.maximum(e, -126.0)
        bits = (e + 126) * 2.0**23 + safe * 2.0 ** (23 - e)
        bits = jnp.where(number, bits, 0)
        bits = jnp.where(jnp.isinf(size), 255 * 2.0**23, bits)
        bits = jnp.where(size != size, 255.5 * 2.0**23, bits)
        negative = (x < 0) | ((x == 0) & (1 / x < 0))
        return jnp.where(negative, bits - 2.0**31, bits).astype(jnp.int32)
    if (x.dtype, new_dtype) == (jnp.int32, jnp.float32):
        n = x.astype(jnp.float64)
        sign = jnp.where(n < 0, -1.0, 1.0)
        n = jnp.where(n < 0, n + 2.0**31, n)
        e = jnp.floor(n / 2.0**23)
        m = n - e * 2.0**23
        y = jnp.where(e == 0, m * 2.0**-149, (m + 2.0**23) * 2.0 ** (e - 150))
        y = jnp.where(e == 255, jnp.where(m == 0, jnp.inf, jnp.nan), y)
        return (sign * y).astype(jnp.float32)
    raise DeployError(f"`to_onnx`: the bits of {x.dtype} as {new_dtype}.")


def _reduce_precision(x, exponent_bits, mantissa_bits):
    kinds = {(5, 10): jnp.float16, (8, 7): jnp.bfloat16, (8, 23): jnp.float32}
    kind = kinds.get((exponent_bits, mantissa_bits))
    if kind is None:
        raise DeployError("`to_onnx`: `reduce_precision` to no dtype's precision.")
    return lax.convert_element_type(lax.convert_element_type(x, kind), x.dtype)


def _cumulative(op):
    def function(x, *, axis, reverse):
        return lax.associative_scan(op, x, reverse=reverse, axis=axis)

    return function


REWRITES: dict[str, Callable[..., Any]] = {
    "atan2": _atan2,
    "bitcast_convert_type": _bitcast,
    "cbrt": lambda x, **unused: jnp.sign(x) * jnp.abs(x) ** (1 / 3),
    "cumlogsumexp": _cumulative(jnp.logaddexp),
    "cummax": _cumulative(lax.max),
    "cummin": _cumulative(lax.min),
    "cumprod": _cumulative(lax.mul),
    "exp2": lambda x, **unused: 2**x,
    "expm1": _expm1,
    "log1p": _log1p,
    "reduce_precision": _reduce_precision,
    "split": _split,
    "square": lambda x, **unused: x * x,
    "stack": _stack,
    "tile": _tile,
}

_PLAIN = ("copy", "copy_p", "optimization_barrier", "pvary", "sharding_constraint")
RULES: dict[str, Rule] = {
    **{name: expand(function) for name, function in REWRITES.items()},
    **dict.fromkeys((*_PLAIN, "stop_gradient", "reduce_to"), _identity),
    "argmax": _arg("ArgMax"),
    "argmin": _arg("ArgMin"),
    "broadcast_in_dim": _broadcast_in_dim,
    "concatenate": _concatenate,
    "cond": _cond,
    "conv_general_dilated": _conv,
    "cumsum": _cumsum,
    "dim_as_value": _dim_as_value,
    "dot_general": _dot_general,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "expand_dims": _expand_dims,
    "gather": _gather,
    "iota": _iota,
    "pad": _pad,
    "platform_index": _platform_index,
    "reduce_and": _reduce("ReduceMin"),
    "reduce_max": _reduce("ReduceMax"),
    "reduce_min": _reduce("ReduceMin"),
    "reduce_or": _reduce("ReduceMax"),
    "reduce_prod": _reduce("ReduceProd"),
    "reduce_sum": _reduce("ReduceSum"),
    "reshape": _reshape,
    "rev": _rev,
    "round": _rounded,
    "scan": _scan,
    "scatter": _scatter("none", lax.scatter),
    "scatter-add": _scatter("add", lax.scatter_add),
    "scatter-max": _scatter("max", lax.scatter_max),
    "scatter-min": _scatter("min", lax.scatter_min),
    "scatter-mul": _scatter("mul", lax.scatter_mul),
    "shift_left": _shift,
    "shift_right_arithmetic": _shift,
    "slice": _slice,
    "sort": _sort,
    "squeeze": _squeeze,
    "top_k": _top_k,
    "transpose": _transpose,
    "while": _while,
}
# Written even if no input decides them: as views, or because sizes are not known.
_SYMBOLIC = {"broadcast_in_dim", "cond", "dim_as_value", "iota", "platform_index"}

CALLS = {
    "checkpoint",
    "closed_call",
    "core_call",
    "custom_jvp_call",
    "custom_vjp_call",
    "custom_vjp_call_jaxpr",
    "jit",
    "pjit",
    "remat2",
}
_BODIES = ("jaxpr", "call_jaxpr", "fun_jaxpr")
RANDOM = {
    "random_bits",
    "random_gamma",
    "rng_bit_generator",
    "rng_uniform",
    "threefry2x32",
}
# Functions of jaxpool's, by the name that `jax.jit` knows them by, for which there is a
# node that does all of it. A rule that gives None leaves the function to its program.
_KNOWN: dict[Any, Rule] = {}
