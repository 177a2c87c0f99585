"""One look at a program for one input: the calls, the windows, and where it breaks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxpool._core.user_code import is_fault
from jaxpool.explain.calls import Call, EmptyResult, Recorder
from jaxpool.explain.fields import Dep, Event, walk
from jaxpool.explain.programs import Program

__all__ = ["Trace", "trace"]


@dataclass
class Trace:
    """What a program does with one input.

    Attributes:
      calls: its calls, in order.
      events: what there is to tell about, in order.
      result: what its first result sees of the input.
      shape: the shape of its first result.
      error: what it raised, if it did.
      failed: the call in which it did, by number.
    """

    calls: list[Call]
    events: list[Event]
    result: Dep | None
    shape: tuple[int, ...] | None
    error: Exception | None = None
    failed: int | None = None


def trace(
    program: Program,
    x: jax.ShapeDtypeStruct,
    axes: Sequence[int],
    edits: Mapping[int, Mapping[str, Any]] | None = None,
) -> Trace:
    """Returns what a program does, by abstract evaluation.

    Every `jax.jit` in it is taken apart, so that what it holds is seen, and that what
    has been traced before is traced again.

    Args:
      program: what to run.
      x: the input's shape and dtype.
      axes: the axes of the input whose receptive fields to follow.
      edits: new arguments for some calls of functions, by number.
    """
    recorder = Recorder(edits or {})
    raised: list[Exception] = []

    def run(weights, rest, x):
        try:
            result = program.run(recorder, weights, rest, x)
            return jax.tree.map(_as_array, result)
        except Exception as error:  # what came before it is worth telling
            if is_fault(error):
                raise
            raised.append(error)
            return ()

    with jax.disable_jit():
        jaxpr = jax.make_jaxpr(run)(program.weights, program.rest, x)
    argument = len(jax.tree.leaves((program.weights, program.rest)))
    events, results = walk(jaxpr, argument, axes, recorder.geometries)
    shape = tuple(jaxpr.out_avals[0].shape) if jaxpr.out_avals else None
    if shape and 0 in shape and not raised:
        raised.append(EmptyResult(f"is {shape}, which has no elements"))
    result = results[0] if results else None
    error = raised[0] if raised else None
    failed = recorder.failed if raised else None
    return Trace(recorder.calls, events, result, shape, error, failed)


def _as_array(leaf: Any) -> Any:
    return leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf)
