"""Chains of layers as text: `max:3/2p1 conv:3x3:SAME global_avg`.

    NAME[:SIZE][/STRIDE][pPADDING][dDILATION][:WORD...]

  NAME      an op as `jaxpool compare` calls it (`max`, `avg`, `adaptive_avg`), `conv`
            or `flatten`
  SIZE      the window; of adaptive and spectral pools the output, of `blur` the filter
  STRIDE    1 where it is not given, as in Flax
  PADDING   on both sides, or LOW+HIGH
  WORD      SAME, SAME_LOWER or VALID; ceil; cN, a convolution to N channels

A number holds for every axis; `3x2` has one for each.
"""

import difflib
import inspect
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxpool._core.geometry import Geometry
from jaxpool._core.op import OPS, PoolOp
from jaxpool._core.window import Ints, Padding, Window, fail
from jaxpool.explain.programs import Program

__all__ = ["Step", "as_program", "parse"]

_STEP = re.compile(
    r"(?P<name>[a-z]\w*?)"
    r"(?::(?P<size>\d+(?:x\d+)*)?"
    r"(?:/(?P<stride>\d+(?:x\d+)*))?"
    r"(?:p(?P<padding>\d+(?:\+\d+)?(?:x\d+(?:\+\d+)?)*))?"
    r"(?:d(?P<dilation>\d+(?:x\d+)*))?)?"
    r"(?P<words>(?::[A-Za-z_]\w*)*)"
)
_SIZES = ("output_shape", "window_shape", "filter_size")
_LIKE_X = ("logits", "weights")  # inputs of some ops, one number for each element
_PADDINGS = ("SAME", "SAME_LOWER", "VALID")


def conv(
    x: jax.Array,
    window_shape: Ints,
    strides: Ints | None = None,
    padding: Padding = "VALID",
    *,
    window_dilation: Ints = 1,
    features: int | None = None,
) -> jax.Array:
    """A convolution of `x` [B, S..., C] with a kernel of zeros, for its shape alone."""
    window = Window.of("conv", window_shape, strides, padding, window_dilation)
    axes = Geometry.of(window, x.shape).axes
    channels, n = x.shape[-1], len(axes)
    sizes = [a.window for a in axes]
    kernel = jnp.zeros((*sizes, channels, features or channels), x.dtype)
    letters = "DHW"[-n:] if n <= 3 else "".join(map(chr, range(97, 97 + n)))
    return lax.conv_general_dilated(
        x,
        kernel,
        [a.stride for a in axes],
        [(a.low, a.high) for a in axes],
        rhs_dilation=[a.dilation for a in axes],
        dimension_numbers=(f"N{letters}C", f"{letters}IO", f"N{letters}C"),
    )


def flatten(x: jax.Array) -> jax.Array:
    """Returns `x` [B, ...] as [B, features]."""
    return x.reshape(x.shape[0], -1)


@dataclass(frozen=True)
class Step:
    """A layer of a chain: its text, its function and the function's arguments."""

    text: str
    name: str
    fn: Any
    arguments: dict[str, Any]


