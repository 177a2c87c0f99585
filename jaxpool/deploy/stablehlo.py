"""StableHLO by `jax.export`: what XLA compiles, for JAX and other users of XLA."""

import contextlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from jaxpool._core.window import fail
from jaxpool.deploy.agreement import Artefact, DeployError, check_agreement, need
from jaxpool.deploy.functions import (
    Function,
    as_arrays,
    as_avals,
    as_tolerance,
    exported,
    free_axes,
    other_sizes,
    results,
    unsized,
    write,
)

__all__ = ["to_stablehlo"]


def to_stablehlo(
    fn: Function,
    *inputs: Any,
    out: str | PathLike,
    dynamic_batch: bool = True,
    shapes: str | Sequence[str | None] | None = None,
    platforms: Sequence[str] = ("cpu", "cuda", "rocm", "tpu"),
    gradient: bool = False,
    tolerance: float | None = None,
) -> Artefact:
    """Writes a function as StableHLO that `jax.export.deserialize` reads.

    The file is read back and called, at the examples' batch size and at another one,
    and with gradient if that is in it. Needs `jaxpool[stablehlo]`.

    Args:
      fn: any function of arrays that `jax.jit` takes, such as an NNX model after its
        `eval()`. What it closes over becomes part of the file.
      *inputs: an example of each argument.
      out: the file to write, in place of what is there.
      dynamic_batch: whether the first axis of every input may have any size, the same
        for all.
      shapes: names for the axes of any size, as "b, h, w, _"; see
        :func:`jaxpool.deploy.to_onnx`.
      platforms: where the file is to run; one of them has to be the one here.
      gradient: whether the function's derivative (reverse mode, first order) is in the
        file too.
      tolerance: how much may differ from JAX, relative to each output's largest value.
        By default 64 units of rounding of the outputs' dtype: the program is the same,
        and XLA may fuse it in another way.

    Returns:
      Where the file lies, how often each operation of StableHLO is in it, and the
      largest difference seen.

    Raises:
      DeployError: if the function cannot be exported like this, or disagrees with JAX;
        then nothing is written.
      ValueError: for a bad argument.
      ModuleNotFoundError: if `flatbuffers` is not installed.

    Example:
      >>> import tempfile, jax, jaxpool
      >>> from jaxpool.deploy import to_stablehlo
      >>> pool = lambda x: jaxpool.max_pool(x, (2, 2), (2, 2))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     made = to_stablehlo(pool, jax.numpy.ones((1, 4, 4, 3)), out=f"{folder}/f")
      ...     read = jax.export.deserialize(bytearray(made.path.read_bytes()))
      >>> (y,) = read.call(jax.numpy.ones((5, 4, 4, 3)))  # a list of all outputs
      >>> y.shape
      (5, 2, 2, 3)
    """
    caller = "to_stablehlo"
    need("stablehlo", "flatbuffers")
    arrays = as_arrays(caller, inputs)
    here = jax.default_backend().replace("gpu", "cuda")
    if here not in platforms:
        rule = f"must include {here!r}, where the file is tested"
        raise fail(caller, "platforms", rule, tuple(platforms))
    avals = as_avals(caller, arrays, dynamic_batch, shapes)
    try:
        with _no_source_lines():
            module = exported(fn, avals, platforms)
    except DeployError:
        raise
    except Exception as error:
        if not free_axes(avals):
            raise
        raise unsized("StableHLO", avals, error) from error
    with _no_source_lines():  # a gradient is exported here
        contents = bytes(module.serialize(vjp_order=int(gradient)))
    call = export.deserialize(bytearray(contents)).call
    tolerance = as_tolerance(caller, tolerance, _rounding(module.out_avals))
    error = 0.0
    for batch in (arrays, *other_sizes(arrays, avals)):
        for f in (lambda g: g, _gradient_of) if gradient else (lambda g: g,):
            expected, actual = results(f(fn), batch), results(f(call), batch)
            seen = check_agreement("StableHLO", expected, actual, tolerance)
            error = max(error, seen)
    write(Path(out), contents)
    return Artefact(Path(out), _nodes(module), error)


@contextlib.contextmanager
def _no_source_lines() -> Iterator[None]:
    """Within this context, what is exported holds no names of files on this machine."""
    name = "jax_traceback_in_locations_limit"
    limit = getattr(jax.config, name)
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, limit)


def _rounding(avals):
    """64 units of rounding, a 16th at most, of the coarsest dtype."""
    floats = [a.dtype for a in avals if jnp.issubdtype(a.dtype, jnp.inexact)]
    return min(64 * max((float(jnp.finfo(d).eps) for d in floats), default=0), 1 / 16)


def _gradient_of(fn):
    """The gradient, in all floating inputs, of a sum of outputs with weights."""

    def total(floats, inputs):
        floats = iter(floats)
        inputs = [next(floats) if _floating(x) else x for x in inputs]
        outputs = [y for y in jax.tree.leaves(fn(*inputs)) if _floating(y)]
        weights = [jnp.cos(jnp.arange(1.0 * y.size)).reshape(y.shape) for y in outputs]
        pairs = zip(outputs, weights, strict=True)
        terms = (jnp.sum(y.astype(w.dtype) * w) for y, w in pairs)
        return sum(terms, start=jnp.zeros(()))

    def gradient(*inputs):
        return jax.grad(total)([x for x in inputs if _floating(x)], inputs)

    return gradient


def _floating(x):
    return jnp.issubdtype(x.dtype, jnp.floating)


def _nodes(module: export.Exported) -> dict[str, int]:
    names = re.findall(r'= "?stablehlo\.(\w+)', module.mlir_module())
    return dict(Counter(n for n in names if n != "constant").most_common())
