"""What the modules of both Flax APIs share: their arguments, read off the op table."""

import inspect
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxpool._core.arguments import as_array, check_positive
from jaxpool._core.op import PoolOp
from jaxpool._core.window import Window, as_flag, as_int, fail

__all__ = ["Shown", "arguments", "document", "freeze", "learned_start", "validate"]

Step = tuple[str, str]  # code, and what it prints


def arguments(op: PoolOp, *extra: tuple[str, Any]) -> inspect.Signature:
    """The constructor's arguments: the op's settings, then keyword-only `extra`."""
    # Sorted, as those by position come from two functions.
    own = sorted(op.settings.values(), key=lambda p: p.kind)
    if op.learned:
        features = (("features", None),) if op.per_channel else ()
        extra = (("trainable", True), *features, *extra)
    kind = inspect.Parameter.KEYWORD_ONLY
    own += [inspect.Parameter(name, kind, default=default) for name, default in extra]
    return inspect.Signature(own)


class Shown:
    """An op in the example of a module: how it is built and called, and on what.

    Attributes:
      inputs: steps that make what it is called with.
      given: what it is called with, as in the parentheses of a call.
    """

    x_shape = (2, 8, 8, 16)

    def __init__(self, op: PoolOp):
        self.op = op
        dtype = ", jnp.int8" if op.integer else ""
        inputs = op.example.inputs or {"x": f"jnp.ones({self.x_shape}{dtype})"}
        parameters = inspect.signature(op.fn).parameters
        by_name = {n for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
        self.inputs = [(f"{name} = {value}", "") for name, value in inputs.items()]
        self.given = ", ".join(f"{n}={n}" if n in by_name else n for n in inputs)

    def built(self, *more: str) -> Step:
        """The step that builds the module, with more arguments."""
        own = self.op.example.arguments
        arguments = self._arguments() if own is None else [own]
        return f"pool = {self.op.module_name}({', '.join([*arguments, *more])})", ""

    def called(self, call: str) -> Step:
        """The step that shows the shapes of what a call returns."""
        shape = self.op.example.shape or self._shape()
        if self.op.outputs == 1:
            return f"{call}.shape", f"{shape}"
        shapes = shape if isinstance(shape, list) else [shape] * self.op.outputs
        return f"[y.shape for y in {call}]", f"{shapes}"

    def parameter(self, held: str) -> list[Step]:
        """The step that shows what is learned for each channel, if anything is."""
        if not (self.op.learned and self.op.per_channel):
            return []
        return [(held.format(self.op.learned[0]) + ".shape", f"({self.x_shape[-1]},)")]

    def _arguments(self) -> Iterator[str]:
        op = self.op
        others = {} if isinstance(op.compare, str) else op.compare
        sizes = {**op.sizes(self.x_shape), **others}
        if op.learned and op.per_channel:
            sizes["features"] = self.x_shape[-1]
        order = [*arguments(op).parameters]
        for position, name in enumerate(sorted(sizes, key=order.index)):
            first = position == 0 and name in ("window_shape", "output_shape")
            yield repr(sizes[name]) if first else f"{name}={sizes[name]!r}"

    def _shape(self) -> tuple[int, ...]:
        batch, *_, channels = self.x_shape
        sizes = self.op.sizes(self.x_shape)
        halved = {"strides", "output_shape"} & sizes.keys()
        return (batch, *(n // 2 for n in self.x_shape[1:-1] if halved), channels)


# What an example has to import, by what stands in its code.
_IMPORTS = {
    "jax.": "import jax",
    "jnp.": "import jax.numpy as jnp",
    "jp.": "import jaxpool as jp",
    "nnx.": "from flax import nnx",
}


def document(op: PoolOp, package: str, steps: list[Step]) -> str:
    """A module's docstring, with these steps as its example."""
    summary = (op.fn.__doc__ or "").partition("\n")[0]
    text = [summary, "", f"Calls :func:`jaxpool.{op.name}`, whose arguments it takes."]
    if op.learned:
        numbers = "as many numbers, or one a channel with `features=C`"
        text.append(
            f"Learns `{'`, `'.join(op.learned)}`, from the value given"
            f"{': ' + numbers if op.per_channel else ''}; fixed with `trainable=False`."
        )
    if op.takes_key:
        text.append(
            "Samples as the framework's `Dropout` does: with a key of the stream "
            "`rng_collection`, unless it is `deterministic`."
        )
    if op.learned_arrays:
        text.append(
            f"Learns the arrays of `{'`, `'.join(op.slots)}`, in float32; its own "
            "arguments, beyond the function's, say which, and how large they are."
        )
        text += ["", inspect.getdoc(op.learned_arrays) or ""]
    code = " ".join(code for code, _ in steps)
    imports = [line for name, line in _IMPORTS.items() if name in code]
    imports.append(f"from {package} import {op.module_name}")
    text += ["", "Example:", *(f"  >>> {line}" for line in imports)]
    for line, printed in steps:
        text += [f"  >>> {line}", *([f"  {printed}"] if printed else [])]
    return "\n".join(text)


def freeze(value: Any) -> Any:
    """Returns lists as tuples, and numbers of NumPy's and JAX's as Python's.

    A module's configuration has to be hashable.
    """
    if isinstance(value, list | tuple):
        return tuple(freeze(v) for v in value)
    if isinstance(value, np.generic | np.ndarray | jax.Array) and not np.ndim(value):
        plain = jnp.issubdtype(value.dtype, jnp.number) or value.dtype == jnp.bool_
        return value.item() if plain and not isinstance(value, Tracer) else value
    return value


def validate(op: PoolOp, config: dict[str, Any]) -> None:
    """Raises for bad sizes when the module is built, not when it is called."""
    for name, setting in op.settings.items():
        if setting.annotation is bool:
            as_flag(op.module_name, name, config[name])
    as_flag(op.module_name, "trainable", config.get("trainable", True))
    stream = config.get("rng_collection", "")
    if not isinstance(stream, str):
        rule = "must be the name of a stream"
        raise fail(op.module_name, "rng_collection", rule, stream, TypeError)
    op.weights_for(config)
    spec = {n for n in inspect.signature(Window.of).parameters if n != "caller"}
    if spec <= config.keys():
        Window.of(op.module_name, **{name: config[name] for name in spec})


def learned_start(
    op: PoolOp, name: str, value: Any, features: int | None
) -> tuple[jax.Array, tuple[int, ...]]:
    """The first value of a learned argument, and the shape of what is learned."""
    start = as_array(op.module_name, value, name, ordered=True).astype(jnp.float32)
    if name in op.positive:  # what is learned from here on is an array under `jit`
        check_positive(op.module_name, name, value)
    if features is None:
        return start, start.shape
    features = as_int(op.module_name, "features", features, 1)
    if start.shape[-1:] not in ((), (1,), (features,)):
        rule = f"must be the {start.shape[-1]} channels that `{name}` has values for"
        raise fail(op.module_name, "features", rule, features)
    return start, (*start.shape[:-1], features)