def parse(text: str, axes: int) -> Step:
    """Returns the layer that a text stands for, over `axes` spatial axes.

    Raises:
      ValueError: for a text that breaks the grammar, and an op that does not fit.

    Example:
      >>> step = parse("max:3x2/2p1x0:ceil", 2)
      >>> step.arguments["window_shape"], step.arguments["padding"]
      ((3, 2), ((1, 1), (0, 0)))
    """
    match = _STEP.fullmatch(text)
    if match is None:
        rule = "must be NAME[:SIZE][/STRIDE][pPADDING][dDILATION][:WORD]"
        raise fail("shape", "layer", rule, text)
    name, given = _function(match["name"], text)
    arguments: dict[str, Any] = {}

    def take(argument: str, value: Any) -> None:
        if argument not in given or argument in arguments:
            again = "once at most" if argument in given else f"not for {match['name']}"
            raise fail("shape", "layer", f"takes `{argument}` {again}", text)
        arguments[argument] = value

    def numbers(group: str) -> tuple[int, ...] | None:
        given = match[group]
        return _each(map(int, given.split("x")), axes, text) if given else None

    if size := numbers("size"):
        take(next((s for s in _SIZES if s in given), "window_shape"), size)
    if stride := numbers("stride"):
        take("strides", stride)
    if dilation := numbers("dilation"):
        take("window_dilation", dilation)
    if match["padding"]:
        pairs = [p.split("+") for p in match["padding"].split("x")]
        take("padding", _each(((int(p[0]), int(p[-1])) for p in pairs), axes, text))
    for word in match["words"].split(":")[1:]:
        if word in _PADDINGS:
            take("padding", word)
        elif word == "ceil":
            take("ceil_mode", True)
        elif re.fullmatch(r"c\d+", word):
            take("features", int(word[1:]))
        else:
            rule = f"must end with {', '.join(_PADDINGS)}, ceil or cN"
            raise fail("shape", "layer", rule, text)
    op = OPS.get(name)
    if op is not None:
        options = _options(op)
        if "output_shape" in arguments:
            options.pop("ratio", None)
        arguments = {**options, **arguments}
    if "weights" in arguments:  # of an element of the window, by rank
        taps = math.prod(arguments.get("window_shape", (1,)))
        arguments["weights"] = (1 / taps,) * taps
    missing = [
        p.name
        for p in given.values()
        if p.default is p.empty
        and p.name not in arguments
        and p.name in (*_SIZES, "strides")
    ]
    if missing:
        form = "NAME:/STRIDE" if missing[0] == "strides" else "NAME:SIZE"
        raise fail("shape", "layer", f"must have `{missing[0]}` ({form})", text)
    return Step(text, name, op.fn if op else _OWN[name], arguments)


_OWN = {"conv": conv, "flatten": flatten}


def _each(values, axes: int, text: str) -> tuple:
    values = tuple(values)
    if len(values) == 1:
        return values * axes
    if len(values) != axes:
        rule = f"must have one number, or one for each of the {axes} spatial axes"
        raise fail("shape", "layer", rule, text)
    return values


def _function(method: str, text: str) -> tuple[str, dict[str, inspect.Parameter]]:
    """The function's name, and the arguments that a text can give it."""
    if method in _OWN:
        parameters = inspect.signature(_OWN[method]).parameters
        return method, {n: p for n, p in parameters.items() if n != "x"}
    ops = {op.method: op for op in OPS.values()}
    if method not in ops:
        close = difflib.get_close_matches(method, [*ops, *_OWN], cutoff=0.4)
        rule = f"must be known (did you mean {', '.join(close) or 'max, avg, conv'}?)"
        raise fail("shape", "layer", rule, text)
    op = ops[method]
    parameters = inspect.signature(op.fn).parameters.values()
    free = {"x", *_LIKE_X, "strides", *_SIZES, *_options(op), *op.slots}
    needs = [p.name for p in parameters if p.default is p.empty and p.name not in free]
    if needs or op.integer:
        why = f"it needs {', '.join(needs)}" if needs else "it takes integers alone"
        rule = f"must be an op of one array and sizes ({method}: {why})"
        raise fail("shape", "layer", rule, text)
    return op.name, dict(op.config)


def _options(op: PoolOp) -> dict[str, Any]:
    options = {} if isinstance(op.compare, str) else dict(op.compare)
    return {**options, "deterministic": True} if op.takes_key else options


def _arrays(step: Step, x: jax.Array) -> dict[str, Any]:
    """What an op takes besides `x`: arrays like it, and weights of 0."""
    op = OPS.get(step.name)
    if op is None:
        return {}
    defaults = {n: p.default for n, p in op.settings.items()}
    settings = {**defaults, **step.arguments, "features": x.shape[-1]}
    weights = op.weights_for(settings).items()
    zeros = {name: jnp.zeros(shape, x.dtype) for name, (shape, _) in weights}
    alike = {name: x for name in op.inputs[1:] if name in _LIKE_X}
    return {**alike, **(op.passed(zeros) if op.learned_arrays else {})}


def as_program(steps: Sequence[Step]) -> Program:
    """The chain as a program over [1, S..., C]."""

    def run(recorder, weights, rest, x):
        del weights, rest
        for step in steps:
            taken = inspect.signature(step.fn).parameters
            arguments = {k: v for k, v in step.arguments.items() if k in taken}
            arguments |= _arrays(step, x)
            x = recorder.function(step.name, step.fn, (x,), arguments)
            x = x[0] if isinstance(x, tuple) else x
        return x

    return Program(run)
