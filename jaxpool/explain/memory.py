"""What a model needs of a device's memory, before and after its pools are exchanged."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any

import jax
import jax.numpy as jnp

from jaxpool._core.op import OPS
from jaxpool._core.user_code import running
from jaxpool._core.window import as_int, as_shape, fail
from jaxpool.explain.calls import FLAX, Recorder
from jaxpool.explain.programs import Program, program

__all__ = ["Memory", "Need", "memory"]


@dataclass(frozen=True)
class Need:
    """What XLA planned for one compiled program, in bytes.

    Attributes:
      arguments: weights and inputs.
      output: results; of the gradient, one number for each weight.
      temporary: what lives only while it runs.
    """

    arguments: int
    output: int
    temporary: int

    @property
    def total(self) -> int:
        """The sum: what has to fit on the device at once."""
        return self.arguments + self.output + self.temporary


@dataclass(frozen=True)
class Memory:
    """The memory that a model needs for a batch.

    Printed, it is a table.

    Attributes:
      input_shape: the input's shape, with the batch.
      device: the kind of device that it was compiled for.
      swaps: pools that others take the place of, in `after`, by name.
      before: of the model as it is: `inference` and `gradient`.
      after: the same of the model with other pools; None where there are none.
    """

    input_shape: tuple[int, ...]
    device: str
    swaps: Mapping[str, str]
    before: Mapping[str, Need]
    after: Mapping[str, Need] | None

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it as dicts, lists, numbers and text, for JSON."""

        def plain(needs):
            return needs and {
                k: {**vars(n), "total": n.total} for k, n in needs.items()
            }

        return {
            "input_shape": [*self.input_shape],
            "device": self.device,
            "swaps": dict(self.swaps),
            "before": plain(self.before),
            "after": plain(self.after),
        }

    def print(self, console: Any = None) -> None:
        """Prints the table, in MB, on a console of `rich`."""
        from rich import box
        from rich.console import Console
        from rich.table import Table

        console = console or Console()
        shape = "x".join(map(str, self.input_shape))
        title = f"Memory for {shape} on {self.device}, in MB (10^6 bytes)"
        table = Table(
            box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0)
        )
        table.add_column("")
        for name in ("arguments", "output", "temporary", "total"):
            table.add_column(name, justify="right")
        for what, need in self.before.items():
            rows = {what: need}
            if self.after is not None:
                rows = {f"{what} before": need, f"{what} after": self.after[what]}
            for name, each in rows.items():
                sizes = (each.arguments, each.output, each.temporary, each.total)
                table.add_row(name, *(f"{size / 1e6:,.3f}" for size in sizes))
        console.print(title, markup=False, highlight=False)
        console.print(table)
        for old, new in self.swaps.items():
            text = f"After: {new} in place of {old}."
            console.print(text, markup=False, highlight=False)

    def __str__(self) -> str:
        """The table, 80 columns wide."""
        from rich.console import Console

        text = StringIO()
        self.print(Console(file=text, width=80))
        return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def memory(
    model: Any,
    input_shape: Sequence[int],
    *,
    batch: int | None = None,
    swap: Mapping[str, str] | None = None,
    dtype: Any = jnp.float32,
    **options: Any,
) -> Memory:
    """Returns the memory that a model needs for a batch, from XLA's own analysis.

    The model is compiled for the device that JAX uses, not run: for inference, and for
    the gradient of half the sum of squares of its first result in its weights (in its
    input, where it has none), in training mode. No optimizer takes part. `before` is
    the model as it is. `after` has other pools in place: those of `swap`; without it,
    jaxpool's where the model calls Flax's, as `jaxpool.compat.flax.use()` would.

    Args:
      model: a module of Flax NNX or Linen, or a function of an array.
      input_shape: sizes of all axes of its input, the batch too.
      batch: the size of the first axis, in place of that in `input_shape`.
      swap: what takes the place of which pool, named as in `jaxpool compare`:
        `{"max": "avg"}`. Both must be windowed.
      dtype: the input's.
      **options: further arguments of the model's call.

    Returns:
      What arguments, output and temporaries take; their sum is what has to fit.

    Raises:
      TypeError: for what is no model, or no shape.
      ValueError: for a pool that is not known, not windowed, or not called, and for a
        model that raises an error, or has no gradient.
      RuntimeError: for a device whose compiler gives no analysis.

    Example:
      >>> import jaxpool
      >>> from jaxpool.explain import memory
      >>> def model(x):
      ...     return jaxpool.max_pool(x, (2, 2), strides=(2, 2))
      >>> needs = memory(model, (1, 32, 32, 8), batch=4, swap={"max": "avg"})
      >>> needs.before["inference"].arguments, needs.before["inference"].output
      (131072, 32768)
    """
    shape = as_shape("memory", "input_shape", input_shape)
    if batch is not None:
        shape = (as_int("memory", "batch", batch, 1), *shape[1:])
    x = jax.ShapeDtypeStruct(shape, dtype)
    swaps = {_op(old): _op(new) for old, new in (swap or {}).items()}
    programs = [program(model, x, options, training=t) for t in (False, True)]
    called = _called(programs[0], x)
    for old in swaps:
        if old not in {name.removeprefix(FLAX) for name in called}:
            names = ", ".join(sorted(called)) or "no pool"
            rule = f"must name pools that the model calls, which are {names}"
            raise fail("memory", "swap", rule, swap)
    if not swaps:
        theirs = {name for name in called if name.startswith(FLAX)}
        swaps = {name: name.removeprefix(FLAX) for name in sorted(theirs)}
    after = _needs(programs, x, swaps) if swaps else None
    device = jax.devices()[0].device_kind
    return Memory(shape, device, swaps, _needs(programs, x, {}), after)


