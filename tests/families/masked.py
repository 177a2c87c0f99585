"""Masked and weighted windows: sums and maxima of windows, put together."""

import math

import numpy as np
import oracle


def masked_maximum(e, i, pad, rule="any"):
    return (oracle.maximum(e, i, pad), 1.0) if e.size else (0.0, 0.0)


def masked_mean(e, i, pad, rule="any"):
    return (e.mean(), 1.0) if e.size else (0.0, 0.0)


def laid(x, weights, where, window):
    """Weights and mask with `x`'s rank, whole along the pooled axes, and the windows.

    Axes along which neither varies keep size 1.
    """
    from contract import Case  # which reads this file, and must not while it is read

    n = len(window["window_shape"])
    axes = tuple(range(-1 - n, -1))
    whole = [x.shape[a] if a in axes else 1 for a in range(-x.ndim, 0)]
    weights = np.asarray(weights, np.float64)
    if where is not None:
        weights = np.broadcast_arrays(weights, where)[0] * where
    shape = (1,) * (x.ndim - weights.ndim) + weights.shape
    weights = weights.reshape(shape) + np.zeros(whole)
    return weights, Case._lines(x, axes, dict(window)), axes


def weighted_mean(x, where=None, *, weights, **window):
    w, lines, axes = laid(x, weights, where, window)
    x = x if where is None else np.where(where, x, 0)
    sums = oracle.over_windows(oracle.total, x * w, lines, axes)
    total = oracle.over_windows(oracle.total, w, lines, axes)
    safe = np.where(total == 0, 1, total)
    return np.where(total == 0, 0, sums / safe), total / math.prod(
        window["window_shape"]
    )


def weighted_maximum(x, where=None, *, weights, **window):
    w, lines, axes = laid(x, weights, where, window)
    x = x if where is None else np.where(where, x, 0)
    some = oracle.over_windows(oracle.total, w > 0, lines, axes) > 0
    y = oracle.over_windows(oracle.maximum, x * w, lines, axes, w > 0)
    v = oracle.over_windows(oracle.maximum, w, lines, axes, w > 0)
    return np.where(some, y, 0), np.where(some, v, 0)


ORACLES = {
    "masked_max_pool": masked_maximum,
    "masked_avg_pool": masked_mean,
    "weighted_avg_pool": weighted_mean,
    "weighted_max_pool": weighted_maximum,
}


def weights(*shape):
    """Weights of 0 to 2, exact in any dtype, with windows that have none."""
    w = np.random.default_rng(0).integers(-40, 129, shape).clip(0) / 64
    w[:3, :3] = 0
    return w


_PADDED = dict(window_shape=(3, 3), padding=((1, 1), (2, 0)), strides=(2, 2))
_CEIL = dict(window_shape=(4,), strides=(3,), padding=((2, 1),), ceil_mode=True)
_DILATED = dict(window_shape=(3, 2), window_dilation=(2, 3), padding=((1, 1),) * 2)
_CASES = [
    ((6, 7), dict(_PADDED, weights=weights(6, 7, 1))),
    ((9,), dict(_CEIL, weights=weights(9, 1))),
    ((7, 7), dict(_DILATED, weights=weights(7, 7, 1))),
]
CASES = {"weighted_avg_pool": _CASES, "weighted_max_pool": _CASES}
STATIC = {name: dict(window_shape=(2, 2)) for name in CASES}
OWN = {"masked_max_pool": [dict(rule="all")]}
WIDE = {
    "masked_avg_pool": "mean",
    "weighted_avg_pool": "mean",
    "weighted_max_pool": "mean",
}
_W = dict(window_shape=(2, 2))
_RULES = [(dict(_W, rule="most"), ValueError, "`rule` must be 'any' or 'all'")]
_ONES = np.ones((6, 7, 1), np.float32)
_WEIGHTS = [
    (dict(_W, weights=_ONES * 1j), TypeError, "`weights` must be real"),
    (dict(_W, weights=_ONES[:5]), ValueError, "`weights` must broadcast to `x`"),
    (dict(_W, weights=_ONES, where=_ONES), TypeError, "`where` must be boolean"),
    (dict(weights=_ONES, window_shape=(7, 2)), ValueError, "leaves nothing to pool"),
    (dict(_W, weights=_ONES, padding=2), ValueError, "`padding` must be less than"),
]
WRONG = {
    "masked_max_pool": _RULES,
    "masked_avg_pool": _RULES,
    "weighted_avg_pool": _WEIGHTS,
    "weighted_max_pool": _WEIGHTS,
}
_SMALL = "what comes back is as small as the mask or weights; see test_masked.py"
EXCEPT = {
    **{(f"masked_{op}_pool", "mask"): _SMALL for op in ("max", "avg")},
    **{
        (f"weighted_{op}_pool", question): _SMALL
        for op in ("max", "avg")
        for question in (
            "mask",
            "any_layout",
            "any_number_of_batch_axes",
        )
    },
}
