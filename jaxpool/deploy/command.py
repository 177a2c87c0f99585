"""What `jaxpool deploy` does: a function of a file, examples, and a writer."""

import importlib.util
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import jaxpool.deploy
from jaxpool._core.window import fail
from jaxpool.deploy.agreement import Artefact, DeployError

__all__ = ["SUFFIXES", "deploy"]

SUFFIXES = {"stablehlo": ".stablehlo", "onnx": ".onnx", "litert": ".tflite"}
# Which targets an option is for, and the writer's argument of it.
_OPTIONS = {
    "dtype": ("litert",),
    "static": ("stablehlo", "onnx"),
    "gradient": ("stablehlo",),
    "platforms": ("stablehlo",),
}
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
      inputs: for each input a shape and dtype, `1x28x28x1:float32`.
      examples: an .npz file with an array of examples for each input.
      out: the file to write.
      **options: those of the targets' that were given.

    Raises:
      ValueError, TypeError, ModuleNotFoundError, OSError: for what the user can mend,
        in one line.
    """
    for name in options:
        if to not in _OPTIONS.get(name, SUFFIXES):
            rule = f"is for {' and '.join(_OPTIONS[name])} only"
            raise fail("deploy", name, rule, to)
    specs = [_spec(text) for text in inputs]
    arrays = _examples(examples, specs, options.get("dtype") == "int8")
    if options.pop("static", False):
        options["dynamic_batch"] = False
    static = to == "litert" or not options.get("dynamic_batch", True)
    batches = _batches(arrays, specs, static) if examples else [arrays]
    if options.get("dtype") == "int8":
        options["calibration"] = [tuple(batch) for batch in batches[:_MOST_BATCHES]]
    fn = _load(model)
    path = Path(out or Path(model.rpartition(":")[0]).with_suffix(SUFFIXES[to]).name)
    return getattr(jaxpool.deploy, f"to_{to}")(fn, *batches[0], out=path, **options)


def _spec(text: str) -> tuple[tuple[int, ...], np.dtype]:
    shape, _, dtype = text.partition(":")
    try:
        sizes = tuple(int(n) for n in shape.split("x"))
        if min(sizes) < 1:
            raise ValueError
        return sizes, np.dtype(dtype or "float32")
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
        with np.load(file) as arrays:
            found = [arrays[name] for name in arrays.files]
    except (OSError, ValueError, EOFError) as error:
        why = getattr(error, "strerror", None) or "it is no file of arrays"
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
    """The function: called if it needs no arguments, and its result put in eval()."""
    file, _, name = model.rpartition(":")
    path = Path(file)
    if path.suffix != ".py" or not name or not path.is_file():
        rule = "must be FILE.py:NAME, of a file that exists"
        raise fail("deploy", "model", rule, model)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise fail("deploy", "model", "must be a Python file", model)
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent.resolve()))  # as Python does for a script
    try:
        spec.loader.exec_module(module)
        function = getattr(module, name, None)
        if callable(function) and _needs_nothing(function):
            function = function()
    except Exception as error:
        kind = type(error).__name__
        raise DeployError(f"`deploy`: {model} fails: {kind}: {error}") from error
    finally:
        sys.path.pop(0)
    if not callable(function):
        rule = "must name a function of arrays, or one without arguments that gives it"
        raise fail("deploy", "model", rule, model)
    evaluate = getattr(function, "eval", None)
    if callable(evaluate):
        evaluate()
    return function


def _needs_nothing(function) -> bool:
    try:
        inspect.signature(function).bind()
    except (TypeError, ValueError):
        return False
    return True