def _op(method: str) -> str:
    """The windowed op that goes by a name in `jaxpool compare`."""
    windowed = {op.method: op.name for op in OPS.values() if op.kind == "window"}
    if method not in windowed:
        rule = f"must name windowed pools: {', '.join(windowed)}"
        raise fail("memory", "swap", rule, method)
    return windowed[method]


def _called(program: Program, x: jax.ShapeDtypeStruct) -> set[str]:
    """The names of the pools that a program calls."""
    recorder = Recorder(marks=False)
    run: Callable[..., Any] = lambda *given: program.run(recorder, *given)  # noqa: E731
    jax.eval_shape(run, program.weights, program.rest, x)
    return {call.name for call in recorder.calls if call.function}


def _needs(
    programs: Sequence[Program], x: jax.ShapeDtypeStruct, swaps: Mapping[str, str]
) -> dict[str, Need]:
    inference, training = programs

    def predict(weights, rest, x):
        return inference.run(Recorder(swaps=swaps, marks=False), weights, rest, x)

    def loss(learned, weights, rest, x):
        if jax.tree.leaves(weights):
            weights = learned
        else:
            x = learned
        result = training.run(Recorder(swaps=swaps, marks=False), weights, rest, x)
        y = jax.tree.leaves(result)[0].astype(jnp.float32)
        return jnp.sum(y * y) / 2

    def gradient(weights, rest, x):
        learned = weights if jax.tree.leaves(weights) else x
        return jax.grad(loss)(learned, weights, rest, x)

    each = {"inference": (predict, inference), "gradient": (gradient, training)}
    needs = {}
    for name, (function, like) in each.items():
        with running("memory", f"the model's {name}"):
            lowered = jax.jit(function).lower(like.weights, like.rest, x)
        plan = lowered.compile().memory_analysis()
        if plan is None:
            raise RuntimeError("`memory`: this device's compiler gives no analysis.")
        sizes = (
            plan.argument_size_in_bytes,
            plan.output_size_in_bytes,
            plan.temp_size_in_bytes,
        )
        needs[name] = Need(*map(int, sizes))
    return needs
