"""Pyramids: each level on its own, and matrices of interpolation."""

import numpy as np
import oracle


def adaptive(x, sizes, formula):
    axes = tuple(range(-1 - len(sizes), -1))
    pairs = zip(axes, sizes, strict=True)
    lines = [oracle.bins(x.shape[a], size) for a, size in pairs]
    return np.asarray(oracle.over_windows(formula, x, lines, axes))


def as_levels(x, bins):
    """For each level a number of bins for each axis, the same axes for all."""
    n = next((len(level) for level in bins if not isinstance(level, int)), x.ndim - 2)
    return [(level,) * n if isinstance(level, int) else level for level in bins]


def flattened(x, bins, op="max"):
    formula = {"max": oracle.maximum, "avg": oracle.element_mean}[op]
    levels = as_levels(x, bins)
    n = len(levels[0])
    parts = [adaptive(x, level, formula) for level in levels]
    return np.concatenate([p.reshape(*x.shape[: -1 - n], -1) for p in parts], -1)


def chained(x, window_shape, depth=3):
    """The windows of K, 2K - 1, 3K - 2, ... themselves."""
    n = len(window_shape)
    axes, parts = tuple(range(-1 - n, -1)), [x]
    for stage in range(1, depth + 1):
        lines = [
            oracle.line(x.shape[a], stage * (k - 1) + 1, 1, "SAME")
            for a, k in zip(axes, window_shape, strict=True)
        ]
        parts.append(oracle.over_windows(oracle.maximum, x, lines, axes))
    return np.concatenate(parts, -1)


def interpolated(y, axis, size):
    y = np.moveaxis(y, axis, 0)
    count = len(y)
    places = []
    for i in range(size):
        below, rest = divmod(i * (count - 1), max(size - 1, 1))
        share = rest / max(size - 1, 1)
        place = (1 - share) * y[below]
        places.append(place + share * y[below + 1] if share else place)
    return np.moveaxis(np.stack(places), 0, axis)


def parsed(x, bins=(1, 2, 3, 6)):
    parts = [x]
    for level in as_levels(x, bins):
        y = adaptive(x, level, oracle.element_mean)
        for a in range(-1 - len(level), -1):
            y = interpolated(y, a, x.shape[a])
        parts.append(y)
    return np.concatenate(parts, -1)


def strips(x, where=None, axis=None):
    axes = range(1, x.ndim - 1) if axis is None else axis
    where = np.broadcast_to(True if where is None else where, x.shape)
    x, y = np.where(where, x, 0), np.zeros(x.shape)
    for a in axes:
        count = np.maximum(where.sum(a, keepdims=True), 1)
        y = y + x.sum(a, keepdims=True) / count
    return y


ORACLES = {
    "spatial_pyramid_pool": flattened,
    "sppf": chained,
    "pyramid_pool": parsed,
    "strip_pool": strips,
}
CASES = {
    "spatial_pyramid_pool": [
        ((6, 7), dict(bins=((1, 1), (2, 3)))),
        ((4, 5), dict(bins=(1, 2, 4), op="avg")),
        ((3,), dict(bins=((4,), (2,)), op="avg")),
    ],
    "sppf": [
        ((6, 7), dict(window_shape=(3, 1), depth=2)),
        ((9,), dict(window_shape=(5,))),
        ((4, 3, 5), dict(window_shape=(1, 3, 3), depth=1)),
    ],
    "pyramid_pool": [
        ((6, 7), dict(bins=((1, 1), (3, 2)))),
        ((4, 5), {}),
        ((1, 5), dict(bins=((2, 7), (1, 5)))),
        ((4, 3, 5), dict(bins=((2, 1, 3),))),
    ],
    "strip_pool": [
        ((6, 7), dict(axis=(-3, -2))),
        ((4, 5), {}),
        ((9,), {}),
        ((4, 3, 5), {}),
    ],
}
STATIC = {"spatial_pyramid_pool": {"bins": (1,)}, "sppf": {"window_shape": (3, 3)}}
WIDE = {"pyramid_pool": "mean", "strip_pool": "mean"}
_BINS = [
    (dict(bins=()), ValueError, "`bins` must have at least one level"),
    (dict(bins=(0, 2)), ValueError, "`bins` must be at least 1; got 0"),
    (dict(bins=(1.5, 2)), TypeError, "`bins` must be made of ints"),
    (dict(bins=((1, 1), (2, 2, 2))), ValueError, "equally many entries a level"),
    (dict(bins=((1,) * 4,)), ValueError, "must have between 1 and 3 entries"),
    (dict(bins=((),)), ValueError, "must have between 1 and 3 entries"),
    (dict(bins=((2, 2),), axis=1), ValueError, "`bins` must have 1 entries"),
    (dict(bins=2, axis=9), ValueError, "`axis` must lie within the 4 axes"),
]
WRONG = {
    "spatial_pyramid_pool": [
        *_BINS,
        (
            dict(bins=2, op="min"),
            ValueError,
            "`op` must be 'max' or 'avg'",
        ),
    ],
    "pyramid_pool": _BINS,
    "sppf": [
        (dict(window_shape=(3, 2)), ValueError, "`window_shape` must be odd"),
        (dict(window_shape=3), ValueError, "`window_shape` must be a sequence"),
        (dict(window_shape=(3, 3), depth=0), ValueError, "`depth` must be at least 1"),
        (dict(window_shape=(3, 3), axis=1), ValueError, "`axis` must have 2 entries"),
    ],
    "strip_pool": [
        (dict(axis=9), ValueError, "`axis` must lie within the 4 axes"),
        (dict(where=np.ones(3)), TypeError, "`where` must be boolean"),
    ],
}
