"""Programs within programs: calls, branches, loops; and what is refused."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from onnx import helper

from jaxpool.deploy.agreement import DeployError
from jaxpool.deploy.functions import CALLS, called
from jaxpool.deploy.onnx_graph import (
    Graph,
    Rule,
    Value,
    astype,
    constant,
    element_type,
    is_constant,
)
from jaxpool.deploy.onnx_program import traced, write

__all__ = ["RULES"]


def _inline(g: Graph, eqn: Any, *values: Value) -> list[Value]:
    return write(g, called(eqn), *values)


def _expand(g: Graph, eqn: Any, *values: Value) -> list[Value]:
    """A primitive of jax 0.12's that knows what it is made of."""
    high = eqn.params["_prim"]
    return traced(g, lambda *xs: high.expand(*high.in_tree.unflatten(xs)), *values)


def _refuse(g: Graph, eqn: Any, *values: Value) -> None:
    raise DeployError(
        f"`to_onnx`: the function draws random numbers (`{eqn.primitive.name}`), and "
        "ONNX has no generator of the same ones. Pass `deterministic=True`, or call "
        "the model's `eval()` first."
    )


def _platform_index(g: Graph, eqn: Any) -> Value:
    """ONNX is none of JAX's platforms: it gets what all others get."""
    platforms = list(eqn.params["platforms"])
    if None not in platforms:
        rule = "`lax.platform_dependent` must have a default"
        raise DeployError(f"`to_onnx`: {rule}; it knows {platforms} alone.")
    return constant(np.int32(platforms.index(None)))


def _body(
    g: Graph,
    name: str,
    avals: Sequence[Any],
    program: Callable[..., Sequence[Value]],
    results: Sequence[Any],
) -> Any:
    """The graph of `program(graph, *values)`, with an input for each of `avals`."""
    inner = g.inner()
    inputs = [inner.value(inner.name("given"), aval) for aval in avals]
    outputs = []
    for v in program(inner, *inputs):
        # Each output has to be a node's of this graph, and no other output.
        outputs.append(inner.name("result"))
        source = inner.tensor(v)
        inner.nodes.append(helper.make_node("Identity", [source], [outputs[-1]]))
    return helper.make_graph(
        inner.used(outputs),
        name,
        [_described(v.data, v) for v in inputs],
        [_described(n, aval) for n, aval in zip(outputs, results, strict=True)],
    )


def _described(name: str, aval: Any) -> Any:
    sizes = [size if isinstance(size, int) else str(size) for size in aval.shape]
    return helper.make_tensor_value_info(name, element_type(aval.dtype), sizes)


def _several(g: Graph, avals: Sequence[Any], op: str, *inputs: str, **attributes: Any):
    """The values of a node of several outputs."""
    names = g.node(op, *inputs, outputs=len(avals), **attributes)
    names = [names] if isinstance(names, str) else names
    return [g.value(name, aval) for name, aval in zip(names, avals, strict=True)]


def _branch(g: Graph, eqn: Any, index: Value, *values: Value) -> list[Value]:
    branches, avals = eqn.params["branches"], [v.aval for v in eqn.outvars]
    if is_constant(index):
        which = min(max(int(np.asarray(index.data)), 0), len(branches) - 1)
        return write(g, branches[which], *values)

    def choice(g, first):
        """What the branches from `first` on give."""
        if first == len(branches) - 1:
            return write(g, branches[first], *values)
        limit = g.number(np.asarray(first + 1, np.int64))
        test = g.node("Less", g.tensor(astype(g, index, np.int64)), limit)
        here = _body(g, "here", [], lambda g: write(g, branches[first], *values), avals)
        after = _body(g, "after", [], lambda g: choice(g, first + 1), avals)
        graphs = {"then_branch": here, "else_branch": after}
        return _several(g, avals, "If", test, **graphs)

    return choice(g, 0)


def _while(g: Graph, eqn: Any, *values: Value) -> list[Value]:
    p, avals = eqn.params, [v.aval for v in eqn.outvars]
    n, m = p["cond_nconsts"], p["cond_nconsts"] + p["body_nconsts"]
    tested, fixed, carried = values[:n], values[n:m], values[m:]

    def step(g, number, going, *carried):
        results = write(g, p["body_jaxpr"], *fixed, *carried)
        return [*write(g, p["cond_jaxpr"], *tested, *results), *results]

    scalars = [jax.ShapeDtypeStruct((), dtype) for dtype in (np.int64, np.bool_)]
    (going,) = write(g, p["cond_jaxpr"], *tested, *carried)
    body = _body(g, "step", [*scalars, *avals], step, [scalars[1], *avals])
    inputs = map(g.tensor, (going, *carried))
    return _several(g, avals, "Loop", "", *inputs, body=body)


def _scan(g: Graph, eqn: Any, *values: Value) -> list[Value]:
    p, avals = eqn.params, [v.aval for v in eqn.outvars]
    if "ft_in" in p:  # since jax 0.11
        n, m, _ = (len(part) for part in p["ft_in"].unpack())
    else:
        n, m = p["num_consts"], p["num_carry"]
    fixed, carried, rows = values[:n], values[n : n + m], values[n + m :]
    jaxpr = getattr(p["jaxpr"], "jaxpr", p["jaxpr"])
    given = [v.aval for v in jaxpr.invars[n:]]
    if not rows:  # ONNX wants something to go along
        rows = (constant(np.zeros(p["length"], np.int32)),)
        given.append(jax.ShapeDtypeStruct((), np.int32))

    def step(g, *inputs):
        return write(g, p["jaxpr"], *fixed, *inputs[: len(jaxpr.invars) - n])

    results, backward = [v.aval for v in jaxpr.outvars], int(p["reverse"])
    outputs = len(results) - len(carried)
    return _several(
        g,
        avals,
        "Scan",
        *map(g.tensor, (*carried, *rows)),
        body=_body(g, "step", given, step, results),
        num_scan_inputs=len(rows),
        scan_input_directions=[backward] * len(rows),
        scan_output_directions=[backward] * outputs if outputs else None,
    )


_RANDOM = ("random_bits", "random_gamma", "rng_bit_generator", "rng_uniform")
_RANDOM += ("threefry2x32",)
RULES = {
    **{name: Rule(_inline, "never") for name in CALLS},
    **{name: Rule(_refuse, "never") for name in _RANDOM},
    "call_hi_primitive": Rule(_expand, "never"),
    "cond": Rule(_branch, "never"),
    "platform_index": Rule(_platform_index, "never"),
    "scan": Rule(_scan),
    "while": Rule(_while),
}
