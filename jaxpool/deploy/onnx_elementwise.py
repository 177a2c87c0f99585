"""Primitives that work element by element, and the nodes of the same meaning."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jax import lax

from jaxpool.deploy.onnx_graph import (
    Graph,
    Rule,
    Value,
    astype,
    constant,
    is_constant,
    widened,
)

__all__ = ["RULES"]


def _written(g: Graph, aval: Any, values: Sequence[Value], node: Callable[..., str]):
    """`node(*names)` of tensors whose axes lie in one order, that of the largest."""
    full = [v for v in values if v.shape]
    layout = max(
        (v for v in full if not is_constant(v)),
        key=lambda v: sum(size != 1 for size in v.stored),
        default=constant(np.zeros([1] * len(aval.shape))),
    ).layout
    names = [g.tensor(v, layout if v.shape else (), whole=False) for v in values]
    sizes = zip(*(v.stored for v in full), strict=True)
    stored = tuple(next((size for size in at if size != 1), 1) for at in sizes)
    return g.value(node(*names), aval, stored=stored, layout=layout)


def _arithmetic(op: Callable[..., str] | str) -> Rule:
    """The rule of a node that computes wide, if it has to, and is cast back."""

    def rule(g, eqn, *values):
        (out,) = eqn.outvars
        mean = _mean(g, eqn.primitive.name, *values)
        if mean is not None:
            return mean
        values = [astype(g, v, widened(v.dtype)) for v in values]
        y = _written(g, out.aval, values, functools.partial(_node, g, op, eqn))
        return astype(g, replace(y, dtype=widened(out.aval.dtype)), out.aval.dtype)

    return Rule(rule, "stored")


def _comparison(op: Callable[..., str] | str) -> Rule:
    """The rule of a node that gives booleans."""

    def rule(g, eqn, *values):
        values = [astype(g, v, widened(v.dtype)) for v in values]
        node = functools.partial(_node, g, op, eqn)
        return _written(g, eqn.outvars[0].aval, values, node)

    return Rule(rule, "stored")


def _logic(booleans: str, integers: str) -> Rule:
    """The rule of a node of booleans, with another one for the bits of integers."""

    def rule(g, eqn, *values):
        op = booleans if values[0].dtype == np.bool_ else integers
        return _written(g, eqn.outvars[0].aval, values, functools.partial(g.node, op))

    return Rule(rule, "stored")


def _node(g: Graph, op: Callable[..., str] | str, eqn: Any, *names: str) -> str:
    return g.node(op, *names) if isinstance(op, str) else op(g, eqn, *names)


def _mean(g: Graph, op: str, x: Value, *others: Value) -> Value | None:
    """The mean that a sum becomes when it is divided by its count; see `g.means`."""
    if op not in ("div", "mul") or is_constant(x) or not is_constant(others[0]):
        return None
    mean = g.means.get(x.data)
    return mean(op, others[0]) if mean else None


def _select(g: Graph, eqn: Any, which: Value, *cases: Value) -> Value:
    first, *rest = cases
    if all(first is v or _alike(first, v) for v in rest):
        return first
    aval, wide = eqn.outvars[0].aval, widened(cases[0].dtype)
    cases = tuple(astype(g, v, wide) for v in cases)

    def node(which, *cases):
        if eqn.invars[0].aval.dtype == np.bool_:
            return g.node("Where", which, cases[1], cases[0])
        chosen = cases[0]
        for i, case in enumerate(cases[1:], 1):
            here = g.node("Equal", which, g.number(np.asarray(i, np.int32)))
            chosen = g.node("Where", here, case, chosen)
        return chosen

    y = _written(g, aval, (which, *cases), node)
    return astype(g, replace(y, dtype=wide), aval.dtype)


def _alike(a: Value, b: Value) -> bool:
    """Whether both are the same constant."""
    if not (is_constant(a) and is_constant(b)):
        return False
    return np.array_equal(np.asarray(a.data), np.asarray(b.data))


def _convert(g: Graph, eqn: Any, x: Value) -> Value:
    return astype(g, x, eqn.params["new_dtype"])


def _clamp(g: Graph, eqn: Any, low: str, x: str, high: str) -> str:
    return g.node("Min", g.node("Max", x, low), high)


def _largest(g: Graph, eqn: Any, x: str, y: str) -> str:
    zero = g.number(np.zeros((), widened(eqn.outvars[0].aval.dtype)))
    if zero in (x, y) and eqn.outvars[0].aval.dtype != np.bool_:
        return g.node("Relu", y if x == zero else x)
    return g.node("Max", x, y)


def _integer_pow(g: Graph, eqn: Any, x: str) -> str:
    y, dtype = eqn.params["y"], widened(eqn.outvars[0].aval.dtype)
    if y == 2:
        return g.node("Mul", x, x)
    return g.node("Pow", x, g.number(np.asarray(y, dtype)))


def _remainder(g: Graph, eqn: Any, x: str, y: str) -> str:
    return g.node("Mod", x, y, fmod=1)


def _reciprocal_root(g: Graph, eqn: Any, x: str) -> str:
    return g.node("Reciprocal", g.node("Sqrt", x))


def _not_equal(g: Graph, eqn: Any, x: str, y: str) -> str:
    return g.node("Not", g.node("Equal", x, y))


def _erfc(g: Graph, eqn: Any, x: str) -> str:
    one = g.number(np.asarray(1, widened(eqn.outvars[0].aval.dtype)))
    return g.node("Sub", one, g.node("Erf", x))


def _round(g: Graph, eqn: Any, x: str) -> str:
    if eqn.params["rounding_method"] == lax.RoundingMethod.TO_NEAREST_EVEN:
        return g.node("Round", x)
    dtype = widened(eqn.outvars[0].aval.dtype)
    size = g.node("Abs", x)
    below = g.node("Floor", size)
    half = g.number(np.asarray(0.5, dtype))
    up = g.cast(g.node("GreaterOrEqual", g.node("Sub", size, below), half), dtype)
    return g.node("Mul", g.node("Sign", x), g.node("Add", below, up))


def _is_finite(g: Graph, eqn: Any, x: str) -> str:
    return g.node("Not", g.node("Or", g.node("IsInf", x), g.node("IsNaN", x)))


_ARITHMETIC: dict[str, str | Callable[..., str]] = {
    "abs": "Abs",
    "acos": "Acos",
    "acosh": "Acosh",
    "add": "Add",
    "add_any": "Add",
    "asin": "Asin",
    "asinh": "Asinh",
    "atan": "Atan",
    "atanh": "Atanh",
    "ceil": "Ceil",
    "clamp": _clamp,
    "cos": "Cos",
    "cosh": "Cosh",
    "div": "Div",
    "erf": "Erf",
    "erfc": _erfc,
    "exp": "Exp",
    "floor": "Floor",
    "integer_pow": _integer_pow,
    "log": "Log",
    "logistic": "Sigmoid",
    "max": _largest,
    "min": "Min",
    "mul": "Mul",
    "neg": "Neg",
    "pow": "Pow",
    "rem": _remainder,
    "round": _round,
    "rsqrt": _reciprocal_root,
    "sign": "Sign",
    "sin": "Sin",
    "sinh": "Sinh",
    "sqrt": "Sqrt",
    "sub": "Sub",
    "tan": "Tan",
    "tanh": "Tanh",
}
_COMPARISONS: dict[str, str | Callable[..., str]] = {
    "eq": "Equal",
    "ge": "GreaterOrEqual",
    "gt": "Greater",
    "is_finite": _is_finite,
    "le": "LessOrEqual",
    "lt": "Less",
    "ne": _not_equal,
}
_LOGIC = {
    "and": ("And", "BitwiseAnd"),
    "not": ("Not", "BitwiseNot"),
    "or": ("Or", "BitwiseOr"),
    "xor": ("Xor", "BitwiseXor"),
}
RULES = {
    **{name: _arithmetic(op) for name, op in _ARITHMETIC.items()},
    **{name: _comparison(op) for name, op in _COMPARISONS.items()},
    **{name: _logic(*ops) for name, ops in _LOGIC.items()},
    "convert_element_type": Rule(_convert, "stored"),
    "select_n": Rule(_select, "stored"),
}
