"""Functions of arrays, traced and run: what all targets have in common."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from jaxpool._core.files import replace
from jaxpool._core.window import fail
from jaxpool.deploy.agreement import DeployError

__all__ = ["as_arrays", "as_tolerance", "evaluation", "exported", "results", "write"]

Function = Callable[..., Any]


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
