"""Functions of arrays, traced and run: what all targets have in common."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jax.extend import core

from jaxpool._core.files import replace
from jaxpool._core.window import as_flag, fail
from jaxpool.deploy.agreement import DeployError, one_line

__all__ = [
    "CALLS",
    "as_arrays",
    "as_avals",
    "as_tolerance",
    "bind",
    "called",
    "evaluation",
    "exported",
    "free_axes",
    "other_sizes",
    "replayed",
    "results",
    "unsized",
    "write",
]

Function = Callable[..., Any]

CALLS = ("checkpoint", "closed_call", "core_call", "custom_jvp_call", "jit", "pjit")
CALLS += ("custom_vjp_call", "custom_vjp_call_jaxpr", "remat2")
"""Primitives that call a program with their operands, and do nothing else."""


def as_arrays(caller: str, inputs: Sequence[Any]) -> list[Any]:
    """The examples as arrays, at least one.

    Raises:
      ValueError: if there is none.
      TypeError: for what is no array of numbers; JAX names it.
    """
    if not inputs:
        raise fail(caller, "inputs", "must be at least one example array", inputs)
    return [jnp.asarray(x) for x in inputs]


def as_tolerance(caller: str, tolerance: float | None, default: float) -> float:
    """What may differ: what was asked for, or the default.

    Raises:
      ValueError: for what is no number from 0.
    """
    if tolerance is None:
        return default
    if isinstance(tolerance, int | float) and tolerance >= 0:
        return float(tolerance)
    raise fail(caller, "tolerance", "must be a number, at least 0", tolerance)


def as_avals(
    caller: str,
    arrays: Sequence[Any],
    dynamic_batch: bool | Sequence[bool],
    shapes: str | Sequence[str | None] | None,
) -> list[jax.ShapeDtypeStruct]:
    """The examples' shapes and dtypes, with a symbol for each axis of any size.

    Raises:
      ValueError: for examples that do not have such shapes, and for what is no shape.
      TypeError: for what is neither True nor False.
    """
    if isinstance(dynamic_batch, bool):
        free = [dynamic_batch and x.ndim > 0 for x in arrays]
    else:
        free = [as_flag(caller, "dynamic_batch", flag) for flag in dynamic_batch]
    same = shapes is None or isinstance(shapes, str)
    given = [shapes] * len(arrays) if same else shapes
    if not isinstance(given, Sequence):
        raise fail(caller, "shapes", "must be a text or a sequence of them", shapes)
    for name, entries in (("dynamic_batch", free), ("shapes", given)):
        if len(entries) != len(arrays):
            rule = f"must have one entry for each of the {len(arrays)} inputs"
            raise fail(caller, name, rule, entries)
    if any(flag and x.ndim == 0 for x, flag in zip(arrays, free, strict=True)):
        rule = "must be False for an input without axes"
        raise fail(caller, "dynamic_batch", rule, dynamic_batch)
    texts = [
        text if text is not None else "batch, ..." if flag else "..."
        for text, flag in zip(given, free, strict=True)
    ]
    avals = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays]
    try:
        avals = list(export.symbolic_args_specs(tuple(avals), tuple(texts)))
        known = all(map(_fits, avals, arrays))
    except (ValueError, TypeError):
        known = False
    if not known:
        rule = "must be texts of a name, a size or _ for each axis, as 'b, h, w, _'"
        raise fail(caller, "shapes", rule, shapes)
    for name, places in free_axes(avals).items():
        sizes = {arrays[i].shape[axis] for i, axis in places}
        if len(sizes) > 1 or 0 in sizes:
            rule = f"must have one {name} size, at least 1, on all axes of that name"
            raise fail(caller, "inputs", rule, [x.shape for x in arrays])
    return avals


def _fits(aval: Any, x: Any) -> bool:
    """Whether a shape is an example's, but for names."""
    pairs = zip(aval.shape, x.shape, strict=True)
    return len(aval.shape) == x.ndim and all(
        size == n if isinstance(size, int) else str(size).isidentifier()
        for size, n in pairs
    )


def free_axes(avals: Sequence[Any]) -> dict[str, list[tuple[int, int]]]:
    """The symbols in shapes: for each its places, as the input and the axis."""
    found: dict[str, list[tuple[int, int]]] = {}
    for i, aval in enumerate(avals):
        for axis, size in enumerate(aval.shape):
            if not isinstance(size, int):
                found.setdefault(str(size), []).append((i, axis))
    return found


