"""What is explained, as a pure function of weights and one input.

A model of Flax NNX or Linen, or any function of an array. Models evaluate, they do not
train: pools and dropout that sample are deterministic, and norms take running averages.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax

from jaxpool._core.user_code import is_linen, is_nnx
from jaxpool._core.window import fail
from jaxpool.explain.calls import Recorder

__all__ = ["Program", "program"]

_EVALUATING = {
    "train": False,
    "training": False,
    "is_training": False,
    "deterministic": True,
    "use_running_average": True,
}
"""Arguments of a model's call by which it is told to evaluate."""


@dataclass
class Program:
    """A model to explain.

    Attributes:
      run: the result of (recorder, weights, rest, x), with its calls recorded.
      weights: shapes and dtypes of what is learned.
      rest: those of everything else that it holds.
    """

    run: Callable[[Recorder, Any, Any, Any], Any]
    weights: Any = ()
    rest: Any = ()


def program(
    model: Any, x: jax.ShapeDtypeStruct, options: Mapping[str, Any], training: bool
) -> Program:
    """Returns a model as a program for inputs like `x`.

    Args:
      model: a module of Flax, or a function.
      x: the input's shape and dtype.
      options: further arguments of the call.
      training: whether it trains.

    Raises:
      TypeError: for what is no model.
    """
    if not callable(model):
        rule = "must be a module of Flax or a function of an array"
        raise fail("explain", "model", rule, model, TypeError)
    if is_linen(model):
        return _linen(model, x, _with_mode(model, options, training))
    if is_nnx(model):
        return _nnx(model, _with_mode(model, options, training), training)
    _check_call(model, options)

    def run(recorder, weights, rest, x):
        del weights, rest
        with recorder.recording():
            return model(x, **options)

    return Program(run)


def _with_mode(
    model: Any, options: Mapping[str, Any], training: bool
) -> dict[str, Any]:
    """The options, and those by which a module's call is told whether it trains."""
    taken = inspect.signature(model.__call__).parameters
    mode = {k: v != training for k, v in _EVALUATING.items() if k in taken}
    _check_call(model.__call__, {**mode, **options})
    return {**mode, **options}


def _check_call(call: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Raises a TypeError for options with which a call cannot be made."""
    try:
        signature = inspect.signature(call)
    except ValueError:  # of a function in C
        return
    try:
        signature.bind(None, **options)
    except TypeError as error:
        rule = f"must be what the model's call takes beside an array ({error})"
        raise fail("explain", "options", rule, dict(options), TypeError) from None


def _linen(model: Any, x: jax.ShapeDtypeStruct, options: dict[str, Any]) -> Program:
    streams = dict.fromkeys(("params", "dropout"), jax.random.key(0))

    def first(recorder, weights, rest, x):
        """A first call, which makes the weights."""
        del weights, rest
        with recorder.recording(), recorder.linen():
            return model.init_with_output(streams, x, **options)[0]

    try:
        variables = jax.eval_shape(lambda x: model.init(streams, x, **options), x)
    except Exception:  # recorded, it says in which layer
        return Program(first)
    params = variables.get("params", {})
    rest = {k: v for k, v in variables.items() if k != "params"}

    def run(recorder, weights, rest, x):
        collections, keys = rest
        held = {"params": weights, **collections}
        with recorder.recording(), recorder.linen():
            result, _ = model.apply(held, x, **options, mutable=True, rngs=keys)
        return result

    return Program(run, params, (rest, jax.tree.map(_shape, streams)))


def _nnx(model: Any, options: dict[str, Any], training: bool) -> Program:
    from flax import nnx

    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def run(recorder, weights, rest, x):
        held = nnx.merge(graph, weights, rest, copy=True)
        held.train() if training else held.eval()
        with recorder.recording(), recorder.nnx(held):
            return held(x, **options)

    return Program(run, *jax.tree.map(_shape, (params, rest)))


def _shape(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)
