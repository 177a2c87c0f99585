"""Windows as lists of elements, slowly and obviously: what oracles are called with."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

__all__ = ["Lines", "bins", "line", "over_windows"]

# For each window along one axis: the positions of its elements, and how many places of
# it lie in the array or in padding.
Lines = list[tuple[list[int], int]]


def line(
    size: int,
    k: int,
    s: int = 1,
    padding: str | tuple[int, int] = "VALID",
    d: int = 1,
    ceil_mode: bool = False,
) -> Lines:
    """The windows of `k` elements along an axis of `size`, by stride and dilation."""
    span = (k - 1) * d + 1
    if isinstance(padding, str):
        same = max((math.ceil(size / s) - 1) * s + span - size, 0)
        total = 0 if padding == "VALID" else same
        small, large = total // 2, total - total // 2
        low, high = (large, small) if padding == "SAME_LOWER" else (small, large)
    else:
        low, high = padding
    starts = []
    for start in range(-low, size + high, s):
        fits = start + span <= size + high
        overhangs = ceil_mode and start < size and start - s + span < size + high
        if not fits and not overhangs:
            break
        starts.append(start)
        if not fits:
            break
    taps = [[start + i * d for i in range(k)] for start in starts]
    return [
        (
            [t for t in window if 0 <= t < size],
            sum(-low <= t < size + high for t in window),
        )
        for window in taps
    ]


def bins(size: int, out: int) -> Lines:
    """The windows of adaptive pooling along an axis of `size`, `out` in number."""
    edges = [(o * size // out, -(-(o + 1) * size // out)) for o in range(out)]
    return [(list(range(a, b)), b - a) for a, b in edges]


def over_windows(
    f: Callable[[np.ndarray, list[int], int], Any],
    x: Any,
    lines: Sequence[Lines],
    axes: Sequence[int],
    where: Any = None,
) -> Any:
    """Calls `f(elements, positions, pad)` for every window of every plane.

    Args:
      f: the formula: of a window's elements in row-major order, without padding and
        what `where` hides, in float64; of their flat positions in the plane; and of how
        many places of the window are padding. It gives a number, or several.
      x: an array of numbers.
      lines: the windows along each of `axes`, as :func:`line` and :func:`bins` give.
      axes: the pooled axes, counted from the end.
      where: a mask that broadcasts to `x`.

    Returns:
      An array in float64, or one for each of the numbers that `f` gives.
    """
    x = np.asarray(x, np.float64)
    if where is not None:
        where = np.broadcast_to(where, x.shape)
        where = np.moveaxis(where, axes, range(-len(axes), 0))
    x = np.moveaxis(x, axes, range(-len(axes), 0))
    sizes = x.shape[-len(axes) :]
    out: list[np.ndarray] = []
    for plane in np.ndindex(x.shape[: -len(axes)]):
        for o, windows in enumerate(itertools.product(*lines)):
            places = list(itertools.product(*(w[0] for w in windows)))
            pad = math.prod(w[1] for w in windows) - len(places)
            if where is not None:
                places = [p for p in places if where[plane][p]]
            elements = np.array([x[plane][p] for p in places])
            positions = [int(np.ravel_multi_index(p, sizes)) for p in places]
            results = np.atleast_1d(f(elements, positions, pad))
            if not out:
                shape = (*x.shape[: -len(axes)], math.prod(map(len, lines)))
                out = [np.zeros(shape) for _ in results]
            for array, result in zip(out, results, strict=True):
                array[(*plane, o)] = result
    shape = (*x.shape[: -len(axes)], *map(len, lines))
    out = [np.moveaxis(a.reshape(shape), range(-len(axes), 0), axes) for a in out]
    return out[0] if len(out) == 1 else out
