"""A program of JAX's, an equation after the other, by a table of rules."""

import contextlib
import functools
import importlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core

from jaxpool.deploy.agreement import DeployError, one_line
from jaxpool.deploy.onnx_graph import Graph, Rule, Value, constant, is_constant

__all__ = ["rewritten", "traced", "write"]


def write(g: Graph, closed: Any, *args: Value) -> list[Value]:
    """Writes a program into a graph, called with `args`; returns its results.

    What no operand makes depend on an input is evaluated instead.

    Raises:
      DeployError: for a primitive that no rule is for, or that its rule refuses.
    """
    jaxpr, consts = getattr(closed, "jaxpr", closed), getattr(closed, "consts", ())
    values = dict(zip(jaxpr.constvars, map(constant, consts), strict=True))
    values.update(zip(jaxpr.invars, args, strict=True))

    def read(atom):
        if isinstance(atom, core.Literal):
            aval: Any = atom.aval
            return constant(np.asarray(atom.val, aval.dtype))
        return values[atom]

    for eqn in _needed(jaxpr):
        avals = [v.aval for v in eqn.outvars]
        if avals and all(0 in aval.shape for aval in avals):
            results = [_nothing(aval) for aval in avals]
        else:
            try:
                results = _equation(g, eqn, *map(read, eqn.invars))
            except DeployError:
                raise
            except Exception as error:
                raise _refusal(eqn, f"cannot be written: {one_line(error)}") from error
        results = results if isinstance(results, list) else [results]
        values.update(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def traced(g: Graph, function: Callable[..., Any], *values: Value) -> list[Value]:
    """Writes a function of JAX's, called with `values`."""
    avals = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in values]
    with _wide():
        closed = jax.make_jaxpr(function)(*avals)
    return write(g, closed, *values)


def rewritten(function: Callable[..., Any]) -> Rule:
    """The rule for a primitive that is `function(*operands, **params)`."""

    def rule(g, eqn, *values):
        return traced(g, functools.partial(function, **eqn.params), *values)

    return Rule(rule)


def _nothing(aval: Any) -> Value:
    """What has no elements, whatever the batch: no input decides them."""
    known = [size if isinstance(size, int) else 1 for size in aval.shape]
    return constant(np.zeros(known, aval.dtype), aval.shape)


def _needed(jaxpr: Any) -> list[Any]:
    """The equations that the results are made of."""
    needed = {v for v in jaxpr.outvars if not isinstance(v, core.Literal)}
    kept = []
    for eqn in reversed(jaxpr.eqns):
        if needed.intersection(eqn.outvars):
            kept.append(eqn)
            needed |= {v for v in eqn.invars if not isinstance(v, core.Literal)}
    return kept[::-1]


def _equation(g: Graph, eqn: Any, *values: Value) -> Any:
    special = g.rules.get(f"call {eqn.params.get('name')}")
    found = special and special.write(g, eqn, *values)
    if found:
        return found
    rule = g.rules.get(eqn.primitive.name)
    folds = rule.folds if rule else "whole"
    if folds != "never" and all(map(is_constant, values)):
        results = _evaluated(eqn, folds, values)
        if results is not None:
            return results
    if rule is None:
        raise _refusal(eqn, "has no rule")
    return rule.write(g, eqn, *values)


def _refusal(eqn: Any, problem: str) -> DeployError:
    """The error for an equation that cannot be written."""
    operands = " and ".join(v.aval.str_short() for v in eqn.invars) or "nothing"
    sizes = itertools.chain(*(v.aval.shape for v in (*eqn.invars, *eqn.outvars)))
    instead = "write it with other functions of JAX, or leave it out of `fn`"
    if not all(isinstance(size, int) for size in sizes):
        instead += ", or fix its sizes by `dynamic_batch=False` and without `shapes`"
    return DeployError(
        f"`to_onnx`: the primitive `{eqn.primitive.name}` of {operands} {problem}; "
        f"{instead}."
    )


def _evaluated(eqn: Any, folds: str, values: Sequence[Value]) -> list[Value] | None:
    """The results of an equation that no input decides, if their sizes are known."""
    if folds == "stored":
        # As few as lie there: they may stand for as many as the batch has.
        shape = np.broadcast_shapes(*(v.stored for v in values if v.stored))
        shapes = [shape if v.stored else () for v in values]
    else:
        shapes = [v.shape for v in values]
        sizes = itertools.chain(*shapes, *(v.aval.shape for v in eqn.outvars))
        if not all(isinstance(size, int) for size in sizes):
            return None
    pairs = zip(values, shapes, strict=True)
    arrays = [v.data if v.stored == s else np.broadcast_to(v.data, s) for v, s in pairs]
    with _wide():
        results = eqn.primitive.bind(*arrays, **eqn.params)
    results = results if eqn.primitive.multiple_results else [results]
    pairs = zip(results, eqn.outvars, strict=True)
    return [constant(result, v.aval.shape) for result, v in pairs]


@contextlib.contextmanager
def _wide() -> Iterator[None]:
    """What is computed here may have 64 bits, and promotes as in NumPy."""
    wide = getattr(jax, "enable_x64", None)
    if wide is None:  # before jax 0.8
        wide = importlib.import_module("jax.experimental").enable_x64
    promotion = jax.numpy_dtype_promotion("standard")
    with wide(True), promotion, jax.numpy_rank_promotion("allow"):
        yield
