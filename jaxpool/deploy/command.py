"""What `jaxpool deploy` does: a function of a file, examples, and a writer."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxpool.deploy
from jaxpool._core import user_code
from jaxpool._core.user_code import UserError
from jaxpool._core.window import fail
from jaxpool.deploy.agreement import Artefact, DeployError
from jaxpool.deploy.functions import evaluation

__all__ = ["SUFFIXES", "deploy"]

SUFFIXES = {"stablehlo": ".stablehlo", "onnx": ".onnx", "litert": ".tflite"}
# Which targets an option is for, and the writer's argument of it.
_OPTIONS = {
    "dtype": ("litert",),
    "static": ("stablehlo", "onnx"),
    "shapes": ("stablehlo", "onnx"),
    "opset": ("onnx",),
    "extremes": ("onnx", "litert"),
    "gradient": ("stablehlo",),
    "platforms": ("stablehlo",),
}
_NAME = re.compile(r"[^\Wx]+=")  # without an x, which is between sizes
_FEW = 8  # examples for targets of any batch size
_MOST_BATCHES = 500  # to calibrate with


def deploy(
    model: str,
    *,
    to: str,
    inputs: Sequence[str] = (),
    examples: str | None = None,
    out: str | None = None,
    **options: Any,
) -> Artefact:
    """Writes a function of a Python file for a target.

    Args:
      model: `FILE.py:NAME`.
      to: the target.
      inputs: for each input a shape and dtype, `1x28x28x1:float32`. What has a name,
        as in `1xh=28xw=28x1`, is of any size.
      examples: an .npz file with an array of examples for each input.
      out: the file to write.
      **options: those of the targets' that were given.

    Raises:
      ValueError, TypeError, ModuleNotFoundError, OSError: for what the user can mend.
    """
    shapes = [_shape(text, options.get("static", False)) for text in inputs]
    if any(shapes):
        options["shapes"] = shapes
    for name in options:
        if to not in _OPTIONS.get(name, SUFFIXES):
            rule = f"is for {' and '.join(_OPTIONS[name])} only"
            raise fail("deploy", name, rule, to)
    specs = [_spec(_NAME.sub("", text)) for text in inputs]
    arrays = _examples(examples, specs, options.get("dtype") == "int8")
    if options.pop("static", False):
        options["dynamic_batch"] = False
    static = to == "litert" or not options.get("dynamic_batch", True)
    batches = _batches(arrays, specs, static) if examples else [arrays]
    if options.get("dtype") == "int8":
        options["calibration"] = [tuple(batch) for batch in batches[:_MOST_BATCHES]]
    fn = _load(model)
    with user_code.running("deploy", model), evaluation():
        results = jax.tree.leaves(jax.eval_shape(fn, *batches[0]))
    if not results:
        raise fail("deploy", "model", "must return at least one array", model)
    path = Path(out or Path(model.rpartition(":")[0]).with_suffix(SUFFIXES[to]).name)
    try:
        return getattr(jaxpool.deploy, f"to_{to}")(fn, *batches[0], out=path, **options)
    except DeployError as error:
        raise UserError(str(error)) from error


def _shape(text: str, static: bool) -> str | None:
    """The names of the axes of an input, as `shapes` has them; None without any."""
    sizes = text.partition(":")[0].split("x")
    if not _NAME.search(text):
        return None
    names = [size.partition("=")[0] if "=" in size else "_" for size in sizes]
    if names[0] == "_" and not static:
        names[0] = "batch"
    return ", ".join(names)


def _spec(text: str) -> tuple[tuple[int, ...], np.dtype]:
    shape, _, dtype = text.partition(":")
    try:
        sizes = tuple(int(n) for n in shape.split("x"))
        if min(sizes) < 1:
            raise ValueError
        return sizes, jnp.zeros((), dtype or "float32").dtype
    except (TypeError, ValueError):
        rule = "must be sizes and a dtype, as 1x28x28x1:float32"
        raise fail("deploy", "input", rule, text) from None


def _examples(file, specs, calibrates):
    """All examples there are, an array for each input."""
    if file is None:
        if calibrates:
            rule = "must be a file with real data, for int8"
            raise fail("deploy", "examples", rule, file)
        if not specs:
            rule = "must be given, unless `examples` is"
            raise fail("deploy", "input", rule, specs)
        rng = np.random.default_rng(0)
        return [
            (rng.normal(size=shape) if dtype.kind == "f" else np.zeros(shape)).astype(
                dtype
            )
            for shape, dtype in specs
        ]
    try:
        with open(file, "rb") as contents, np.load(contents) as arrays:
            found = [arrays[name] for name in arrays.files]
        for array in found:
            jnp.zeros((), array.dtype)
    except Exception as error:  # a damaged file makes it raise many kinds
        why = getattr(error, "strerror", None) or "it is no file of arrays of numbers"
        rule = f"must be an .npz file ({why})"
        raise fail("deploy", "examples", rule, file) from error
    counts = {len(array) if array.ndim else 0 for array in found}
    if len(counts) != 1 or 0 in counts:
        rule = "must hold arrays with the same number of examples, at least one"
        raise fail("deploy", "examples", rule, [array.shape for array in found])
    given = [(array.shape[1:], array.dtype) for array in found]
    asked = [(shape[1:], dtype) for shape, dtype in specs]
    if specs and asked != given:
        rule = f"must hold what `input` says, {asked}"
        raise fail("deploy", "examples", rule, given)
    return found


def _batches(arrays, specs, static):
    """The examples in batches: of the size asked for, of one, or of a few."""
    size = specs[0][0][0] if specs else 1 if static else min(_FEW, len(arrays[0]))
    if size > len(arrays[0]):
        rule = f"must hold at least one batch of {size}"
        raise fail("deploy", "examples", rule, len(arrays[0]))
    starts = range(0, len(arrays[0]) - size + 1, size)
    return [[array[i : i + size] for array in arrays] for i in starts]


def _load(model: str) -> Callable[..., Any]:
    """The function, or what one without arguments returns, put in eval()."""
    place, _, name = model.rpartition(":")
    if not place.endswith(".py") or not name or not Path(place).is_file():
        rule = "must be FILE.py:NAME, of a file that exists"
        raise fail("deploy", "model", rule, model)
    function = getattr(user_code.load("deploy", place), name, None)
    with user_code.running("deploy", model):
        if callable(function) and user_code.needed(function) == []:
            function = function()
    if not callable(function) or isinstance(function, type):
        rule = "must name a function of arrays, or one without arguments that gives it"
        raise fail("deploy", "model", rule, model)
    if user_code.is_linen(function) and getattr(function, "scope", None) is None:
        rule = "must hold its weights: a Linen module's are in a function such as "
        rule += "lambda x: module.apply(variables, x)"
        raise fail("deploy", "model", rule, model)
    if callable(evaluate := getattr(function, "eval", None)):
        with user_code.running("deploy", model):
            evaluate()
    return function
