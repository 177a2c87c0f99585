"""What every target is held to: the file that was written computes what JAX does."""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

__all__ = ["Artefact", "DeployError", "check_agreement", "need", "one_line"]

_MOST_TEXT = 300  # of an error that is quoted


class DeployError(ValueError):
    """What cannot be written for a target, or was found to disagree with JAX there."""


@dataclass(frozen=True)
class Artefact:
    """A file that was run, and found to agree with JAX, before it was written.

    Attributes:
      path: where it lies.
      nodes: how often it holds each kind of node, most frequent first.
      error: the largest difference to JAX seen, as a part of the largest absolute
        value of the output that it was seen in.
    """

    path: Path
    nodes: dict[str, int]
    error: float


def need(extra: str, module: str, caller: str = "") -> ModuleType:
    """Imports a module of an extra of jaxpool's, for the writer of its name.

    Raises:
      ModuleNotFoundError: if its package is not installed; says what to install.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        how = f"pip install 'jaxpool[{extra}]'"
        caller = caller or f"to_{extra}"
        problem = f"`{caller}` needs the package {error.name}: {how}"
        raise ModuleNotFoundError(problem, name=error.name) from None


def one_line(error: BaseException) -> str:
    """What an error of others says, short enough to be quoted."""
    text = " ".join(str(error).split())
    text = text if len(text) <= _MOST_TEXT else f"{text[:_MOST_TEXT]}..."
    return f"{type(error).__name__}: {text}"


def check_agreement(
    target: str, expected: Sequence[Any], actual: Sequence[Any], tolerance: float
) -> float:
    """The largest difference between two lists of arrays, if it is small enough.

    Integers and booleans have to be equal. NaN and infinities have to stand in the same
    places; all else may differ by `tolerance` times the largest finite absolute value
    in the array that is expected.

    Args:
      target: whose results `actual` are, for the error.
      expected: JAX's results.
      actual: the artefact's.
      tolerance: what is rounding there, relative to each output's largest value.

    Returns:
      The largest difference, relative to the same.

    Raises:
      DeployError: if they disagree; says which output, where and by how much.

    Example:
      >>> check_agreement("ONNX", [[0.0, 4.0]], [[0.0, 3.0]], tolerance=0.5)
      0.25
    """
    if len(expected) != len(actual):
        counts = f"{len(actual)} outputs where JAX gives {len(expected)}"
        raise DeployError(f"{target} disagrees with JAX: {counts}.")
    pairs = zip(expected, actual, strict=True)
    errors = [_error(f"{target}: output {i}", *pair) for i, pair in enumerate(pairs)]
    for i, (error, where) in enumerate(errors):
        if error > tolerance:
            allowed = f"by {error:.2g} of its largest value, where {tolerance:.2g} is"
            if error == np.inf:
                allowed = "where nothing is"
            problem = (
                f"{target} disagrees with JAX: output {i} differs {allowed} tolerated; "
                f"at {where} it is {_at(actual[i], where)}, and JAX gives "
                f"{_at(expected[i], where)}."
            )
            raise DeployError(problem)
    return max((error for error, _ in errors), default=0.0)


def _at(array, where) -> str:
    return f"{np.asarray(array)[where]}"


def _error(what: str, expected: Any, actual: Any) -> tuple[float, tuple[int, ...]]:
    """The largest relative difference, infinite where none may be, and its index."""
    expected, actual = np.asarray(expected), np.asarray(actual)
    for fact in ("shape", "dtype"):
        mine, theirs = getattr(expected, fact), getattr(actual, fact)
        if mine != theirs:
            problem = f"{what} has the {fact} {theirs}, and JAX gives {mine}."
            raise DeployError(problem)
    if not expected.size:
        return 0.0, ()
    exact = expected.dtype.kind in "biu"
    wide = np.complex128 if expected.dtype.kind == "c" else np.float64
    e, a = expected.astype(wide), actual.astype(wide)
    finite = np.isfinite(e) & np.isfinite(a)
    same = (e == a) | (np.isnan(e) & np.isnan(a))
    largest = np.max(np.abs(e), where=np.isfinite(e), initial=0.0)
    difference = np.abs(np.where(finite, e, 0) - np.where(finite, a, 0))
    # Where nothing but 0 is expected there is no scale: the difference stands as it is.
    relative = np.asarray(difference / (largest or 1.0))
    relative[~same & (exact | ~finite)] = np.inf
    place = np.unravel_index(np.argmax(relative), relative.shape)
    return float(relative[place]), tuple(int(i) for i in place)