def other_sizes(
    arrays: Sequence[Any], avals: Sequence[Any]
) -> Iterator[list[np.ndarray]]:
    """Longer examples, made of the given ones: no size that is free may be special.

    One longer; and two, where more than the batch is free, as strides see it.
    """
    axes = free_axes(avals)
    for more in range(1, 1 + bool(axes) + (not axes.keys() <= {"batch"})):
        longer = [np.asarray(x) for x in arrays]
        for i, axis in (place for places in axes.values() for place in places):
            size = arrays[i].shape[axis]
            longer[i] = np.take(longer[i], np.arange(size + more) % size, axis)
        yield longer


def unsized(target: str, avals: Sequence[Any], error: Exception) -> DeployError:
    """The error for a function that does not take shapes with symbols."""
    names = list(free_axes(avals))
    sizes = "a batch" if names == ["batch"] else f"inputs with {', '.join(names)}"
    return DeployError(
        f"{target}: the function does not take {sizes} of any size. Fix the batch by "
        "`dynamic_batch=False`; in `shapes`, have `_` for sizes that are fixed. JAX "
        f"says: {one_line(error)}"
    )


def called(eqn: Any) -> Any:
    """The program that an equation calls with its operands, if that is all it does."""
    if eqn.primitive.name not in CALLS:
        return None
    names = ("jaxpr", "call_jaxpr", "fun_jaxpr")
    return next(eqn.params[name] for name in names if name in eqn.params)


def replayed(
    program: Any, step: Callable[[Any, list[Any]], Sequence[Any]], *inputs: Any
) -> list[Any]:
    """The results of a program, an equation after the other, calls followed.

    Args:
      program: a (closed) jaxpr.
      step: `step(equation, operands)` returns the equation's results, as `bind` does.
      *inputs: arrays, or what traces them.
    """
    jaxpr = getattr(program, "jaxpr", program)
    values = dict(zip(jaxpr.constvars, getattr(program, "consts", ()), strict=True))
    values.update(zip(jaxpr.invars, inputs, strict=True))

    def read(atom):
        if isinstance(atom, core.Literal):
            aval: Any = atom.aval
            return np.asarray(atom.val, aval.dtype)
        return values[atom]

    for eqn in jaxpr.eqns:
        given, inner = [*map(read, eqn.invars)], called(eqn)
        made = step(eqn, given) if inner is None else replayed(inner, step, *given)
        values.update(zip(eqn.outvars, made, strict=True))
    return [*map(read, jaxpr.outvars)]


def bind(eqn: Any, operands: Sequence[Any]) -> Sequence[Any]:
    """The results of an equation with other operands."""
    made = eqn.primitive.bind(*operands, **eqn.params)
    return made if eqn.primitive.multiple_results else [made]


def results(fn: Function, inputs: Sequence[Any]) -> list[np.ndarray]:
    """What JAX gives, all outputs in the order of their tree."""
    with evaluation():
        outputs = jax.jit(lambda *inputs: fn(*inputs))(*inputs)
    return [np.asarray(y) for y in jax.tree.leaves(outputs)]


def exported(
    fn: Function, inputs: Sequence[Any], platforms: Sequence[str]
) -> export.Exported:
    """`fn` as StableHLO; `inputs` are arrays, or their shapes and dtypes.

    Its outputs are a list. The function is traced anew, whatever `jax.jit` remembers.
    """

    def listed(*inputs):
        return jax.tree.leaves(fn(*inputs))

    with evaluation():
        return export.export(jax.jit(listed), platforms=tuple(platforms))(*inputs)


@contextlib.contextmanager
def evaluation() -> Iterator[None]:
    """Within this context, a model that changes while it is called is explained."""
    try:
        yield
    except Exception as error:
        if type(error).__name__ != "TraceContextError":  # Flax's; it need not be there
            raise
        problem = (
            "The function changes a model's state, as batch statistics or keys of "
            "random numbers; call the model's eval() first."
        )
        raise DeployError(problem) from error


def write(path: Path, contents: bytes) -> None:
    """Writes a file whole or not at all."""
    replace(path, lambda temporary: temporary.write_bytes(contents))
