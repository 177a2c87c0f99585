"""LiteRT (TensorFlow Lite) without TensorFlow: float32, float16 weights, or int8."""

import functools
import json
import os
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from jaxpool._core.plain import plainly
from jaxpool._core.window import fail, is_name
from jaxpool.deploy import litert_model
from jaxpool.deploy.agreement import (
    Artefact,
    DeployError,
    check_agreement,
    need,
    one_line,
)
from jaxpool.deploy.extremes import check_extremes
from jaxpool.deploy.functions import (
    Function,
    as_arrays,
    as_tolerance,
    bind,
    exported,
    replayed,
    results,
    write,
)
from jaxpool.deploy.litert_converter import SIGNATURE, convert

__all__ = ["to_litert"]

# What may differ from JAX, as a part of each output's largest value.
_TOLERANCES = {
    "float32": 1e-4,  # a thousand roundings, all in one direction
    "float16": 1e-2,  # twenty roundings of a weight
    "int8": 0.1,  # 25 of 255 steps: half a step for each of 50 nodes
}
# Primitives whose results are never -inf, and those that only arrange elements.
_NEVER_LOW = ("abs", "erf", "exp", "logistic", "sqrt", "tanh")
_ARRANGE = ("reduce_window_max", "reshape", "squeeze", "transpose")


def to_litert(
    fn: Function,
    *inputs: Any,
    out: str | PathLike,
    dtype: str = "float32",
    calibration: Sequence[Any] | None = None,
    tolerance: float | None = None,
    extremes: bool = True,
) -> Artefact:
    """Writes a function as a .tflite file for the LiteRT runtime.

    Windows become MAX_POOL_2D and AVERAGE_POOL_2D where they have no dilation, whatever
    the layout and the number of axes. The file is run by the interpreter of
    `ai-edge-litert`. Needs `jaxpool[litert]`.

    Shapes are those of the examples, the batch's too: export each size that you want.
    The interpreter resizes any model that it is asked to, and some then silently
    compute the first batch alone. All that JAX has compiled is compiled again when it
    is next called.

    Args:
      fn: any function of arrays that `jax.jit` takes, such as an NNX model after its
        `eval()`. What it closes over becomes part of the file.
      *inputs: an example of each argument.
      out: the file to write, in place of what is there.
      dtype: "float32"; "float16", weights in half the size, computed in float32; or
        "int8", weights, inputs, outputs and all that the runtime knows in 8 bits.
      calibration: for int8, batches of real data that show which range each array of
        the model has: a sequence of arrays, or of tuples where there are several
        inputs, each with the examples' shapes. Noise in their place costs accuracy.
      tolerance: how much may differ from JAX, relative to each output's largest value:
        1e-4 for float32, 0.01 for float16 and 0.1 for int8 by default. int8 is compared
        at the calibration's batches.
      extremes: whether a file in floats is also compared at extreme values; see
        :func:`jaxpool.deploy.to_onnx`.

    Returns:
      Where the file lies, how often each kind of node is in it (what an int8 model
      computes in float32, by itself), and the largest difference seen.

    Raises:
      DeployError: if the function cannot be written, or disagrees with JAX; then
        nothing is written.
      ValueError: for a bad argument, as int8 without calibration.
      ModuleNotFoundError: if a package of the extra is not installed.

    Example:
      >>> import tempfile, jax, jaxpool
      >>> from jaxpool.deploy import to_litert
      >>> pool = lambda x: jaxpool.avg_pool(x, (2, 2), (2, 2))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     made = to_litert(pool, jax.numpy.ones((1, 4, 4, 3)), out=f"{folder}/f")
      >>> made.nodes
      {'AVERAGE_POOL_2D': 1}
    """
    caller = "to_litert"
    arrays = [np.asarray(x) for x in as_arrays(caller, inputs)]
    if not is_name(dtype, tuple(_TOLERANCES)):
        rule = f"must be one of {', '.join(_TOLERANCES)}"
        raise fail(caller, "dtype", rule, dtype)
    tolerance = as_tolerance(caller, tolerance, _TOLERANCES[dtype])
    batches = _batches(caller, arrays, dtype, calibration)
    packages = ["ai_edge_litert.interpreter", "ai_edge_litert.schema_py_generated"]
    for module in packages + ["litert_quantizer.quantizer"] * (dtype != "float32"):
        need("litert", module)
    expected = [results(fn, batch) for batch in batches]
    written = fn if dtype == "int8" else _with_infinity(fn)
    try:
        with plainly("planes"):
            # As for a GPU: on the CPU, maxima look for NaN by themselves, for XLA's
            # sake.
            module = exported(written, arrays, ["cuda"])
    except DeployError:
        raise
    except Exception as error:
        raise DeployError(
            f"LiteRT: JAX exports no such function: {one_line(error)}"
        ) from error
    model = convert(module)
    if dtype == "int8":
        model, actual = _in_int8(model, batches)
    else:
        if dtype == "float16":
            model = litert_model.quantize(model, SIGNATURE, dtype)
        actual = [_run(model, batch) for batch in batches]
    # All batches at once: steps of int8 are parts of the range of all.
    expected, actual = (
        [np.stack(parts) for parts in zip(*outputs, strict=True)]
        for outputs in (expected, actual)
    )
    error = check_agreement("LiteRT", expected, actual, tolerance)
    if extremes and dtype != "int8":
        run = functools.partial(_run, model)
        check_extremes("LiteRT", fn, arrays, "planes", run, tolerance)
    write(Path(out), model)
    return Artefact(Path(out), litert_model.kinds(model), error)


