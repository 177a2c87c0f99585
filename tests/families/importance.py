"""Learned importance: a small network's weights, and those of detail."""

import itertools
import math

import numpy as np
import oracle

import jaxpool


def importance(x, where=None, *, params, eps=1e-5, **window):
    from contract import Case  # which reads this file, and must not while it is read

    n = len(window["window_shape"])
    axes = tuple(range(-1 - n, -1))
    shown = np.broadcast_to(True if where is None else where, x.shape)
    x = np.where(shown, x, 0)
    wide = np.pad(x, [(0, 0)] * (x.ndim - n - 1) + [(1, 1)] * n + [(0, 0)])
    g = np.zeros(x.shape)
    for k in itertools.product(range(3), repeat=n):
        places = tuple(
            slice(i, i + size) for i, size in zip(k, x.shape[-1 - n : -1], strict=True)
        )
        g += wide[(..., *places, slice(None))] @ np.float64(params["kernel"][k])
    count = np.maximum(shown.sum(axes, keepdims=True), 1)
    g -= np.where(shown, g, 0).sum(axes, keepdims=True) / count
    variance = np.where(shown, g * g, 0).sum(axes, keepdims=True) / count
    g = g / np.sqrt(variance + eps) * params["norm_scale"] + params["norm_bias"]
    weights = np.exp(12 / (1 + np.exp(-g))) * shown
    lines = Case._lines(x, axes, dict(window))
    total = oracle.over_windows(oracle.total, weights, lines, axes)
    sums = oracle.over_windows(oracle.total, weights * x, lines, axes)
    return sums / np.where(total > 0, total, 1)


def detail(e, i, pad, lam=0.0, alpha=0.0, symmetric=True, eps=1e-3):
    if not e.size or not np.isfinite(e.mean()):
        return e.sum()
    d = e - e.mean()
    d = (d if symmetric else np.maximum(d, 0)) ** 2 + eps
    w = (d / d.mean()) ** (math.exp(lam) / 2) + math.exp(alpha)
    return (w * e).sum() / w.sum()


ORACLES = {"local_importance_pool": importance, "detail_preserving_pool": detail}
_THREE = dict(features=3, window_shape=(3, 3), strides=(2, 2))
CASES = {
    "local_importance_pool": [
        ((4, 5), dict(_THREE, padding=((1, 1), (1, 1)))),
        ((6,), dict(features=2, window_shape=(2,), strides=(2,))),
    ]
}
OWN = {
    "detail_preserving_pool": [
        dict(symmetric=False),
        dict(lam=1.0, alpha=-2.0, eps=0.1),
    ]
}
_W = dict(window_shape=(2, 2))
_KERNEL = {"kernel": np.ones((3, 3, 3, 3), np.float32)}
_P = dict(_W, params=_KERNEL)
WRONG = {
    "detail_preserving_pool": [
        (dict(_W, eps=0.0), ValueError, "`eps` must be finite and greater than 0"),
        (dict(_W, lam=[[[1.0]] * 7] * 6), ValueError, "same along pooled axes"),
    ],
    "local_importance_pool": [
        (dict(_W, params=None), TypeError, "`params` must be a mapping"),
        (dict(_W, params={}), ValueError, "`params` must have `kernel`"),
        (dict(_W, params={**_KERNEL, "bias": 1.0}), ValueError, "no other names than"),
        (
            dict(_W, params={"kernel": np.ones((3, 3))}),
            ValueError,
            "the shape (3, 3, 3",
        ),
        (dict(_P, eps=0), ValueError, "`eps` must be finite and greater than 0"),
        (dict(_P, window_shape=2), ValueError, "`window_shape` must be a sequence"),
    ],
}
STATIC = {"local_importance_pool": dict(window_shape=(2, 2))}
WIDE = dict.fromkeys(ORACLES, "mean")
EXCEPT = {
    ("local_importance_pool", "no_channels"): "the kernel says how many there are",
    ("local_importance_pool", "nan_and_infinity"): "one is felt by its whole sample",
}


def _golden(which, **arguments):
    def of(*ab):
        x = ab[which][..., None]
        y = jaxpool.detail_preserving_pool(x, (2, 2), (2, 2), **arguments)
        return np.asarray(y)[..., 0]

    return of


GOLDEN = {
    "DPP_sym_lite_lam0_al0_A": _golden(0),
    "DPP_asym_lite_lam0_al0_A": _golden(0, symmetric=False),
    "DPP_sym_lite_B": _golden(1),
    "DPP_asym_lite_B": _golden(1, symmetric=False),
}