def _with_infinity(fn: Function) -> Function:
    """`fn`, written so that infinities stay what they are.

    LiteRT's maxima start from the lowest finite number. Twice that is -inf, so they are
    given halves, unless it is known that they see no -inf. And the converter makes
    finite numbers of infinite constants, but not of their bits.
    """

    def written(*inputs):
        closed = jax.make_jaxpr(lambda *xs: jax.tree.leaves(fn(*xs)))(*inputs)
        above: dict[int, Any] = {}  # what is never -inf, by the identity of what it is

        def known(x):
            if isinstance(x, Tracer):
                return id(x) in above
            return bool(np.all(np.asarray(x) > -np.inf))

        def step(eqn, given):
            name = eqn.primitive.name
            if name == "reduce_window_max" and _is_float(given[0]):
                (x,) = given
                if not (known(x) and _holds_elements(eqn.params)):
                    (y,) = bind(eqn, [x * np.array(0.5, x.dtype)])
                    return [y * np.array(2, x.dtype)]
            made = bind(eqn, [_in_bits(x) for x in given])
            if (
                name in _NEVER_LOW
                or (name == "max" and any(map(known, given)))
                or (name in _ARRANGE and known(given[0]))
            ):
                above.update((id(y), y) for y in made)
            return made

        return replayed(closed, step, *inputs)

    return written


def _holds_elements(params):
    """Whether it is known that no window holds nothing but padding."""
    pairs = zip(params["window_dimensions"], params["padding"], strict=True)
    spread = {*params["window_dilation"], *params["base_dilation"]} != {1}
    return not spread and all(max(pads) < size for size, pads in pairs)


def _is_float(x):
    return jnp.issubdtype(x.dtype, jnp.floating)


def _in_bits(x):
    """A constant that holds an infinity as the float32 of some integers."""
    if isinstance(x, Tracer) or x.dtype != np.float32 or not np.isinf(x).any():
        return x
    return lax.bitcast_convert_type(np.asarray(x).view(np.int32), np.float32)


def _batches(caller, arrays, dtype, calibration):
    """What the model is run with: the examples, or what int8 is calibrated with."""
    if dtype != "int8":
        if calibration is not None:
            rule = "must be left out, except for int8"
            raise fail(caller, "calibration", rule, type(calibration).__name__)
        return [arrays]
    rule = "must be batches of real data, for int8"
    if calibration is None or not len(calibration):
        raise fail(caller, "calibration", rule, calibration)
    batches = []
    for batch in calibration:
        parts = batch if isinstance(batch, tuple | list) else (batch,)
        parts = [np.asarray(part) for part in parts]
        if [p.shape for p in parts] != [x.shape for x in arrays]:
            shapes = tuple(x.shape for x in arrays)
            rule = f"must be made of batches with the examples' shapes {shapes}"
            raise fail(caller, "calibration", rule, tuple(p.shape for p in parts))
        pairs = zip(parts, arrays, strict=True)
        batches.append([part.astype(x.dtype) for part, x in pairs])
    return batches


def _run(model, batch):
    try:
        with warnings.catch_warnings(action="ignore"):
            return litert_model.run(model, SIGNATURE, batch)
    except (RuntimeError, ValueError) as error:
        why = str(error).splitlines()[0].rstrip(".")
        raise DeployError(f"LiteRT: its runtime refuses the model: {why}.") from error


def _in_int8(model, batches):
    """The quantized model and its outputs, made by a process of its own.

    For some models the runtime does not raise an error but ends its process.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder, "given.npz"), Path(folder, "made.npz")
        parts = {
            f"batch_{b}_{i}": x
            for b, xs in enumerate(batches)
            for i, x in enumerate(xs)
        }
        about = dict(batches=len(batches), inputs=len(batches[0]), signature=SIGNATURE)
        model = np.frombuffer(model, np.uint8)
        np.savez(given, about=json.dumps(about), model=model, **parts)
        # -P: this folder holds files with the names of packages.
        command = [sys.executable, "-P", litert_model.__file__, str(given), str(made)]
        quiet = {**os.environ, "TQDM_DISABLE": "1"}
        child = subprocess.run(command, capture_output=True, text=True, env=quiet)
        if child.returncode or not made.exists():
            raised = re.findall(r"^\w+(?:Error|Exception): (.*)", child.stderr, re.M)
            why = raised[-1].rstrip(".") if raised else "it ends the process"
            raise DeployError(f"LiteRT: its runtime refuses the model in int8: {why}.")
        with np.load(made) as file:
            count = sum(name.startswith("output_0_") for name in file)
            actual = [
                [file[f"output_{b}_{i}"] for i in range(count)]
                for b, _ in enumerate(batches)
            ]
            return file["model"].tobytes(), actual
